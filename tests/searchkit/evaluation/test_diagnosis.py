"""Where an index loses: against trec_eval, scipy and counting by hand."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import commands
import numpy as np
import pytest
import pytrec_eval
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.evaluation.diagnosis import (
    Group,
    Grouping,
    Interval,
    RecallCurve,
    bins,
    count_words,
    diagnose,
    judged_at,
)
from searchkit.evaluation.evaluate import evaluate
from searchkit.models.embedder import Embedder
from searchkit.records import Document, Judgements, Qrels, Query, Run
from searchkit.reports.diagnosis_plot import groups_figure

QUERIES = [Query("q1", "yeast and bread"), Query("q2", "the sun"), Query("q3", "xylophone " * 40), Query("q4", "oboe")]
QRELS: Qrels = {"q1": {"1": 2, "11": 1, "0": 0}, "q2": {"2": 1, "9": 1}, "q3": {"4": 1, "gone": 1}, "q4": {"4": 0}}
JUDGEMENTS = Judgements("notes", QUERIES, QRELS)
LONG = {"1", "2", "9"}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, mistral: Path) -> Path:
    """Whole documents for a model of 48 tokens, three of which are longer."""
    place = tmp_path_factory.mktemp("diagnosis") / "notes.index"
    model = Embedder(mistral, device="cpu", dtype="float32", max_length=48)
    with SearchEngine.create(place, model=model, chunk_tokens=0) as engine:
        engine.add(Document(str(n), text * (9 if str(n) in LONG else 1)) for n, text in enumerate(TEXTS))
    return place


@pytest.fixture(scope="module")
def engine(index: Path) -> Iterator[SearchEngine]:
    with SearchEngine.open(index, device="cpu", dtype="float32") as opened:
        yield opened


def random_case(seed: int) -> tuple[Run, Qrels]:
    """A run with ties and gaps, and judgements of more and of fewer queries and documents."""
    pick = random.Random(seed)
    names = [f"d{n}" for n in range(80)]
    run = {
        f"q{q}": {name: float(pick.choice([0, 1, 2, 2, 3, -1])) for name in pick.sample(names, pick.randint(0, 70))}
        for q in range(12)
    }
    qrels = {f"q{q}": {name: pick.choice([-1, 0, 1, 2]) for name in pick.sample(names, 20)} for q in range(3, 14)}
    return run, qrels


@pytest.mark.parametrize("seed", range(10))
def test_the_recall_curve_is_trec_eval_s_recall_at_every_rank(seed: int) -> None:
    run, qrels = random_case(seed)
    curve = RecallCurve(qrels, 60)
    for part in itertools.batched(run.items(), 5) if hasattr(itertools, "batched") else [tuple(run.items())]:
        curve.add(dict(part))
    measures = {f"recall_{k}" for k in range(1, 61)}
    found = pytrec_eval.RelevanceEvaluator(qrels, {"recall." + ",".join(map(str, range(1, 61)))}).evaluate(run)
    assert all(measures <= values.keys() for values in found.values())
    expected = [sum(values[f"recall_{k}"] for values in found.values()) / len(qrels) for k in range(1, 61)]
    assert curve.values() == pytest.approx(expected)
    for query, rank in curve.first.items():
        recalls = [found.get(query, {}).get(f"recall_{k}", 0) for k in range(1, 61)]
        assert rank == next((k for k, recall in enumerate(recalls, 1) if recall > 0), None)


def test_queries_without_relevant_documents_have_no_first_rank() -> None:
    curve = RecallCurve({"a": {"x": 0}, "b": {"x": 1}, "c": {"y": 1}}, 5)
    curve.add({"a": {"x": 1.0}, "b": {"z": 2.0, "x": 1.0}})
    assert curve.first == {"b": 2, "c": None}
    assert curve.values() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 1 / 3])


def test_judged_at_ten_is_the_judged_share_of_the_top_ten() -> None:
    run = {"a": {f"d{n}": -float(n) for n in range(20)}, "b": {"d1": 1.0, "d2": 0.5}, "c": {}, "unasked": {"d1": 1.0}}
    qrels = {"a": {"d0": 1, "d3": 0, "d4": -1, "d15": 2}, "b": {"d2": 1}, "c": {"d1": 1}}
    assert judged_at(run, qrels, 10) == pytest.approx((0.3 + 0.5) / 2)
    assert np.isnan(judged_at({"c": {}}, qrels, 10))


@pytest.mark.parametrize("seed", range(20))
def test_bins_hold_every_length_once_and_about_as_many_each(seed: int) -> None:
    pick = random.Random(seed)
    lengths = [pick.randint(1, pick.choice([1, 3, 30])) for _ in range(pick.choice([1, 19, 41, 400]))]
    found = bins(lengths)
    assert all(sum(low <= length <= high for low, high in found) == 1 for length in lengths)
    assert [low for low, _ in found[1:]] == [high + 1 for _, high in found[:-1]]
    assert all(any(low <= length <= high for length in lengths) for low, high in found)
    assert len(found) <= max(1, min(5, len(lengths) // 20))
    most = max(map(lengths.count, lengths))  # equal lengths stay together
    assert all(
        sum(low <= length <= high for length in lengths) <= len(lengths) / max(1, min(5, len(lengths) // 20)) + most
        for low, high in found
    )


def test_characters_count_as_words_in_scripts_without_spaces() -> None:
    assert [count_words(text) for text in ("", "does vitamin-D help?", "\u9762\u5305\u4e3a\u4ec0\u4e48 rise")] == [
        0,
        4,
        6,
    ]


def test_intervals_are_student_s() -> None:
    from scipy.stats import ttest_1samp

    values = {f"q{n}": value for n, value in enumerate(np.random.default_rng(0).random(30))}
    score = Grouping({"dense": values}).means(list(values))["dense"]
    oracle = ttest_1samp(list(values.values()), 0).confidence_interval(0.95)
    assert (score.low, score.high) == pytest.approx((oracle.low, oracle.high))
    assert score.mean == pytest.approx(np.mean(list(values.values())))
    few = Grouping({"dense": {"a": 0.0, "b": 1.0}}).means(["a", "b"])["dense"]
    assert (few.low, few.high) == (0, 1)  # as far as the metric goes
    (alone,) = Grouping({"dense": values}).of([("one", ["q3"]), ("nobody", [])])
    assert alone.scores["dense"].summary() == {"mean": values["q3"], "low": None, "high": None}


def test_tokens_that_the_model_does_not_read_are_counted(engine: SearchEngine) -> None:
    evaluations = evaluate(engine, JUDGEMENTS, modes=["lexical"])
    found = diagnose(engine, JUDGEMENTS, evaluations)
    tokenizer = engine.embedder.runtime.tokenizer
    counts = {document.id: len(tokenizer.encode(document.text.strip()).ids) for document in engine.documents()}
    long = {id for id, count in counts.items() if count > 48}
    assert long >= LONG
    lengths = found.documents
    assert (lengths.texts, lengths.longer, lengths.longest) == (30, len(long), max(counts.values()))
    assert found.documents.beyond == sum(counts[id] - 48 for id in long)
    assert found.documents.tokens == sum(counts.values())
    assert {group.name: group.queries for group in found.by_query} == {"read whole": ("q1", "q2", "q4"), "cut": ("q3",)}
    groups = {group.name: set(group.queries) for group in found.by_document}
    assert groups == {"none cut": {"q3"}, "some cut": {"q1"}, "all cut": {"q2"}}  # q4 has no relevant document
    ndcg = evaluations[0].per_query["ndcg@10"]
    assert found.by_document[1].scores["lexical"].mean == ndcg["q1"]


def test_counting_tokens_truncates_nothing(engine: SearchEngine) -> None:
    before = engine.embedder.stats.truncated
    texts = [TEXTS[0] * 9, TEXTS[0]]
    counts = engine.embedder.passage_tokens(texts)
    assert engine.embedder.stats.truncated == before
    assert [min(48, count) for count in counts] == [len(ids) for ids in engine.embedder.tokenize(texts)]
    plain, asked = (engine.embedder.query_tokens(["oboe"], said)[0] for said in ("", "Find the oboe"))
    assert plain < asked


def test_documents_in_several_passages_are_split_and_not_cut(tmp_path: Path, embedder: Embedder) -> None:
    with SearchEngine.create(tmp_path / "x", model=embedder, chunk_tokens=24) as engine:
        engine.add(Document(str(n), text * (9 if str(n) in LONG else 1)) for n, text in enumerate(TEXTS))
        found = diagnose(engine, JUDGEMENTS, evaluate(engine, JUDGEMENTS, modes=["lexical"]))
        assert not found.cut
        assert found.documents.room == 24 + embedder.special_tokens
        passages = engine.store.snapshot().passages
    assert 0 < found.documents.longer <= passages - 30
    assert any(group.name == "some split" for group in found.by_document)


def test_the_deep_search_drops_a_query_s_own_document(engine: SearchEngine) -> None:
    queries, qrels = [Query("1", TEXTS[1])], {"1": {"1": 1, "11": 1}}
    for drop, first in ((False, 1), (True, None)):
        judgements = Judgements("notes", queries, qrels, drop_self=drop)
        found = diagnose(engine, judgements, evaluate(engine, judgements, modes=["lexical"]))
        assert len(found.recall["lexical"]) == 30
        assert found.recall["lexical"][-1] == (0.5 if drop else 1)
        assert (found.first["lexical"]["1"] == first) is not drop


# The command


@pytest.fixture
def judged(tmp_path: Path) -> tuple[object, ...]:
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"_id": q.id, "text": q.text}) + "\n" for q in QUERIES))
    rows = [f"{query}\t{document}\t{gain}\n" for query, gains in QRELS.items() for document, gain in gains.items()]
    (tmp_path / "notes.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    return ("--queries", tmp_path / "q.jsonl", "--qrels", tmp_path / "notes.tsv", "--device", "cpu")


call = partial(commands.call, "evaluate", env={"COLUMNS": "120"})


def test_a_diagnosis_is_printed_written_and_drawn(index: Path, judged: tuple[object, ...], tmp_path: Path) -> None:
    rows = [
        {"query": "Yeast  and bread", "positive": "Made of flour."},
        {"query": "what is tuned to", "positive": TEXTS[4]},
        {"query": "nothing of this", "positive": "Nothing at all."},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--modes", "dense,lexical", "--diagnose", tmp_path / "why", "--pairs", tmp_path / "pairs.jsonl")
    shown = call(index, *judged, *options).stdout
    assert "documents: 3 of 30 are longer than 48 tokens" in shown
    assert "judged documents that are not in the index: 1" in shown
    assert "test queries in the training pairs: 1;" in shown
    report = json.loads((tmp_path / "why" / "diagnosis.json").read_text())
    assert len(report["recall"]["dense"]) == 30
    assert report["recall"]["dense"][-1] == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert report["judgements"] == {
        "queries": 4, "relevant": 6, "not_relevant": 2, "unknown": 1, "queries_without_relevant": 1
    }  # fmt: skip
    (pairs,) = report["pairs"]
    assert (pairs["with_a_test_query"], pairs["with_an_indexed_document"], pairs["shared_queries"]) == (0, 1, ["q1"])
    assert pairs["low_entropy"] == 1  # three words
    names = {f"{name}{ending}.{kind}" for name in ("recall", "words", "documents") for ending in ("", "-dark")
             for kind in ("png", "svg")}  # fmt: skip
    assert {file.name for file in (tmp_path / "why").iterdir()} == names | {"diagnosis.json"}


def test_a_diagnosis_does_not_change_the_metrics(index: Path, judged: tuple[object, ...], tmp_path: Path) -> None:
    def metrics(*options: object) -> object:
        found = json.loads(call(index, *judged, "--format", "json", *options).stdout)
        return {mode: {name: value for name, value in row.items() if "@" in name} for mode, row in found.items()}

    assert metrics("--diagnose", tmp_path / "why") == metrics()


def test_options_without_effect_are_refused(index: Path, judged: tuple[object, ...], tmp_path: Path) -> None:
    assert "--pairs needs --diagnose FOLDER" in call(index, *judged, "--pairs", tmp_path / "q.jsonl", code=2).stderr


def test_pairs_that_cannot_be_read_are_named(index: Path, judged: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"question": "x"}\n')
    options = ("--modes", "lexical", "--diagnose", tmp_path / "why", "--pairs", tmp_path / "pairs.jsonl")
    assert "pairs.jsonl" in call(index, *judged, *options, code=1).stderr


# The charts


@pytest.mark.parametrize("dark", [False, True])
def test_texts_of_a_group_chart_do_not_overlap_or_leave_it(dark: bool) -> None:
    modes = ("dense", "lexical", "hybrid", "rank-bm25")
    scores = {mode: Interval(0.5 + 0.1 * n, 0.4 + 0.1 * n, 0.6 + 0.1 * n) for n, mode in enumerate(modes)}
    groups = [Group(f"{n}0 to {n}9", tuple(map(str, range(1234))), scores) for n in range(1, 6)]
    figure = groups_figure(groups, title="A set: quality by length", x_label="words of the query", dark=dark)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    (legend,) = figure.legends
    texts = [*figure.texts, *legend.get_texts(), axes.xaxis.label, axes._left_title, *axes.get_xticklabels()]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert len(boxes) == 1 + 4 + 1 + 1 + 5
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    assert not any(box.overlaps(axes.get_window_extent()) for box in boxes)
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1


def test_a_group_of_one_query_has_a_mark_and_no_interval() -> None:
    group = Group("5", ("q",), {"dense": Interval(0.5, float("nan"), float("nan"))})
    figure = groups_figure([group], title="t", x_label="words")
    figure.draw_without_rendering()
    assert "5\n1 query" in [label.get_text() for label in figure.axes[0].get_xticklabels()]
    with pytest.raises(ValueError, match="there is no group of queries"):
        groups_figure([], title="t", x_label="words")
