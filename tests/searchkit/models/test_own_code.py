"""Models that bring Python code: not run unless the user says so."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from texts import TEXTS
from tiny_models import build_model

from searchkit.errors import InputError
from searchkit.models.embedder import Embedder

CODE = """
from pathlib import Path

from transformers import BertConfig, BertModel

Path({marker!r}).touch()


class TinyConfig(BertConfig):
    model_type = "tiny-of-its-own"


class TinyModel(BertModel):
    config_class = TinyConfig
"""


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once the code has run."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "ran"


def with_code(folder: Path, marker: Path, model_type: str) -> Path:
    build_model(folder, "bert")
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "tiny.TinyConfig", "AutoModel": "tiny.TinyModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type, "auto_map": code}))
    (folder / "tiny.py").write_text(CODE.format(marker=str(marker)))
    return folder


def test_code_is_refused_with_the_reason(tmp_path: Path, marker: Path) -> None:
    folder = with_code(tmp_path / "own", marker, "tiny-of-its-own")
    with pytest.raises(InputError, match=r"needs code of its own \(tiny\.py\).* SEARCHKIT_TRUST_CODE=/"):
        Embedder(folder, device="cpu")
    assert not marker.exists()


def test_code_runs_where_the_model_is_trusted_by_name(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = with_code(tmp_path / "own", marker, "tiny-of-its-own")
    monkeypatch.setenv("SEARCHKIT_TRUST_CODE", f"a/nother, {tmp_path}")
    with pytest.raises(InputError, match="needs code of its own"):
        Embedder(folder, device="cpu")
    monkeypatch.setenv("SEARCHKIT_TRUST_CODE", f"a/nother, {folder}")
    model = Embedder(folder, device="cpu", dtype="float32")
    assert marker.exists()
    assert "runs code of its own, as SEARCHKIT_TRUST_CODE says: tiny.py" in caplog.text
    plain = Embedder(build_model(tmp_path / "plain", "bert"), device="cpu", dtype="float32")
    np.testing.assert_allclose(model.encode_passages(TEXTS), plain.encode_passages(TEXTS), atol=1e-5)
    before = model.identity()["code"]
    (folder / "tiny.py").write_text((folder / "tiny.py").read_text() + "\n# changed\n")
    assert Embedder(folder, device="cpu", dtype="float32").identity()["code"] != before


def test_a_known_architecture_needs_no_code(tmp_path: Path, marker: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = with_code(tmp_path / "own", marker, "bert")
    with caplog.at_level(logging.INFO):
        Embedder(folder, device="cpu").encode_passages(["tea"])
    assert not marker.exists()
    assert "transformers' own implementation is used instead" in caplog.text


def test_modules_of_the_model_s_own_are_refused(tmp_path: Path) -> None:
    folder = build_model(tmp_path / "own", "bert")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match=r"names custom_st\.Transformer, code of the model's own"):
        Embedder(folder, device="cpu")
