from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from forked import Words
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.evaluation.evaluate import EVALUATION_MODES, Evaluation, evaluate, write_report, write_run
from searchkit.indexer.analysis import Analyzer
from searchkit.metrics import METRICS, check_metrics, means, score, score_queries
from searchkit.models.embedder import Embedder
from searchkit.ranking import SearchOptions
from searchkit.readers.judgements import read_run
from searchkit.records import Document, Judgements, Qrels, Query, Run

QUERIES = [Query("q1", "yeast and bread"), Query("q2", "the sun"), Query("q3", "xylophone")]
QRELS: Qrels = {"q1": {"1": 2, "11": 1}, "q2": {"2": 1, "9": 1, "0": 0}, "q3": {"4": 1}}
JUDGEMENTS = Judgements("notes", QUERIES, QRELS)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Iterator[SearchEngine]:
    with SearchEngine.create(tmp_path_factory.mktemp("evaluate") / "notes.index", model=embedder) as made:
        made.add(Document(str(n), text) for n, text in enumerate(TEXTS))
        yield made


def random_case(seed: int) -> tuple[Run, Qrels]:
    """A run full of ties, partly deeper than 100, and judgements of more and of fewer queries and documents."""
    pick = random.Random(seed)
    names = [f"{pick.choice('abZ_é')}{n}" for n in range(300)]
    run = {
        f"q{q}": {
            name: float(pick.choice([0, 1, 2, 2, 3, -1, 0.1, 1e-9]))
            for name in pick.sample(names, pick.randint(1, 150))
        }
        for q in range(12)
    }
    qrels = {f"q{q}": {name: pick.choice([0, 0, 1, 1, 2]) for name in pick.sample(names, 20)} for q in range(3, 14)}
    return run, qrels


