"""The benchmark scripts run, on tiny models; the figures themselves mean nothing here."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from texts import TEXTS
from tiny_models import build_model
from warm import warm_python

from searchkit.compression.measure import MeasureOptions, measure
from searchkit.engine import SearchEngine
from searchkit.evaluation.evaluate import evaluate
from searchkit.models.conventions import Conventions
from searchkit.models.embedder import Embedder
from searchkit.readers.corpus import corpus_folder
from searchkit.readers.judgements import read_beir_split, read_judgements
from searchkit.records import Document, Judgements
from searchkit.tasks import get_task
from searchkit.training.export import export
from searchkit.training.layout import write_layout

SCRIPTS = Path(__file__).parent / "benchmarks"


@pytest.fixture(scope="module")
def warm() -> Iterator[Path]:
    with warm_python() as python:
        yield python


def run(name: str, *arguments: object, python: str | Path = sys.executable) -> dict[str, Any]:
    """Output of a script, run in a new process."""
    command = [str(python), str(SCRIPTS / name), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def session(warm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the session for a GPU writes, with tiny models on the CPU."""
    out = tmp_path_factory.mktemp("gpu") / "session"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": str(warm)}
    command = ["bash", str(SCRIPTS / "gpu_session.sh"), "--tiny", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return out


def test_every_step_of_the_gpu_session_ends_well(session: Path) -> None:
    log = (session / "session.log").read_text()
    assert log.count("exit 0") == 4, log
    for line in (session / "1-faiss.txt").read_text().splitlines():
        assert json.loads(line)["gpu"]["rows in common"] == 1.0
    shared = json.loads((session / "3-prefix.txt").read_text())["32 queries"]
    assert shared["shared"] >= 24  # the instruction's words
    assert shared["least cosine"] > 0.99
    assert "| both: after | 2 |" in (session / "4-paper.txt").read_text()


def test_the_7b_script_runs_on_a_tiny_model(session: Path) -> None:
    found = json.loads((session / "2-train-7b.txt").read_text())
    training, linear = found["training"], 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)  # two layers' weights
    assert training["weights_trained"] == 2 * 16 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 96))
    assert len(training["losses"]) == 2
    operations = 2 * linear + 2 * 2 * 64 * 24  # a token's, in texts of 24 tokens
    wanted = 2 * operations * training["tokens_per_second"] / (found["peak_tflops"]["value"] * 1e12)
    assert training["utilisation"] == pytest.approx(wanted)
    assert found["embedding"]["documents_per_second"] > 0


def test_the_7b_script_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["train_7b.py"])
    runpy.run_path(str(SCRIPTS / "train_7b.py"), run_name="__main__")  # and does not exit with a failure
    assert "needs a CUDA GPU" in capsys.readouterr().out


def test_a_decoder_gives_the_same_vectors_every_way(tmp_path: Path) -> None:
    base = build_model(tmp_path / "llama", "llama", eos=False)
    embedder = Embedder(base, device="cpu", conventions=Conventions(pooling="last", append_eos=True, max_length=200))
    shutil.copytree(base, tmp_path / "decoder")
    write_layout(embedder, tmp_path / "decoder", default_instruction=None)
    export(tmp_path / "decoder", tmp_path / "exported", dtype="float32")
    script = runpy.run_path(str(SCRIPTS / "embed.py"))
    found = script["race_of_decoder"](tmp_path / "decoder", [tmp_path / "exported"], TEXTS, 1, corpus_folder("intents"))
    assert len(found) == 5
    judged = [each["ndcg@10"] for name, each in found.items() if name.startswith("searchkit")]
    assert len(judged) == 3
    assert 0 < min(judged) <= max(judged) <= min(judged) + 0.05
    for name, each in found.items():
        assert each["least_cosine"] > (0.9 if "bfloat16" in name else 0.9999), name
        assert each["per_second"] > 0


