"""Latency, indexing speed and size of an index."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from texts import TEXTS

from searchkit.cli.latency import _print_results
from searchkit.cli.main import main
from searchkit.engine import SearchEngine
from searchkit.evaluation.latency import (
    Times,
    bytes_per_document,
    made_queries,
    time_indexing,
    time_load,
    time_searches,
    time_starts,
)
from searchkit.ranking import SearchOptions
from searchkit.records import Document, Query

WORDS = SearchOptions(mode="lexical")
QUERIES = [Query("1", "the sun"), Query("2", "yeast")]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("latency") / "notes.index"
    with SearchEngine.create(place) as engine:
        engine.add(Document(str(n), text) for n, text in enumerate(TEXTS))
        engine.delete(["3"])
    return place


@pytest.fixture(scope="module")
def engine(index: Path) -> Iterator[SearchEngine]:
    with SearchEngine.open(index) as opened:
        yield opened


def test_percentiles_are_observed_times_and_need_enough_of_them() -> None:
    seconds = np.random.default_rng(0).random(400)
    times = Times(tuple(seconds))
    ordered = np.sort(seconds)
    assert times.percentile(0.5) == ordered[199]
    assert times.percentile(0.95) == ordered[379]
    assert times.percentile(0.99) == ordered[395]
    few = Times(tuple(seconds[:99])).summary()
    assert few["p99"] is None
    assert few["p95"] == np.sort(seconds[:99])[94]
    assert (few["n"], few["least"], few["most"]) == (99, min(seconds[:99]), max(seconds[:99]))
    assert Times((3.0, 1.0, 2.0)).summary()["p50"] == 2


def test_a_search_is_its_embedding_and_the_rest(engine: SearchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = engine.embed

    def slow(*arguments: object) -> np.ndarray:
        time.sleep(0.02)
        return embed(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "embed", slow)
    found = time_searches(engine, QUERIES, seconds=0)
    assert found.embedding is not None
    parts = np.array(found.embedding.seconds) + np.array(found.rest.seconds)
    np.testing.assert_allclose(found.whole.seconds, parts, atol=1e-9)
    assert min(found.embedding.seconds) >= 0.02
    assert sum(found.rest.seconds) < sum(found.embedding.seconds)
    assert len(found.whole.seconds) == 30
    assert time_searches(engine, QUERIES, seconds=0, options=WORDS).embedding is None


def test_given_vectors_are_used_for_the_search(engine: SearchEngine) -> None:
    texts = [query.text for query in QUERIES]
    vectors = engine.embed(QUERIES)
    assert engine.search_many(texts, vectors=vectors) == engine.search_many(texts)
    swapped = engine.search_many(texts, vectors=vectors[::-1], options=SearchOptions(mode="dense"))
    assert swapped == engine.search_many(texts[::-1], options=SearchOptions(mode="dense"))
    with pytest.raises(ValueError, match=r"vectors are \(1, 384\); expected \(2, 384\), a row a query"):
        engine.search_many(texts, vectors=vectors[:1])


def test_concurrent_searches_overlap(engine: SearchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    search = engine.search_many

    def slow(*arguments: object, **options: object) -> object:
        time.sleep(0.03)
        return search(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "search_many", slow)
    found = time_load(engine, QUERIES, 6, seconds=0.3, options=WORDS)
    assert found.threads == 6
    assert len(found.times.seconds) >= 30
    assert min(found.times.seconds) >= 0.03
    assert found.per_second * np.mean(found.times.seconds) > 3  # in flight at a time, by Little's law; at most six


def test_an_error_in_one_thread_stops_the_others(engine: SearchEngine) -> None:
    with pytest.raises(ValueError, match="a query is empty"):
        time_load(engine, [*QUERIES, Query("3", " ")], 3, seconds=0, options=WORDS)


def test_new_processes_are_timed_from_start_to_end_with_their_own_memory(index: Path) -> None:
    held = np.ones(100_000_000, dtype=np.uint8)  # memory of this process, which must not show in another's peak
    began = time.perf_counter()
    found = time_starts(index, "-the sun", ["--mode", "lexical"], seconds=0)
    passed = time.perf_counter() - began
    assert len(found.times.seconds) == 3
    assert 0.05 < sum(found.times.seconds) < passed
    assert 2**24 < found.peak_bytes < 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del held
    with pytest.raises(ValueError, match=r"(?s)a search in a new process failed: .*nowhere"):
        time_starts(index.parent / "nowhere", "the sun", seconds=0)


def test_indexing_uses_the_index_s_own_documents_and_leaves_no_files(index: Path, engine: SearchEngine) -> None:
    before = engine.embedder.stats.texts
    found = time_indexing(engine, seconds=0)
    assert found is not None
    assert found.documents == 16
    assert len(found.per_second) == 3
    assert engine.embedder.stats.texts - before == 4 * 16  # three rounds, after one that shows how fast it is
    assert [file.name for file in index.parent.iterdir()] == ["notes.index"]


def test_queries_are_made_of_living_documents(engine: SearchEngine) -> None:
    made = made_queries(engine)
    assert len(made) == 29
    texts = [document.text for document in engine.documents()]
    assert all(any(query.text in text for text in texts) for query in made)


def test_bytes_are_those_on_the_disk(index: Path, engine: SearchEngine) -> None:
    sizes = bytes_per_document(engine)
    assert sizes["all"] == pytest.approx(sizes["documents"] + sizes["vectors"] + sizes["words"])
    vectors = sum(file.stat().st_size for file in index.glob("segments/*/*"))
    assert sizes["vectors"] == pytest.approx(vectors / 29)


def test_the_command_measures_everything(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["latency", str(index), "--mode", "dense", "--seconds", "0", "--concurrency", "3", "--format", "json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["documents"], found["mode"], found["queries"]) == (29, "dense", 29)
    assert found["cold_start"]["n"] == 3
    assert found["cold_start"]["p50"] > found["alone"]["p50"] > found["without_embedding"]["p50"] > 0
    assert found["at_once"]["threads"] == 3
    _print_results(found)
    shown = capsys.readouterr().out
    words = ("in a new process", "embedding the query", "3 at once", "per document", "indexing:")
    assert all(word in shown for word in words)


def test_an_empty_index_is_refused(tmp_path: Path) -> None:
    SearchEngine.create(tmp_path / "x").close()
    result = CliRunner().invoke(main, ["latency", str(tmp_path / "x")])
    assert result.exit_code == 1
    assert "holds no documents, so there is nothing to search" in result.stderr
