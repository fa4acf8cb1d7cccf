from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rerankers import build_reranker
from texts import TEXTS

from searchkit.cli.main import main
from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.evaluation.evaluate import evaluate
from searchkit.models.embedder import Embedder
from searchkit.models.reranker import Reranker
from searchkit.records import Document, Judgements, Query

QUERY = "why does bread rise"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_reranker(tmp_path_factory.mktemp("models") / "yes-or-no", "qwen3-lm")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Path:
    folder = tmp_path_factory.mktemp("indexes") / "notes.index"
    with SearchEngine.create(folder, model=embedder) as engine:
        engine.add(Document(str(n), text, title=f"Note {n}") for n, text in enumerate(TEXTS))
    return folder


@pytest.mark.parametrize("depth", [30, 5])
def test_the_first_hits_come_in_the_rerankers_order(index: Path, embedder: Embedder, model: Path, depth: int) -> None:
    reranker = Reranker(model, device="cpu", dtype="float32")
    with SearchEngine.open(index, model=embedder) as engine:
        plain = engine.search(QUERY, k=depth, instruction="Find recipes")
        hits = engine.search(QUERY, k=3, instruction="Find recipes", rerank=reranker, rerank_depth=depth, explain=True)
        own = engine.search_many([Query("1", QUERY, "Find recipes")], k=3, rerank=reranker, rerank_depth=depth)[0]
        assert engine.search_many([], rerank=reranker) == []
        assert len(engine.search(QUERY, k=10, rerank=reranker, rerank_depth=2)) == 10, "depth is at least k"
    scores = reranker.scores(QUERY, [f"{hit.title} {hit.text}" for hit in plain], "Find recipes")
    order = np.argsort(-scores, kind="stable")[:3]
    assert [hit.id for hit in hits] == [plain[n].id for n in order] == [hit.id for hit in own]
    assert [hit.score for hit in hits] == scores[order].tolist()
    assert [hit.rank for hit in hits] == [1, 2, 3]
    assert all(hit.explanation for hit in hits)


def test_an_evaluation_measures_with_and_without(index: Path, embedder: Embedder, model: Path) -> None:
    reranker = Reranker(model, device="cpu", dtype="float32")
    judgements = Judgements("notes", [Query("q", QUERY), Query("r", "oboe")], {"q": {"1": 1}, "r": {"4": 1}}, None)
    with SearchEngine.open(index, model=embedder) as engine:
        plain, again = evaluate(engine, judgements, modes=["dense"], reranker=reranker, rerank_depth=7)
        hits = engine.search(QUERY, k=100, mode="dense")
    assert (plain.mode, again.mode) == ("dense", "dense+rerank")
    ranked = sorted(again.run["q"], key=lambda id: -again.run["q"][id])
    first = [hit.id for hit in hits[:7]]
    assert set(ranked[:7]) == set(first)
    assert ranked[:7] != first
    assert ranked[7:] == [hit.id for hit in hits[7:]]
    assert again.metrics["recall@100"] == plain.metrics["recall@100"]
    assert again.bytes_per_document == plain.bytes_per_document
    with pytest.raises(InputError, match="rerank_depth is 0"), SearchEngine.open(index, model=embedder) as engine:
        evaluate(engine, judgements, modes=["dense"], reranker=reranker, rerank_depth=0)


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(each) for each in arguments], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def test_search_and_evaluate_take_a_reranker(index: Path, model: Path, tmp_path: Path) -> None:
    code, out, err = run("search", index, QUERY, "-k", 3, "--rerank", model, "--rerank-depth", 30, "--device", "cpu",
                         "--dtype", "float32", "--format", "json")  # fmt: skip
    assert code == 0, err
    hits = json.loads(out)["hits"]
    assert len(hits) == 3
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)
    texts = [f"{hit['title']} {hit['text']}" for hit in hits]
    assert scores == pytest.approx(
        Reranker(model, device="cpu", dtype="float32").scores(QUERY, texts).tolist(), abs=1e-5
    )
    queries, qrels = tmp_path / "q.jsonl", tmp_path / "qrels.tsv"
    queries.write_text(json.dumps({"_id": "q", "text": QUERY}))
    qrels.write_text("query-id\tcorpus-id\tscore\nq\t1\t1\n")
    code, out, err = run("evaluate", index, "--queries", queries, "--qrels", qrels, "--modes", "dense,lexical",
                         "--rerank", model, "--format", "json", "--runs", tmp_path / "runs")  # fmt: skip
    assert code == 0, err
    assert list(json.loads(out)) == ["dense", "dense+rerank", "lexical", "lexical+rerank"]
    assert (tmp_path / "runs" / "dense+rerank.trec").is_file()


def test_wrong_options_are_refused(index: Path, mistral: Path) -> None:
    code, _, err = run("search", index, QUERY, "--rerank-depth", 5)
    assert (code, "--rerank-depth needs --rerank MODEL" in err) == (2, True)
    code, _, err = run("search", index, QUERY, "--rerank", mistral)
    assert (code, "does not score pairs" in err) == (1, True)
