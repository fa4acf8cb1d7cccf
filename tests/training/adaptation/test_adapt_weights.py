"""Adapting by training all weights, or adapters, on a model of two layers and thirty notes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapting import config_in, copy_notes, lines, weights_in, without_extras, write_notes
from commands import call
from safetensors.numpy import load_file
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.ranking import SearchOptions
from searchkit.readers.judgements import read_qrels
from searchkit.training.adaptation.adapt import adapt
from searchkit.training.adaptation.config import AdaptConfig
from searchkit.training.adaptation.report import read_report
from searchkit.training.texts import fingerprint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def place(mistral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index, pairs for it, and what a finished run left. No test changes it."""
    folder = tmp_path_factory.mktemp("weights")
    write_notes(folder, mistral)
    with pytest.MonkeyPatch.context() as patch:
        without_extras(patch)
        adapt(weights_in(folder), install=False)
    return folder


@pytest.fixture(autouse=True)
def quick(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_extras(monkeypatch)


@pytest.fixture
def config(place: Path, tmp_path: Path) -> AdaptConfig:
    """The same in a folder of its own; the finished run does not come along."""
    return weights_in(copy_notes(place, tmp_path))


def test_every_stage_leaves_a_file_to_look_at(place: Path) -> None:
    report = read_report(place / "out" / "report.json")
    assert report.pairs == {"read": 90, "trained_on": 54, "held_out": 36, "set_aside": 0}
    assert (report.strength, report.kept) == (None, False)
    there = {file.name for file in (place / "out").iterdir()}
    assert {"pairs.kept.jsonl", "mined.jsonl", "general.jsonl", "trained", "model", "after.index"} <= there
    assert "map" not in there


def test_no_held_out_query_is_trained_on_and_no_held_out_document_is_a_negative(place: Path) -> None:
    out = place / "out"
    held = {document for row in read_qrels(out / "held-out.qrels.tsv").values() for document in row}
    asked = {fingerprint(row["text"]) for row in lines(out / "held-out.queries.jsonl")}
    texts = {fingerprint(f"Note {n} {TEXTS[int(n)]}") for n in held}
    assert len(asked) == 36
    mined = lines(out / "mined.jsonl")
    assert any(row.get("negatives") for row in mined)
    for row in mined:
        assert fingerprint(row["query"]) not in asked
        assert not texts & set(map(fingerprint, row.get("negatives", [])))


def test_a_stopped_run_resumes_and_ends_where_an_unbroken_one_does(config: AdaptConfig, place: Path) -> None:
    class Stop(Exception):
        pass

    def stop(report: Any, planned: int) -> None:
        if report.steps == 5:
            raise Stop

    with pytest.raises(Stop):
        adapt(config, install=False, on_step=stop)
    seen: list[int] = []
    did: list[str] = []
    adapt(
        config, install=False, on_step=lambda report, planned: seen.append(report.steps),
        on_stage=lambda stage, needed: did.append(stage) if needed else None,
    )  # fmt: skip
    assert did == ["train", "export", "index", "evaluate"]
    assert seen == [5, 6, 7, 8]  # the last checkpoint was before the step that failed
    one, other = (Embedder(folder / "out" / "model").encode_passages(TEXTS) for folder in (config.out.parent, place))
    assert abs(one - other).max() < 1e-4


def test_adapters_are_trained_and_merged_into_the_new_model(config: AdaptConfig, mistral: Path) -> None:
    adapt(replace(config, lora_rank=2), install=False)
    before, after = (load_file(folder / "model.safetensors") for folder in (mistral, config.out / "model"))
    assert before.keys() == after.keys()
    for name, weights in before.items():
        rank = 0 if weights.ndim == 1 else np.linalg.matrix_rank(after[name] - weights, tol=1e-3)
        assert rank == (2 if "_proj" in name else 0), name
    assert not (config.out / "model" / "adapter_config.json").exists()
    with SearchEngine.open(config.out / "after.index") as engine:
        hits = engine.search(TEXTS[5], k=1, options=SearchOptions(mode="dense"))
        query, text = Embedder(config.out / "model").encode_queries([TEXTS[5]]), f"{hits[0].title} {hits[0].text}"
        assert hits[0].score == pytest.approx(float(engine.embedder.encode_passages([text])[0] @ query[0]), abs=1e-4)


@pytest.mark.parametrize("library", ["torch", "accelerate", "onnxscript", "scipy"])
def test_a_missing_library_is_named_before_any_work(
    config: AdaptConfig, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    did: list[str] = []
    with pytest.raises(ImportError, match=rf"adapting a model needs {library}: pip install 'searchkit\[train\]'"):
        adapt(config, on_stage=lambda stage, _: did.append(stage))
    assert (did, config.out.exists()) == ([], False)


def test_an_option_that_says_how_weights_are_trained_chooses_to_train_them(place: Path) -> None:
    options = ["--held-out", 0.4, "--steps", 8, "--batch-size", 4, "--learning-rate", 3e-3, "--max-length", 200]
    found = call("adapt", place / "notes.index", "--pairs", place / "pairs.jsonl", "--out", place / "out", *options,
                 "--keep-index")  # fmt: skip
    assert "training: done before" in found.stderr


def test_the_other_way_in_the_same_folder_redoes_what_differs(config: AdaptConfig) -> None:
    did: list[str] = []

    def remember(stage: str, needed: bool) -> None:
        did.extend([stage] if needed else [])

    adapt(config_in(config.out.parent), install=False, on_stage=remember)
    assert did == ["pairs", "fit", "export", "index", "evaluate"]
    did.clear()
    adapt(config, install=False, on_stage=remember)
    assert did == ["mine", "general", "train", "export", "index", "evaluate"]
