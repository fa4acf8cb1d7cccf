from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from texts import TEXTS
from tiny_models import build_model

from searchkit.models.embedder import Embedder
from searchkit.training.export import compare, export, unpack

LONG = "a long passage about nothing much " * 9


@pytest.fixture(scope="module", params=["mistral", "bert"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and the same exported in float32."""
    folder = tmp_path_factory.mktemp("export")
    export(build_model(folder / "model", request.param), folder / "onnx", dtype="float32")
    return folder / "model", folder / "onnx"


@pytest.fixture(scope="module")
def int8(mistral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "int8"
    export(mistral, folder, dtype="int8")
    return folder


def test_an_exported_model_gives_torch_s_vectors(pair: tuple[Path, Path]) -> None:
    model, exported = pair
    texts = [*TEXTS, LONG, "x"]
    wanted = Embedder(model, device="cpu", dtype="float32").encode_passages(texts)
    np.testing.assert_allclose(Embedder(exported).encode_passages(texts), wanted, atol=1e-5)


def test_a_text_embeds_alone_as_in_a_crowd(pair: tuple[Path, Path]) -> None:
    exported = Embedder(pair[1])
    alone, crowd = exported.encode_passages(["tea"]), exported.encode_passages(["tea", LONG, *TEXTS])
    np.testing.assert_allclose(alone[0], crowd[0], atol=1e-5)


def test_int8_stays_close_and_is_smaller(mistral: Path, int8: Path, pair: tuple[Path, Path]) -> None:
    least, mean = compare(mistral, int8)
    assert 0.9 < least <= mean <= 1.0001
    assert Embedder(int8).dtype == "int8"


def test_its_weights_come_back_for_training(mistral: Path, int8: Path, tmp_path: Path) -> None:
    unpack(int8, tmp_path / "back")
    wanted = Embedder(mistral, device="cpu", dtype="float32").encode_passages(TEXTS)
    found = Embedder(tmp_path / "back", device="cpu", dtype="float32").encode_passages(TEXTS)
    assert (found * wanted).sum(1).min() > 0.95


@pytest.mark.parametrize("name", ["tiny-e5-base", "tiny-e5-mistral", "tiny-qwen3-embedding"])
def test_what_a_model_is_known_to_want_by_its_name_goes_along(name: str, tmp_path: Path) -> None:
    model = build_model(tmp_path / name, "bert" if name == "tiny-e5-base" else "mistral", eos=False)
    export(model, tmp_path / "onnx", dtype="float32")
    wanted, found = Embedder(model, device="cpu", dtype="float32"), Embedder(tmp_path / "onnx")
    assert (found.frame, found.conventions.smallest_dim) == (wanted.frame, wanted.conventions.smallest_dim)
    np.testing.assert_allclose(found.encode_passages(TEXTS), wanted.encode_passages(TEXTS), atol=1e-5)
    for instruction in (None, "", "Find the tea"):
        queries = [embedder.encode_queries(["tea"], instruction) for embedder in (found, wanted)]
        np.testing.assert_allclose(*queries, atol=1e-5)


def test_an_exported_model_is_not_exported_again(int8: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Use the model it was exported from"):
        export(int8, tmp_path / "again")


def test_torch_is_not_imported_to_run_it(int8: Path) -> None:
    code = (
        "import sys; from searchkit.models.embedder import Embedder; "
        f"Embedder({str(int8)!r}).encode_queries(['tea'], 'Find it'); "
        "assert not {'torch', 'transformers'} & sys.modules.keys(), 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("options", [{"device": "mps"}, {"dtype": "bfloat16"}])
def test_what_an_exported_model_cannot_do_is_said(int8: Path, options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="is an exported model"):
        Embedder(int8, **options)


def test_another_pooling_than_it_was_exported_with_is_refused(int8: Path) -> None:
    from dataclasses import replace

    conventions = replace(Embedder(int8).conventions, pooling="mean")
    with pytest.raises(ValueError, match="exported with last pooling"):
        Embedder(int8, conventions=conventions).encode_passages(["tea"])


def test_a_folder_in_use_is_not_written_over(mistral: Path, int8: Path) -> None:
    with pytest.raises(ValueError, match="not empty"):
        export(mistral, int8)
