"""Comparing ways to search an index: modes, instructions, widths; charts and the page."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from texts import TEXTS

from searchkit.cli.main import main
from searchkit.engine import SearchEngine
from searchkit.evaluation import exact
from searchkit.evaluation.comparison import System, compare
from searchkit.evaluation.evaluate import evaluate
from searchkit.evaluation.exact import search_exactly, unit
from searchkit.evaluation.sweep import Variants, sweep
from searchkit.metrics import score_queries
from searchkit.models.embedder import Embedder
from searchkit.records import Document, Judgements, Qrels, Query
from searchkit.reports.comparison_page import content, html

QUERIES = [Query("q1", "yeast and bread"), Query("q2", "the sun"), Query("q3", "xylophone", "Find the opposite")]
QRELS: Qrels = {"q1": {"1": 2, "11": 1}, "q2": {"2": 1, "9": 1, "0": 0}, "q3": {"4": 1}}
JUDGEMENTS = Judgements("notes", QUERIES, QRELS)
LONG = " ".join(TEXTS)  # several passages


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Path:
    """An index with documents of several passages, one of them deleted, and judgements beside it."""
    place = tmp_path_factory.mktemp("sweep")
    with SearchEngine.create(place / "notes.index", model=embedder, chunk_tokens=64, overlap=8) as engine:
        engine.add(Document(str(n), text) for n, text in enumerate(TEXTS))
        engine.add([Document("long", LONG), Document("gone", LONG + " Gone.")])
        engine.delete(["gone"])
    rows = [{"_id": query.id, "text": query.text, "instruction": query.instruction} for query in QUERIES]
    (place / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)))
    judged = [f"{query} 0 {document} {gain}" for query, found in QRELS.items() for document, gain in found.items()]
    (place / "qrels.tsv").write_text("\n".join(judged) + "\n")
    return place


@pytest.fixture(scope="module")
def engine(folder: Path, embedder: Embedder) -> Iterator[SearchEngine]:
    with SearchEngine.open(folder / "notes.index", model=embedder) as opened:
        yield opened


def ask(folder: Path, *arguments: str) -> Result:
    judged = ("--queries", str(folder / "queries.jsonl"), "--qrels", str(folder / "qrels.tsv"))
    return CliRunner().invoke(main, ["compare", str(folder / "notes.index"), *judged, *arguments])


@pytest.mark.parametrize("block", [1, 7, 8192])
@pytest.mark.parametrize("dim", [1, 16, 64])
def test_exact_search_equals_brute_force_by_best_passage(
    engine: SearchEngine, monkeypatch: pytest.MonkeyPatch, dim: int, block: int
) -> None:
    monkeypatch.setattr(exact, "_BLOCK", block)
    snapshot = engine.store.snapshot()
    queries = unit(engine.embed(QUERIES)[:, :dim])
    docs, scores, _ = search_exactly(snapshot.segments, snapshot.dead, queries, 5)
    best: list[dict[str, float]] = [{} for _ in QUERIES]
    for part in snapshot.segments:
        vectors = part.vectors(np.arange(part.count))[:, :dim]
        rows = np.arange(part.count) + part.first_row if part.rows is None else part.rows
        for doc, row, vector in zip(part.docs.tolist(), rows.tolist(), vectors, strict=True):
            if row not in snapshot.dead.tolist():
                for found, query in zip(best, queries, strict=True):
                    cosine = float(query @ vector / np.linalg.norm(vector))
                    found[doc] = max(found.get(doc, -2), cosine)
    for found, mine, values in zip(best, docs, scores, strict=True):
        assert len(found) == 31
        np.testing.assert_allclose(values, sorted(found.values(), reverse=True)[:5], atol=1e-5)
        np.testing.assert_allclose(values, [found[doc] for doc in mine.tolist()], atol=1e-5)


def test_the_full_width_is_dense_search(engine: SearchEngine) -> None:
    (full,) = sweep(engine, JUDGEMENTS, Variants([], dims=[64]))
    (dense,) = evaluate(engine, JUDGEMENTS, modes=["dense"])
    assert full.name == "dense 64"
    assert full.per_query == dense.per_query
    assert full.bytes_per_document == pytest.approx(4 * 64 * engine.store.snapshot().passages / 31)


def test_fewer_dimensions_take_fewer_bytes_and_give_other_answers(engine: SearchEngine) -> None:
    wide, narrow = sweep(engine, JUDGEMENTS, Variants([], dims=[64, 4]))
    assert narrow.bytes_per_document == wide.bytes_per_document / 16  # type: ignore[operator]
    assert narrow.top != wide.top


def test_each_instruction_is_what_evaluate_measures_with_it(engine: SearchEngine) -> None:
    plain = replace(JUDGEMENTS, queries=[Query(query.id, query.text) for query in QUERIES])
    labels = {"A": "", "B": "Find notes on baking"}
    variants = Variants(["dense", "lexical"], labels)
    found = sweep(engine, JUDGEMENTS, variants)
    # Lexical search ignores instructions.
    assert [one.name for one in found] == ["dense A", "lexical", "dense B"] == variants.names()
    for one, instruction in zip((found[0], found[2]), labels.values(), strict=True):
        (expected,) = evaluate(engine, replace(plain, instruction=instruction), modes=["dense"])
        assert one.per_query == expected.per_query
    assert found[0].top != found[2].top


def test_without_a_sweep_the_queries_keep_their_own_instruction(engine: SearchEngine) -> None:
    judgements = replace(JUDGEMENTS, instruction="Find notes")
    (mine,) = sweep(engine, judgements, Variants(["dense"]))
    (expected,) = evaluate(engine, judgements, modes=["dense"])
    assert mine.per_query == expected.per_query == score_queries(expected.run, QRELS)


def test_recipes_are_searched_in_copies_and_lose_what_compress_says(engine: SearchEngine, folder: Path) -> None:
    before = {file: file.read_bytes() for file in (folder / "notes.index" / "segments").rglob("*") if file.is_file()}
    names = ["flat", "fp16", "int8"]
    variants = Variants(["lexical", "hybrid"], recipes=names)
    systems = sweep(engine, JUDGEMENTS, variants)
    expected = ["lexical", "hybrid", *(f"hybrid {name}" for name in names)]
    assert [system.name for system in systems] == expected == variants.names()
    exact, flat, half, bytes_ = systems[1:]
    assert (flat.top, flat.per_query) == (exact.top, exact.per_query)
    sizes = [system.bytes_per_document or 0.0 for system in (flat, half, bytes_)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1.2 * sizes[1] > 1.2 * sizes[2]
    assert {query: top[0] for query, top in bytes_.top.items()} == {query: top[0] for query, top in flat.top.items()}
    assert {file: file.read_bytes() for file in before} == before


def test_an_unknown_or_unfit_recipe_is_refused(engine: SearchEngine) -> None:
    asked: list[str] = []
    with pytest.raises(ValueError, match="int9"):
        sweep(engine, JUDGEMENTS, Variants(["lexical"], recipes=["int8", "int9"]), on_system=asked.append)
    assert not asked
    with pytest.raises(ValueError, match="pq:8 does not fit this index: it trains on"):
        sweep(engine, JUDGEMENTS, Variants([], recipes=["pq:8"]))


@pytest.mark.parametrize("dims", [[0], [65], [32, 100]])
def test_impossible_widths_are_refused(engine: SearchEngine, dims: list[int]) -> None:
    with pytest.raises(ValueError, match=r"the index's vectors are 64 wide, so 1 to 64"):
        sweep(engine, JUDGEMENTS, Variants(dims=dims))


def test_the_command_sweeps_tests_draws_and_writes_a_page(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the plots extra")
    outputs = ["--plot", str(tmp_path / "new" / "costs.png"), "--html", str(tmp_path / "page" / "report.html")]
    result = ask(folder, "--modes", "dense,lexical", "--dims", "16", *outputs, "--format", "json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert list(found["systems"]) == ["dense", "lexical", "dense 16"]
    names = {file.name for file in (tmp_path / "new").iterdir()}
    assert names == {"costs.png", "costs.svg", "costs-dark.png", "costs-dark.svg"}
    page = (tmp_path / "page" / "report.html").read_text("utf-8")
    for name, values in found["systems"].items():
        assert f"<td>{name}</td>" in page
        assert f"{values['ndcg@10']:.4f}" in page
    assert page.count("data:image/svg+xml;base64,") == 2
    assert not re.search(r"""(src|href|srcset)=["'](?!data:)""", page)  # nothing that needs a network
    shown = found["changes"]["lexical"][0]["documents_before"][0]
    assert TEXTS[int(shown["id"])] == shown["text"] if shown["id"] != "long" else LONG.startswith(shown["text"])