def test_training_equals_sentence_transformers(warm: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="sentence-transformers' trainer needs datasets")
    model = build_model(tmp_path / "bert", "bert")
    sizes = {"--batch-size": 8, "--chunk": 3, "--max-length": 32, "--steps": 3, "--rounds": 1}
    found = run("train.py", "--model", model, *(part for size in sizes.items() for part in size), python=warm)
    assert found["same"] == {"weights": True, "tokens": True, "loss": True}
    ours, theirs = found["losses"].values()
    assert ours == pytest.approx(theirs, abs=1e-3)  # of later steps too: the gradients are the same


def test_the_writing_script_counts_examples_and_memory() -> None:
    found = run("synthesize.py", "--count", 40, "--latency", 0, "--concurrency", 8, "--every", 20)
    assert found["examples"] == 40
    assert found["rate"] > 0
    assert 1 <= found["questions_at_once"] <= 8
    assert set(found["memory_mib"]) == {"asking", "filtering"}


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Queries and judgements of `documents`, in BEIR form."""
    (tmp_path / "qrels").mkdir()
    queries = {"q1": "yeast in bread", "q2": "the sun", "q3": "a loan and its interest"}
    lines = [json.dumps({"_id": id, "text": text}) for id, text in queries.items()]
    (tmp_path / "queries.jsonl").write_text("\n".join(lines))
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t1\t2\nq2\t12\t1\nq3\t23\t1\n")
    return tmp_path


def test_recipes_are_tuned_without_the_judged_queries(
    judged: Path, mistral: Path, embedder: Embedder, documents: list[Document]
) -> None:
    lines = [json.dumps({"_id": one.id, "title": one.title, "text": one.text}) for one in documents]
    (judged / "corpus.jsonl").write_text("\n".join(lines))
    script = runpy.run_path(str(SCRIPTS / "recipes.py"))
    index = judged / "set.index"
    found = script["measured"](judged, index, str(mistral), ["int8", "binary+rerank"], 0.9)
    with SearchEngine.open(index, model=embedder) as engine:
        wanted = {one.mode: one for one in evaluate(engine, read_judgements(judged), modes=["dense"])}
        tuned = measure(engine, options=MeasureOptions(["int8", "binary+rerank"], 0.9))
    assert found[0].ndcg_10 == pytest.approx(wanted["dense"].metrics["ndcg@10"])
    assert [one.tuning for one in found] == [one.tuning for one in tuned]
    assert (found[0].queries, found[0].sample) == (3, 30)
    assert [line.split(" | ")[0] for line in script["table"]({"set": found}).splitlines()[2:]] == [
        "| binary+rerank", "| int8", "| flat"
    ]  # fmt: skip


def test_a_reduced_split_is_scored_as_an_evaluation_is(
    judged: Path, mistral: Path, embedder: Embedder, documents: list[Document], warm: Path
) -> None:
    lines = [json.dumps({"_id": one.id, "title": one.title, "text": one.text}) for one in documents]
    (judged / "corpus.jsonl").write_text("\n".join(lines))
    options = ("--split", "test", "--model", mistral, "--task", "scifact", "--query-repeats", 2)
    found = run("reduced.py", judged, *options, python=warm)
    assert (found["queries"], found["query_repeats"]) == (3, 2)
    queries, qrels = read_beir_split(judged, "test")
    twice = Embedder(mistral, conventions=replace(embedder.conventions, query_repeats=2))
    with SearchEngine.create(judged / "index", model=twice, chunk_tokens=0) as engine:
        engine.add(documents)
        for name, said in (("plain", ""), ("told", get_task("scifact").instruction)):
            asked = [replace(query, instruction=said) for query in queries]
            for one in evaluate(engine, Judgements("", asked, qrels), modes=["dense", "hybrid"]):
                assert found["ndcg@10"][f"{name}, {one.mode}"] == pytest.approx(one.metrics["ndcg@10"])


def test_the_fusion_script_scores_as_the_engine_does(
    judged: Path, embedder: Embedder, documents: list[Document]
) -> None:
    script = runpy.run_path(str(SCRIPTS / "fusion.py"))
    _, judgements = script["judgements_of"](f"{judged}:test")
    with SearchEngine.create(judged / "index", model=embedder) as engine:
        engine.add(documents)
        scores = script["measure"](engine, judgements)
        expected = {result.mode: result.metrics["ndcg@10"] for result in evaluate(engine, judgements)}
    assert scores["dense alone"][0] == expected["dense"]
    assert scores["BM25 alone"][0] == expected["lexical"]
    assert scores["adaptive"][0] == expected["hybrid"]


def test_the_evaluation_script_accounts_for_all_the_time() -> None:
    found = run("evaluate.py", "--passages", 200, "--queries", 10, "--modes", "dense", "lexical")
    dense, lexical = found["modes"]
    for row in (dense, lexical):
        assert row["embedding"] + row["search"] + row["rest"] == pytest.approx(row["whole"], abs=0.02)  # rounded
        assert 0 <= row["share of the rest"] <= 1
    assert dense["embedding"] > 0 == lexical["embedding"]


def test_the_metadata_script_times_every_filter(tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPTS / "metadata.py"))
    for name, (topics, decomposed) in script["COLLECTIONS"].items():  # it checks what the filters match
        found = script["measure"](tmp_path / name, topics, decomposed, 300)
        assert {"number", "text", "list", "nested", "facet tags", "facet tags, again", "lexical match"} <= found.keys()


def test_the_accents_script_finds_as_much_without_accents(
    judged: Path, tmp_path: Path, documents: list[Document]
) -> None:
    lines = [json.dumps({"_id": one.id, "title": one.title, "text": one.text}) for one in documents]
    (judged / "corpus.jsonl").write_text("\n".join(lines))
    script = runpy.run_path(str(SCRIPTS / "accents.py"))
    for language, pairs in script["TEXTS"].items():
        found = script["measure"](tmp_path / language, f"{language}+fold", pairs)
        spelled, typed = (found[way].partition(",")[0] for way in ("as spelled", "without accents"))
        assert spelled == typed
    found = script["english"](tmp_path / "english", f"{judged}:test")
    assert found["english"]["ndcg@10"] == found["english+fold"]["ndcg@10"]


def test_scale_is_measured_and_a_build_that_is_there_is_used_again(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((50, 384)).astype(np.float32)
    np.save(tmp_path / "seeds.npy", rows / np.linalg.norm(rows, axis=1, keepdims=True))  # nothing is embedded
    options = ("--folder", tmp_path, "--passages", 3000, "--recipe", "int8")
    command = [sys.executable, str(SCRIPTS / "scale.py"), *map(str, options)]
    for steps in (["build", "disk", "bare"], ["build"]):
        subprocess.run([*command, "--steps", *steps], check=True, capture_output=True)
    found = json.loads((tmp_path / "3000.json").read_text())
    assert "train" not in found["build"]  # the second time
    assert found["disk"]["segments"] == 1  # MiB: 384 bytes a vector
    assert found["bare"]["batch 64"]["over"] > 0
    table = subprocess.run([*command, "--table"], check=True, capture_output=True, text=True).stdout
    assert "|  | 3,000 |" in table
    assert "| over FAISS, batch of 64 |" in table


def test_the_page_on_scale_holds_what_the_arithmetic_prints() -> None:
    command = [sys.executable, str(SCRIPTS / "arithmetic.py")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    page = (SCRIPTS.parents[1] / "docs" / "scale.md").read_text("utf-8")
    assert printed.strip() in page
    assert "100M | 384 | 150 |" in printed  # 4 bytes for each dimension
    command += ["--documents", "1e6", "--dims", "384", "--core-hour", "0"]
    small = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n\n")
    assert small[0].splitlines()[-1].startswith("| 1M | 384 | 1.5 | 0.064 | 0.77 |")
    assert small[1].splitlines()[-1].endswith("| 0 |")


def test_merging_is_measured() -> None:
    found = run("merging.py", "--passages", 300, "--parts", 2, "--dim", 8, "--recipe", "int8")
    assert found["int8"]["300"]["documents"] == 300
    assert 0 <= found["int8"]["300"]["anonymous_mb"] < 500