def reciprocal_rank_at_10(found: dict[str, float], judged: dict[str, int]) -> float:
    order = sorted(found, key=lambda name: (found[name], name.encode()), reverse=True)[:10]
    return next((1 / rank for rank, name in enumerate(order, start=1) if judged.get(name, 0) > 0), 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_metrics_equal_trec_eval_on_runs_full_of_ties(seed: int) -> None:
    run, qrels = random_case(seed)
    measures = {"ndcg_cut_10": "ndcg@10", "recall_100": "recall@100", "map_cut_100": "map@100"}
    oracle = pytrec_eval.RelevanceEvaluator(qrels, set(measures)).evaluate(run)
    metrics, per_query = score(run, qrels)
    for key, name in measures.items():
        assert metrics[name] == pytest.approx(sum(values[key] for values in oracle.values()) / len(qrels))
    assert per_query == pytest.approx({q: oracle[q]["ndcg_cut_10"] if q in oracle else 0.0 for q in qrels})


@pytest.mark.parametrize("gains", [{"x": -2}, {"x": -2, "y": -1}, {"x": -3, "z": 0}])
def test_a_query_judged_by_negative_grades_alone_scores_zero(gains: dict[str, int]) -> None:
    """trec_eval crashes at the second query: the highest grade is the size of an array."""
    run = {name: {"x": 1.0, "y": 0.5} for name in ("good", "spam")}
    _, per_query = score(run, {"good": {"x": 1, "y": 2}, "spam": gains})
    assert per_query == pytest.approx({"good": (1 + 2 * math.log(2, 3)) / (2 + math.log(2, 3)), "spam": 0.0})


def test_a_grade_that_needs_gigabytes_is_refused() -> None:
    with pytest.raises(InputError, match="a judgement is 2000000000; the highest possible is 1000000"):
        score({"q": {"x": 1.0}}, {"q": {"x": 2_000_000_000}})


@pytest.mark.parametrize(
    ("run", "qrels"),
    [
        ({"q": {"a": 1.0}}, {"q": {"a": 1}, "q\0": {"a": 1}}),  # pytrec_eval aborts the process
        ({"q": {"a": 1.0}}, {"q": {"a\0b": 1}}),
        ({"q": {"a\0b": 1.0}}, {"q": {"a": 1}}),
    ],
)
def test_ids_with_a_nul_are_refused(run: Run, qrels: Qrels) -> None:
    with pytest.raises(InputError, match="holds a NUL; remove it"):
        score(run, qrels)


WHOLE = ("dense", "lexical", "rank-bm25")  # hybrid search fuses lists that were cut before


def test_ties_past_the_last_rank_are_broken_by_id_too(tmp_path: Path) -> None:
    """Of 150 equal documents trec_eval takes the 100 last ids, whatever their order in the index."""
    # A model whose vectors depend on nothing but the text: those of equal texts in two batches may differ by rounding.
    with SearchEngine.create(tmp_path / "copies.index", model=Words()) as engine:
        engine.add(Document(f"d{n:03}", "Bread rises." if n < 150 else "Tea cools.") for n in range(400))
        for document, recall in (("d049", 0.0), ("d050", 1.0), ("d149", 1.0)):
            judgements = Judgements("copies", [Query("q", "Bread rises.")], {"q": {document: 1}})
            for found in evaluate(engine, judgements, modes=WHOLE):
                assert found.metrics["recall@100"] == recall


@pytest.mark.parametrize("seed", range(20))
def test_mrr_at_10_equals_the_definition(seed: int) -> None:
    run, qrels = random_case(seed)
    expected = [reciprocal_rank_at_10(run.get(query, {}), judged) for query, judged in qrels.items()]
    assert score(run, qrels)[0]["mrr@10"] == pytest.approx(sum(expected) / len(qrels))


def test_rank_eleven_counts_for_nothing_in_mrr_at_10() -> None:
    run: Run = {"q": {str(n): -float(n) for n in range(20)}}
    assert score(run, {"q": {"9": 1}})[0]["mrr@10"] == pytest.approx(0.1)
    assert score(run, {"q": {"10": 1}})[0]["mrr@10"] == 0


@pytest.mark.parametrize("missing", [{}, {"other": {"a": 1.0}}, {"q2": {}}])
def test_missing_queries_count_as_zero(missing: Run) -> None:
    metrics, per_query = score({"q1": {"a": 1.0}, **missing}, {"q1": {"a": 1}, "q2": {"a": 1}})
    assert metrics == {"ndcg@10": 0.5, "recall@100": 0.5, "map@100": 0.5, "mrr@10": 0.5}
    assert per_query == {"q1": 1.0, "q2": 0.0}


def test_an_empty_run_scores_zero() -> None:
    metrics, per_query = score({}, {"q1": {"a": 1}})
    assert set(metrics.values()) == {0.0}
    assert per_query == {"q1": 0.0}


def test_a_query_without_relevant_documents_scores_zero() -> None:
    assert score({"q": {"a": 1.0}}, {"q": {"a": 0}})[1] == {"q": 0.0}


def test_no_judgements_are_refused() -> None:
    with pytest.raises(ValueError, match="give at least one judged query"):
        score({"q": {"a": 1.0}}, {})


def test_scores_apart_only_in_64_bits_are_ties_as_for_trec_eval() -> None:
    run: Run = {
        "q": {f"{n:02}": 1.0 - n * 1e-12 for n in range(11)}
    }  # in 32 bits document 10 comes first and 00 eleventh
    oracle = pytrec_eval.RelevanceEvaluator({"q": {"00": 1}}, {"recip_rank"}).evaluate(run)
    assert oracle["q"]["recip_rank"] == pytest.approx(1 / 11)
    assert score(run, {"q": {"00": 1}})[0]["mrr@10"] == 0


@pytest.mark.parametrize("names", [["ndcg@10", "ndcg@3"], []])
def test_unknown_metrics_are_refused(names: list[str]) -> None:
    check_metrics(list(METRICS))
    with pytest.raises(ValueError, match=r"metrics are (ndcg@3|none); expected some of ndcg@10, recall@100"):
        check_metrics(names)


# Against an index


def test_every_mode_is_measured_by_what_search_returns(engine: SearchEngine) -> None:
    for item in evaluate(engine, JUDGEMENTS):
        options = SearchOptions(mode=item.mode)  # type: ignore[arg-type]
        for query in QUERIES:
            hits = engine.search(query.text, k=100, options=options)
            assert item.run[query.id] == pytest.approx({hit.id: hit.score for hit in hits}, abs=1e-4)
        assert item.per_query == score_queries(item.run, QRELS)
        assert item.metrics == means(item.per_query)
        assert item.seconds_per_query > 0


def test_lexical_search_returns_matching_documents_only(engine: SearchEngine) -> None:
    (item,) = evaluate(engine, JUDGEMENTS, modes=["lexical"])
    assert item.run["q3"] == {}
    assert item.metrics["recall@100"] == pytest.approx(2 / 3)
    assert item.per_query["ndcg@10"]["q3"] == 0


@pytest.mark.parametrize("mode", EVALUATION_MODES)
def test_one_query_is_enough(engine: SearchEngine, mode: str) -> None:
    (item,) = evaluate(engine, Judgements("one", QUERIES[:1], {"q1": QRELS["q1"]}), modes=[mode])
    assert item.summary()["queries"] == 1
    assert 0 < item.metrics["ndcg@10"] <= 1


def test_queries_without_judgements_are_not_searched(engine: SearchEngine) -> None:
    (item,) = evaluate(engine, replace(JUDGEMENTS, qrels={"q2": QRELS["q2"]}), modes=["lexical"])
    assert list(item.run) == ["q2"]


def test_judged_queries_that_are_missing_count_as_zero(engine: SearchEngine) -> None:
    (alone,) = evaluate(engine, Judgements("one", QUERIES[:1], {"q1": QRELS["q1"]}), modes=["lexical"])
    (item,) = evaluate(
        engine,
        replace(JUDGEMENTS, queries=QUERIES[:1], qrels={"q1": QRELS["q1"], "q2": QRELS["q2"]}),
        modes=["lexical"],
    )
    assert item.metrics["ndcg@10"] == pytest.approx(alone.metrics["ndcg@10"] / 2)


def test_a_query_s_own_instruction_takes_precedence(engine: SearchEngine) -> None:
    common, own = [Query("q2", "the sun")], [Query("q2", "the sun", "Find the opposite")]
    qrels = {"q2": QRELS["q2"]}
    (told,) = evaluate(engine, Judgements("", common, qrels, "Find the opposite"), modes=["dense"])
    (kept,) = evaluate(engine, Judgements("", own, qrels, "Find notes"), modes=["dense"])
    (plain,) = evaluate(engine, Judgements("", common, qrels), modes=["dense"])
    assert kept.run == told.run != plain.run


@pytest.mark.parametrize("mode", EVALUATION_MODES)
def test_drop_self_leaves_out_the_query_s_own_document_alone(engine: SearchEngine, mode: str) -> None:
    queries, qrels = [Query("1", TEXTS[1])], {"1": {"11": 1}}
    (kept,) = evaluate(engine, Judgements("", queries, qrels), modes=[mode])
    (dropped,) = evaluate(engine, Judgements("", queries, qrels, drop_self=True), modes=[mode])
    assert kept.run["1"].keys() - dropped.run["1"].keys() == {"1"}
    assert dropped.metrics["mrr@10"] >= kept.metrics["mrr@10"]


@pytest.mark.parametrize("mode", EVALUATION_MODES)
def test_drop_self_still_judges_a_hundred(tmp_path: Path, embedder: Embedder, mode: str) -> None:
    with SearchEngine.create(tmp_path / "x", model=embedder) as engine:
        engine.add([*(Document(str(n), "bread") for n in range(102)), *(Document(f"o{n}", "tea") for n in range(200))])
        (item,) = evaluate(engine, Judgements("", [Query("0", "bread")], {"0": {"1": 1}}, drop_self=True), modes=[mode])
    assert "0" not in item.run["0"]
    assert len(item.run["0"]) == 100


def test_judged_documents_missing_from_the_index_count_as_missed(engine: SearchEngine) -> None:
    qrels = {"q1": {"1": 1, "gone": 1}}
    (item,) = evaluate(engine, replace(JUDGEMENTS, qrels=qrels), modes=["dense"])
    assert item.metrics["recall@100"] == 0.5


def test_judgements_of_another_corpus_are_refused(engine: SearchEngine, tmp_path: Path, embedder: Embedder) -> None:
    with pytest.raises(ValueError, match="none of the 2 judged documents is in the index; judgements and index are of"):
        evaluate(engine, replace(JUDGEMENTS, qrels={"q1": {"doc-1": 1, "doc-2": 1}}))
    with (
        SearchEngine.create(tmp_path / "empty", model=embedder) as empty,
        pytest.raises(ValueError, match="none of the 6 judged documents is in the index"),
    ):
        evaluate(empty, JUDGEMENTS)


def test_queries_of_another_set_are_refused(engine: SearchEngine) -> None:
    with pytest.raises(ValueError, match="none of the queries has a judgement"):
        evaluate(engine, replace(JUDGEMENTS, queries=[Query("x", "tea")]))


@pytest.mark.parametrize("modes", [["sparse"], ["dense", "bm25"], []])
def test_unknown_modes_are_refused_before_any_search(engine: SearchEngine, modes: list[str]) -> None:
    with pytest.raises(
        ValueError, match=r"modes are (sparse|bm25|none); expected some of dense, lexical, hybrid, rank-"
    ):
        evaluate(engine, JUDGEMENTS, modes=modes, on_mode=lambda mode: pytest.fail("it searched"))


def test_rank_bm25_equals_the_library_over_the_same_words(engine: SearchEngine) -> None:
    from rank_bm25 import BM25Okapi

    analyze = Analyzer("english").analyze
    oracle = BM25Okapi([analyze(text) for text in TEXTS])
    (item,) = evaluate(engine, JUDGEMENTS, modes=["rank-bm25"])
    for query in QUERIES:
        scores = oracle.get_scores(analyze(query.text))
        expected = {str(n): score for n, score in enumerate(scores) if score > 0}
        assert item.run[query.id] == pytest.approx(expected)
    assert item.bytes_per_document is None


def test_bytes_a_document_are_those_on_the_disk(engine: SearchEngine) -> None:
    sizes = {item.mode: item.bytes_per_document for item in evaluate(engine, JUDGEMENTS)}
    on_disk = sum(file.stat().st_size for file in engine.store.folder.glob("segments/*/*"))
    assert sizes["dense"] == pytest.approx(on_disk / 30)
    assert sizes["dense"] > 4 * 64  # the vector itself
    assert sizes["hybrid"] == sizes["dense"] + sizes["lexical"]  # type: ignore[operator]


# Files


def test_a_run_file_read_by_trec_eval_gives_the_reported_metrics(tmp_path: Path) -> None:
    run, qrels = random_case(7)
    for found in run.values():  # and scores that six decimals would not distinguish
        found.update({f"close{n}": 0.5 + n * 1e-7 for n in range(5)})
    qrels["q3"]["close4"] = 2
    per_query = score_queries(run, qrels)
    write_run(tmp_path / "runs" / "dense.trec", Evaluation("dense", means(per_query), per_query, run, 0.0, None))
    with (tmp_path / "runs" / "dense.trec").open() as file:
        again = pytrec_eval.parse_run(file)
    assert score_queries(again, qrels) == per_query
    assert score_queries(read_run(tmp_path / "runs" / "dense.trec"), qrels) == per_query


def test_a_run_file_has_trec_s_six_columns_best_first(engine: SearchEngine, tmp_path: Path) -> None:
    (item,) = evaluate(engine, JUDGEMENTS, modes=["lexical"])
    write_run(tmp_path / "lexical.trec", item)
    lines = [line.split() for line in (tmp_path / "lexical.trec").read_text().splitlines()]
    assert {(len(line), line[1], line[5]) for line in lines} == {(6, "Q0", "searchkit-lexical")}
    first = [line for line in lines if line[0] == "q1"]
    assert [int(line[3]) for line in first] == list(range(1, len(first) + 1))
    assert np.all(np.diff([float(line[4]) for line in first]) <= 0)


def test_an_id_with_white_space_is_refused_in_a_run_file(tmp_path: Path) -> None:
    item = Evaluation("dense", {}, {}, {"q": {"a b.txt": 1.0}}, 0.0, None)
    with pytest.raises(ValueError, match=r"id 'a b\.txt' has white space, which a TREC run file cannot hold"):
        write_run(tmp_path / "dense.trec", item)


def test_a_report_holds_all_that_was_measured(engine: SearchEngine, tmp_path: Path) -> None:
    evaluations = evaluate(engine, JUDGEMENTS, modes=["dense", "rank-bm25"])
    write_report(tmp_path / "new" / "report.json", evaluations, {"index": "notes.index", "of": "Ö"})
    report = json.loads((tmp_path / "new" / "report.json").read_text("utf-8"))
    assert (report["index"], report["of"]) == ("notes.index", "Ö")
    assert list(report["modes"]) == ["dense", "rank-bm25"]
    dense = report["modes"]["dense"]
    assert {name: dense[name] for name in evaluations[0].metrics} == evaluations[0].metrics
    assert {name: dense[f"per_query_{name}"] for name in evaluations[0].metrics} == evaluations[0].per_query
    assert dense["top10"]["q1"][:2] == sorted(evaluations[0].run["q1"], key=evaluations[0].run["q1"].get)[:-3:-1]
    assert report["modes"]["rank-bm25"]["bytes_per_document"] is None