def test_instructions_are_labelled_and_explained(folder: Path) -> None:
    result = ask(folder, "--modes", "dense", "--instruction", "", "--instruction", "Find notes on [baking]")
    assert result.exit_code == 0, result.output
    assert "against dense A" in result.stdout
    assert "B: Find notes on [baking]" in result.stderr
    assert "A: no instruction" in result.stderr


def test_two_indexes_are_distinguished_by_name(folder: Path) -> None:
    result = ask(folder, f"again={folder / 'notes.index'}", "--modes", "lexical", "--format", "json")
    found = json.loads(result.stdout)
    assert list(found["systems"]) == ["notes: lexical", "again: lexical"]
    assert {one["difference"] for one in found["differences"]} == {0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dims", "a"], "'a' is not a list of whole numbers such as 384,128,64"),
        (["--instruction", "x"] * 27, "give at most 26"),
    ],
)
def test_misuse_is_reported_plainly(folder: Path, arguments: list[str], message: str) -> None:
    result = ask(folder, *arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.output


def test_an_option_for_indexes_is_refused_without_one(tmp_path: Path) -> None:
    (tmp_path / "run.trec").write_text("q Q0 d 1 1 x\n")
    result = CliRunner().invoke(main, ["compare", str(tmp_path / "run.trec"), "--dims", "16"])
    assert (result.exit_code, "--dims is for an index" in result.stderr) == (2, True)


# Pictures


def many(count: int) -> list[System]:
    values = [{"ndcg@10": {"q": 0.3 + 0.01 * n}} for n in range(count)]
    return [System(f"system <{n}>", one, {}, 0.001 * (n + 1), 100.0 * (n + 1)) for n, one in enumerate(values)]


@pytest.mark.parametrize("dark", [False, True])
def test_a_chart_names_every_system_once_and_nothing_overlaps(dark: bool) -> None:
    pytest.importorskip("matplotlib", reason="needs the plots extra")
    from searchkit.reports.comparison_plot import figure_of

    figure = figure_of(many(12), "ndcg@10", title="nDCG@10 and what it costs", dark=dark)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"system <{n}>" for n in range(12)]
    axes = figure.get_axes()
    assert len(axes) == 2
    boxes = [one.get_tightbbox() for one in axes] + [legend.get_window_extent()]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width + 1 for box in boxes)
    marks = [(line.get_marker(), line.get_color()) for line in axes[0].get_lines()]
    assert len(set(marks)) == 12


def test_a_chart_without_costs_is_refused() -> None:
    pytest.importorskip("matplotlib", reason="needs the plots extra")
    from searchkit.reports.comparison_plot import figure_of

    with pytest.raises(ValueError, match="no system has a known time or size"):
        figure_of([System("a", {"ndcg@10": {"q": 1.0}}, {})], "ndcg@10", title="x")


def test_a_page_escapes_its_texts() -> None:
    systems = [System(f"<{n}>", {"ndcg@10": {"q": float(n)}}, {"q": [f"<id{n}>"]}, None, None) for n in range(2)]
    document = Document("<id1>", "<script>alert(1)</script>", "<b>")
    found = content(
        compare(systems, metrics=["ndcg@10"]), queries={"q": Query("q", "a < b")}, documents={"<id1>": document}
    )
    page = html(found, title="<Title>")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a &lt; b" in page
