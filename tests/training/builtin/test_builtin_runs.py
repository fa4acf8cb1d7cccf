"""The command that makes the built-in model, on a model small enough for it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from texts import SENTENCES
from tiny_models import build_model

from searchkit.models.embedder import Embedder
from searchkit.training.builtin import make as builtin
from searchkit.training.config import TrainConfig


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten runs would draw ten; test_train has a picture."""
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


def test_five_runs_make_a_causal_model_in_int8_that_reads_queries_three_times(
    plain_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import load_file

    base = build_model(tmp_path / "base", "bert")
    built = builtin.make(plain_pairs, tmp_path / "out", base=str(base), max_steps=1)
    model = Embedder(built)
    assert (model.dtype, model.runtime.decoder, model.conventions.query_repeats) == ("int8", True, 3)
    assert (model.conventions.pooling, model.max_length) == ("weighted-mean", 256)
    names = list(builtin.RUNS)
    one, other, both = (load_file(tmp_path / "out" / name / "model.safetensors") for name in (*names[-2:], "mean"))
    assert any(np.abs(one[name] - other[name]).max() > 0 for name in one)
    for name, weights in both.items():
        np.testing.assert_allclose(weights, (one[name] + other[name]) / 2, atol=1e-6)
    assert not (tmp_path / "out" / "mean" / "README.md").exists(), "a card of one run is none of the mean's"
    found = model.encode_passages(SENTENCES) * Embedder(tmp_path / "out" / "mean", dtype="float32").encode_passages(
        SENTENCES
    )
    assert found.sum(1).min() > 0.98

    configs = [TrainConfig.load(tmp_path / "out" / name / "training.json") for name in names]
    assert [config.base for config in configs] == [str(base), *(str(tmp_path / "out" / name) for name in names[:-1])]
    assert [len(config.sources) for config in configs] == [6, 6, 4, 4, 4]  # nothing is asked about twice
    assert "kept" in configs[-1].sources[-1]
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("model.safetensors")}
    builtin.make(plain_pairs, tmp_path / "out", base=str(base), max_steps=1)
    assert {file: file.stat().st_mtime_ns for file in written} == written, "finished runs are not trained again"
    monkeypatch.setattr(builtin, "export", lambda *_, **__: None)  # which takes longest, and has been seen to work
    builtin.make(plain_pairs, tmp_path / "out", base=str(base), max_steps=2)
    steps = [len((tmp_path / "out" / name / "log.jsonl").read_text().splitlines()) for name in names]
    assert steps == [2] * 5, "other settings are other runs"


def test_models_of_two_shapes_have_no_mean(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for name, width in (("one", 4), ("other", 6)):
        (tmp_path / name).mkdir()
        save_file({"weight": np.zeros((width, 2), np.float32)}, tmp_path / name / "model.safetensors")
    with pytest.raises(ValueError, match="only models of the same shape have a mean"):
        builtin.mean(tmp_path / "one", tmp_path / "other", tmp_path / "mean")


def test_shares_are_of_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "kinds.jsonl").write_text("{}\n" * 4480)
    (tmp_path / "plain.jsonl").write_text("{}\n" * 10)
    (tmp_path / "sections.jsonl").write_text("")
    config = builtin._config(builtin.RUNS["3-told"], tmp_path, tmp_path / "out", "base", "teacher", None)
    assert config.sources == (f"{tmp_path}/kinds.jsonl@0.5,mixed", f"{tmp_path}/plain.jsonl@1,mixed")
    assert (config.base, config.teacher, config.max_steps, config.contrast) == ("base", "teacher", 300, 0.5)


def test_a_folder_without_pairs_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["builtin", str(tmp_path / "none"), str(tmp_path / "out")])
    with pytest.raises(
        SystemExit, match=r"Error: .*none holds none of arxiv_title_abstract.jsonl.gz, .*; give the folder of the pairs"
    ):
        builtin.main()
    assert not (tmp_path / "out").exists()
