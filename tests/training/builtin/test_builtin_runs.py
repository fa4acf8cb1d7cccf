"""The command that makes the built-in model, on a model small enough for it."""

from __future__ import annotations

import gzip
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from texts import SENTENCES
from tiny_models import build_model

from searchkit.models.embedder import Embedder
from searchkit.readers.corpus import corpus_folder
from searchkit.training.builtin import make as builtin
from searchkit.training.config import TrainConfig
from searchkit.training.export import export


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """test_train has a picture."""
    monkeypatch.setattr("searchkit.training.log.draw", lambda *_, **__: [])


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


def test_the_command_makes_an_int8_model_from_an_earlier_one_and_resumes(
    plain_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import load_file

    teachers = [str(build_model(tmp_path / kind, kind)) for kind in ("bert", "mistral")]
    base = tmp_path / "base"
    export(teachers[0], base)
    made = partial(
        builtin.make, plain_pairs, tmp_path / "out", teachers=teachers, base=str(base), expected=None, max_steps=2
    )
    built = made()
    out, model = tmp_path / "out", Embedder(built)
    assert (model.dtype, model.conventions.query_repeats, model.max_length) == ("int8", 3, 256)
    before, after, mean = (load_file(out / name / "model.safetensors") for name in ("start", "run", "mean"))
    assert any(np.abs(before[name] - after[name]).max() > 0 for name in before)
    for name, weights in mean.items():
        np.testing.assert_allclose(weights, (1 - builtin.SHARE) * before[name] + builtin.SHARE * after[name], atol=1e-6)
    assert not (out / "mean" / "README.md").exists(), "a card of the run is none of the mean's"
    config = TrainConfig.load(out / "run" / "training.json")
    assert config.teachers == tuple(teachers)
    assert "plain.jsonl@mixed,kept" in config.sources[-1]
    printed = capsys.readouterr().out
    assert "| 192 | plain.jsonl |" in printed, "a group from each of six files"
    assert "step 2 of 2" in printed

    written = {file: file.stat().st_mtime_ns for file in out.rglob("model.safetensors")}
    made(dev=[f"{corpus_folder('intents')}:dev"])
    assert {file: file.stat().st_mtime_ns for file in written} == written, "what is done is not done again"
    printed = capsys.readouterr().out
    assert "run: done before" in printed
    scores = re.findall(r"^\| (before|trained|mean|int8) \| (0\.\d{4}) \|", printed, re.MULTILINE)
    assert [name for name, _ in scores] == ["before", "trained", "mean", "int8"]
    assert "| nDCG@10 | intents dev |" in printed
    monkeypatch.setattr(builtin, "export", lambda *_, **__: None)  # which takes longest, and has been seen to work
    monkeypatch.setattr(builtin, "compare", lambda *_: (1.0, 1.0))
    monkeypatch.setattr(builtin, "SHARE", 1.0)
    made()
    assert "run: done before" in capsys.readouterr().out, "another mean needs no other run"
    np.testing.assert_array_equal(load_file(out / "mean" / "model.safetensors")[name], after[name])


def test_models_of_two_shapes_have_no_mean(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for name, width in (("one", 4), ("other", 6)):
        (tmp_path / name).mkdir()
        save_file({"weight": np.zeros((width, 2), np.float32)}, tmp_path / name / "model.safetensors")
    with pytest.raises(ValueError, match="only models of the same shape have a mean"):
        builtin.mix(tmp_path / "one", tmp_path / "other", tmp_path / "mean", share=0.5)


def test_another_base_is_refused_before_anything_is_written(plain_pairs: Path, mistral: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recipe starts from 04c0b7d940fb; give the folder .* with --base"):
        builtin.make(plain_pairs, tmp_path / "out", teachers=["minilm"], base=str(mistral))
    with pytest.raises(ValueError, match="no teachers; name at least one"):
        builtin.make(plain_pairs, tmp_path / "out", teachers=[])
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
