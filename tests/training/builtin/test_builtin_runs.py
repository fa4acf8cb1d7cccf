"""The command that makes the built-in model, on a model small enough for it."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from texts import SENTENCES
from tiny_models import build_model

from searchkit.models.embedder import Embedder
from searchkit.readers.corpus import corpus_folder
from searchkit.training.builtin import make as builtin
from searchkit.training.builtin.head import HeadConfig
from searchkit.training.export import export

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def plain_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    text = "{0} It was seen by many people who wrote about it at length. Others of them did not care about {1}."
    of_file = {
        "arxiv_title_abstract": "On the matter of {0}", "scitldr": "Number {0} is odd", "squad_train": "Who saw {0}?",
        "medquad": "What causes illness {0} ?", "wikipedia_en_section": "Town {0} - History",
        "wikipedia_en_title_intro": "Town {0}",
    }  # fmt: skip
    for name, query in of_file.items():
        rows = [
            {"query": query.format(n), "positive": text.format(SENTENCES[n % len(SENTENCES)], f"{name} {n}")}
            for n in range(40)
        ]
        if name == "wikipedia_en_section":
            rows += [{**row, "query": row["query"].replace("History", "Sights"), "positive": "Sights."} for row in rows]
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def test_the_command_puts_a_head_on_an_exported_model_and_resumes(
    plain_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    export(build_model(tmp_path / "model", "causal-bert"), base)
    made = partial(builtin.make, plain_pairs, out, config=HeadConfig(steps=4))
    built = made(base=str(base))
    matrix = load_file(out / "head" / "model.safetensors")["linear.weight"].T
    before = Embedder(base).encode_passages(SENTENCES)
    expected = before @ matrix / np.linalg.norm(before @ matrix, axis=1, keepdims=True)
    np.testing.assert_allclose(Embedder(built).encode_passages(SENTENCES), expected, atol=1e-5)
    assert np.abs(expected - before).max() > 0.01
    printed = capsys.readouterr().out
    assert "plain.jsonl: 192 rows" in printed, "a group from each of six files"
    assert re.search(r"\d+ queries, \d+ told, \d+ passages, \d+ plain, \d+ asked: \d+ s", printed)
    assert "step 4: divergence" in printed

    written = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    made(base=str(base), dev=[f"{corpus_folder('intents')}:dev"])
    assert {file: file.stat().st_mtime_ns for file in written} == written, "what is done is not done again"
    printed = capsys.readouterr().out
    assert "head: done before" in printed
    rows = re.findall(r"^\| (no head|base|result) \| 0\.\d{4} \|", printed, re.MULTILINE)
    assert rows == ["no head", "base", "result"]
    assert "| nDCG@10 | intents dev |" in printed
    earlier = (built / "model.onnx").read_bytes()
    shutil.copytree(built, tmp_path / "shipped")
    made(base=str(tmp_path / "shipped"))
    assert "head: done before" in capsys.readouterr().out, "a head that is there does not count"
    assert (built / "model.onnx").read_bytes() == earlier


def test_a_base_that_is_not_exported_is_refused_before_anything_is_written(
    plain_pairs: Path, mistral: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="is not an exported model; write one with searchkit export"):
        builtin.make(plain_pairs, tmp_path / "out", base=str(mistral))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_pairs_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["builtin", str(tmp_path / "none"), str(tmp_path / "out")])
    with pytest.raises(
        SystemExit, match=r"Error: .*none holds none of arxiv_title_abstract.jsonl.gz, .*; give the folder of the pairs"
    ):
        builtin.main()
    assert not (tmp_path / "out").exists()
