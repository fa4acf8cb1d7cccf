from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clouds import one_thread
from commands import call

from searchkit.compression import measure as compress
from searchkit.compression.choice import Limits, choose, front
from searchkit.compression.measure import Candidate, MeasureOptions, default_recipes, estimate_seconds, measure
from searchkit.engine import SearchEngine
from searchkit.indexer.documents import NewDocument
from searchkit.indexer.vectors.recipes import Tuning
from searchkit.models.embedder import Embedder
from searchkit.ranking import SearchOptions, SearchRequest
from searchkit.records import Judgements, Query

__all__ = ["one_thread"]  # a fixture

DIM, COUNT = 64, 1500
TEXTS = ["tea is heated", "bread and yeast", "comets and the sun"]


def clustered(count: int, seed: int = 0) -> np.ndarray:
    """(count, DIM) float32 unit rows around forty centres, as embeddings lie."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, DIM))
    rows = centres[rng.integers(0, 40, count)] + 1.3 * rng.standard_normal((count, DIM))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def fill(engine: SearchEngine, rows: np.ndarray, first: int = 0) -> None:
    documents = [
        NewDocument(str(first + n), "", TEXTS[n % 3], "{}", "", [(0, len(TEXTS[n % 3]))]) for n in range(len(rows))
    ]
    engine.store.commit(documents, rows)
    engine.reload()


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return clustered(COUNT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder, rows: np.ndarray) -> Path:
    """An index in two segments with one dead document at its end. No test changes it."""
    folder = tmp_path_factory.mktemp("compress") / "rows.index"
    with SearchEngine.create(folder, model=embedder) as engine:
        fill(engine, rows[:1000])
        fill(engine, rows[1000:], 1000)
        fill(engine, rows[:1], COUNT)
        engine.delete([str(COUNT)])
    return folder


@pytest.fixture
def writable(tmp_path: Path, embedder: Embedder, rows: np.ndarray) -> SearchEngine:
    engine = SearchEngine.create(tmp_path / "rows.index", model=embedder)
    fill(engine, rows)
    return engine


@pytest.fixture(scope="module")
def found(folder: Path) -> list[Candidate]:
    names = ["fp16", "int8", "hnsw", "ivf-int8", "rabitq", "rabitq+rerank", "binary", "pq:16", "pq:16+rerank"]
    with SearchEngine.open(folder) as engine:
        return measure(engine, options=MeasureOptions(names))


def named(found: list[Candidate], name: str) -> Candidate:
    return next(one for one in found if one.name == name)


# Measuring


def test_every_recipe_is_measured_with_what_it_costs(found: list[Candidate]) -> None:
    assert [one.name for one in found][:3] == ["flat", "fp16", "int8"]
    assert len(found) == 10
    exact = found[0]
    assert (exact.recall_10, exact.recall_100, exact.bytes_per_vector) == (1, 1, 4 * DIM)
    assert (exact.total, exact.queries) == (COUNT, 150)
    assert exact.sample == COUNT - 150  # passages were held out and deleted ones left out
    assert named(found, "fp16").bytes_per_vector == 2 * DIM
    assert named(found, "fp16").recall_10 > 0.99
    assert named(found, "binary").bytes_per_vector == DIM / 8
    assert round(named(found, "pq:16").bytes_per_vector) == 16 + 8  # the code, and its number in the inverted file
    assert all(one.per_second > 0 and one.per_second_64 > 0 and one.latency > 0 for one in found)
    assert named(found, "pq:16").trained_on == COUNT - 150 < named(found, "pq:16").wanted


def test_re_ranking_brings_recall_up_and_takes_disk(found: list[Candidate]) -> None:
    for name in ("pq:16", "rabitq"):
        codes, again = named(found, name), named(found, f"{name}+rerank")
        assert codes.recall_10 < 0.95 <= again.recall_10
        assert again.disk - codes.disk == COUNT * DIM * 2
        assert again.memory == codes.memory


def test_ivf_lists_and_graphs_are_tuned_to_the_requested_recall(folder: Path) -> None:
    with SearchEngine.open(folder) as engine:
        loose, strict = (measure(engine, options=MeasureOptions(["ivf-int8", "hnsw"], goal)) for goal in (0.5, 0.97))
    for low, high, goal in zip(loose[1:], strict[1:], (0.97, 0.97), strict=True):
        assert low.recall_10 >= 0.5
        assert high.recall_10 >= goal
    assert named(loose, "ivf-int8").tuning.probes < named(strict, "ivf-int8").tuning.probes


def test_recall_is_that_of_brute_force(folder: Path, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = clustered(50, seed=7)
    monkeypatch.setattr(SearchEngine, "embed", lambda self, asked, instruction=None: queries[: len(asked)])
    with SearchEngine.open(folder) as engine:
        judgements = Judgements("", [Query(str(n), "x") for n in range(50)], {})
        one = measure(engine, judgements, options=MeasureOptions(["int8"]))[1]
        # The oracle: FAISS's 8 bits by hand, from the extremes of its training vectors.
        assert (one.queries, one.sample) == (50, COUNT)
        learnt = one.recall_10
    exact = np.argsort(-(queries @ rows.T), axis=1)[:, :10]
    low, high = rows.min(axis=0), rows.max(axis=0)
    coded = low + (np.floor((rows - low) / (high - low) * 255).clip(0, 255) + 0.5) / 255 * (high - low)
    by_hand = np.argsort(-(queries @ coded.T), axis=1)[:, :10]
    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, by_hand, strict=True)])
    assert abs(learnt - expected) < 0.04


def test_equal_vectors_are_as_good_as_each_other(writable: SearchEngine, rows: np.ndarray) -> None:
    with writable as engine:
        fill(engine, np.repeat(rows[:1], 40, axis=0), COUNT)
        assert named(measure(engine, options=MeasureOptions(["fp16"])), "fp16").recall_10 > 0.99


def test_ndcg_equals_that_of_an_index_stored_by_the_recipe(
    writable: SearchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from searchkit.evaluation.evaluate import evaluate

    wanted = clustered(30, seed=5)
    monkeypatch.setattr(
        SearchEngine, "embed", lambda self, asked, instruction=None: wanted[[int(query.id) for query in asked]]
    )
    queries = [Query(str(n), "x") for n in range(30)]
    with writable as engine:
        best = engine.rank(queries, k=3, options=SearchOptions(mode="dense"))
        qrels = {query.id: {str(item.doc): 1 for item in found} for query, found in zip(queries, best, strict=True)}
        measured = measure(engine, Judgements("", queries, qrels), options=MeasureOptions(["pq:8"]))
        assert measured[0].ndcg_10 == 1
        assert measured[0].ndcg_change == 0
        engine.store_as("pq:8", tuning=Tuning())
        (stored,) = evaluate(engine, Judgements("", queries, qrels), modes=["dense"])
        # Both train on all vectors, in different orders.
        assert measured[1].ndcg_10 == pytest.approx(stored.metrics["ndcg@10"], abs=0.03)
        assert measured[1].ndcg_change == pytest.approx(measured[1].ndcg_10 - 1)
        assert stored.metrics["ndcg@10"] < 0.97  # the recipe loses something


def test_figures_of_a_sample_are_scaled_to_the_index(folder: Path) -> None:
    with SearchEngine.open(folder) as engine:
        one = measure(engine, options=MeasureOptions(["fp16"], sample=300))[1]
    assert (one.sample, one.total) == (300, COUNT)
    assert one.latency == pytest.approx(COUNT / 300 / one.per_second)
    assert one.memory == pytest.approx(COUNT * 2 * DIM, rel=0.01)


def test_impossible_measurements_say_why(tmp_path: Path, folder: Path, embedder: Embedder) -> None:
    with SearchEngine.open(folder) as engine:
        with pytest.raises(ValueError, match=r"recipe is 'zip'; expected one of flat"):
            measure(engine, options=MeasureOptions(["zip"]))
        with pytest.raises(ValueError, match="flat holds the vectors themselves; write flat"):
            measure(engine, options=MeasureOptions(["flat+rerank"]))
        with pytest.raises(ValueError, match="at most 1"):
            measure(engine, options=MeasureOptions(recall=95))
        with pytest.raises(ValueError, match="no queries"):
            measure(engine, Judgements("", [], {"1": {"1": 1}}))
        with pytest.raises(ValueError, match="no queries"):
            measure(engine, Judgements("", [], {}))
        with pytest.raises(ValueError, match="different sets"):
            measure(engine, Judgements("", [Query("1", "x")], {"2": {"1": 1}}))
        with pytest.raises(ValueError, match="different corpora"):
            measure(engine, Judgements("", [Query("1", "x")], {"1": {"nowhere": 1}}))
    with SearchEngine.create(tmp_path / "x.index", model=embedder) as engine:
        with pytest.raises(ValueError, match="0 passages; nothing can be measured"):
            measure(engine)
        fill(engine, clustered(60))
        skipped: list[str] = []
        names = [one.name for one in measure(engine, on_skipped=lambda name, why: skipped.append(f"{name}: {why}"))]
        assert {"flat", "int8", "rabitq+rerank", "binary+rerank", "hnsw"} <= set(names)
        assert "pq:8: it trains on 256 vectors or more, there are 54" in skipped


def test_what_trains_slowly_is_measured_on_request_only(folder: Path) -> None:
    assert not [name for dim in (64, 384, 1024) for name in default_recipes(dim) if name.startswith("opq")]
    with SearchEngine.open(folder) as engine:
        briefly, long = (estimate_seconds(engine, options=MeasureOptions([name])) for name in ("pq:8", "opq:8"))
    assert long > 10 * briefly > 0


# Choosing


def made(name: str, **values: Any) -> Candidate:
    numbers: dict[str, Any] = {
        "recipe": name.removesuffix("+rerank"), "tuning": Tuning(), "bytes_per_vector": 100.0, "memory": 1000,
        "disk": 1000, "recall_10": 0.9, "recall_100": 0.9, "ndcg_10": None, "ndcg_change": None, "latency": 0.001,
        "per_second": 1000.0, "per_second_64": 1000.0, "train_seconds": 0.0, "build_seconds": 0.0, "trained_on": 0,
        "wanted": 0, "sample": 10, "total": 10, "queries": 5,
    }  # fmt: skip
    return Candidate(name=name, **{**numbers, **values})


LARGE = made("flat", bytes_per_vector=1536.0, memory=15360, disk=15440, recall_10=1.0, latency=0.02)
MIDDLE = made("pq:48+rerank", bytes_per_vector=56.0, memory=560, disk=9000, recall_10=0.97, latency=0.01)
SMALL = made("binary", bytes_per_vector=48.0, memory=480, disk=500, recall_10=0.6, latency=0.001)
THREE = [LARGE, MIDDLE, SMALL]


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (Limits(), "pq:48+rerank"),
        (Limits(recall=0.99), "flat"),
        (Limits(recall=0.5), "binary"),
        (Limits(recall=None), "binary"),
        (Limits(recall=0.95, max_bytes=64), "pq:48+rerank"),
        (Limits(recall=0.95, max_memory=600, latency=0.01), "pq:48+rerank"),
        (Limits(recall=None, latency=0.005), "binary"),
    ],
)
def test_the_smallest_within_all_limits_is_chosen(limits: Limits, name: str) -> None:
    assert choose(THREE, limits).name == name


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(recall=0.999), "no recipe has a recall@10 of 0.999 or more; the nearest is pq:48.rerank with 0.9700"),
        (Limits(recall=None, max_bytes=8), "8 bytes a vector or fewer; the nearest is binary with 48 bytes"),
        (Limits(recall=None, max_memory=100), "MB of memory or less; the nearest is binary"),
        (Limits(recall=None, latency=1e-4), "0.1 ms a query or less; the nearest is binary with 1 ms"),
        (
            Limits(recall=0.95, latency=0.005),
            "with all but 5 ms a query or less the nearest is pq:48.rerank with 10 ms",
        ),
        (Limits(recall=0.95, max_bytes=50), "with all but a recall@10 of 0.95 or more the nearest is binary with 0.6"),
    ],
)
def test_an_impossible_limit_is_named_with_the_nearest_recipe(limits: Limits, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(THREE[1:], limits)


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    worse = made("int8", bytes_per_vector=400.0, recall_10=0.9)
    twin = made("opq:48+rerank", bytes_per_vector=56.0, recall_10=0.97, disk=9001)
    assert [one.name for one in front([*THREE, worse, twin])] == ["binary", "pq:48+rerank", "flat"]


# Applying


def test_what_was_chosen_is_stored_and_searched_as_it_was_measured(writable: SearchEngine) -> None:
    with writable as engine:
        found = measure(engine, options=MeasureOptions(["ivf-pq:16+rerank"]))
        compress.apply(engine, found[1])
        storage = engine.storage
        assert storage.plan.recipe == "ivf-pq"
        assert (storage.tuning.rerank, storage.keep_vectors) == (found[1].tuning.rerank, True)
        assert storage.tuning.probes >= found[1].tuning.probes
        # Two codebooks, one of them in the segment: the predicted size is the real one.
        assert engine.store.sizes()["segments"] == pytest.approx(found[1].disk, rel=0.02)
        again = measure(engine, options=MeasureOptions(["int8"]))  # the vectors were kept
        assert again[1].recall_10 > 0.95
        queries = clustered(20, seed=3)
        hits = engine._ranker.rank(SearchRequest([""] * 20, queries, 10, SearchOptions(mode="dense")))
        rows = clustered(COUNT)
        exact = np.argsort(-(queries @ rows.T), axis=1)[:, :10]
        agreed = [
            len({item.row for item in hit} & set(best)) / 10 for hit, best in zip(hits, exact.tolist(), strict=True)
        ]
        assert np.mean(agreed) > 0.9


def test_dropping_vectors_is_smallest_and_final(writable: SearchEngine) -> None:
    with writable as engine:
        with pytest.raises(ValueError, match="re-ranked by the vectors that are to be dropped"):
            compress.apply(engine, "binary+rerank", drop_vectors=True)
        compress.apply(engine, "binary", drop_vectors=True)
        assert engine.store.sizes()["segments"] < COUNT * (DIM / 8 + 8) + 200
        with pytest.raises(ValueError, match="keeps no vectors beside its binary codes"):
            measure(engine)
        with pytest.raises(ValueError, match="keeps no vectors beside its binary codes"):
            compress.apply(engine, "int8")


# The command


def test_the_command_measures_chooses_and_writes_a_report(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "deep" / "report.json"
    result = call("compress", folder, "--recipes", "int8,pq:8,pq:8+rerank", "--report", report, "--recall", "0.9")
    assert "> pq:8+rerank" in result.stdout
    assert "> pq:8+rerank: the least memory within the limits, codebooks included" in result.stderr
    assert result.stderr.index("s on an idle CPU") < result.stderr.index("[1/")  # before the work
    assert "queries are phrases of 150 held-out passages" in result.stderr
    assert "trained on 1,350 vectors, fewer than recommended: int8 10,000, pq:8 9,984" in result.stderr
    content = json.loads(report.read_text())
    assert content["chosen"] == "pq:8+rerank"
    assert [one["name"] for one in content["candidates"]] == ["flat", "int8", "pq:8", "pq:8+rerank"]
    assert content["limits"]["recall"] == 0.9
    as_json = json.loads(call("compress", folder, "--recipes", "binary", "--format", "json").stdout)
    assert (as_json["sample"], as_json["total"], as_json["chosen"]) == (1350, COUNT, "flat")


def test_principal_components_are_measured_drawn_and_applied(writable: SearchEngine, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = writable.store.folder
    writable.close()
    plot, recipes = tmp_path / "x.png", "pca32-pq:8+rerank,pca32-ivf-pq:8+rerank"
    said = call("compress", folder, "--recipes", recipes, "--plot", plot).stdout
    assert "probes" in next(line for line in said.splitlines() if "pca32-ivf-pq:8+rerank" in line)
    assert plot.is_file()
    call("compress", folder, "--recipe", "pca32-pq:8+rerank", "--apply")
    with SearchEngine.open(folder) as engine:
        assert engine.storage.plan.width == 32


def test_the_command_says_which_limit_is_in_the_way(folder: Path) -> None:
    failed = call("compress", folder, "--recipes", "binary,int8", "--max-bytes", "10B", code=1)
    assert "with all but a recall@10 of 0.95 or more the nearest is binary" in failed.stderr
    assert "int8" in failed.stdout  # the table is printed nevertheless
    for limit in ("--max-memory", "--latency"):
        assert "is not an amount" in call("compress", folder, limit, "8 quux", code=2).stderr
    assert "--recipe and --drop-vectors need --apply" in call("compress", folder, "--recipe", "int8", code=2).stderr
    assert (
        "without measuring" in call("compress", folder, "--recipe", "int8", "--apply", "--recall", "0.9", code=2).stderr
    )


def test_the_command_applies(writable: SearchEngine) -> None:
    folder = writable.store.folder
    writable.close()
    applied = call("compress", folder, "--recipes", "fp16,int8", "--max-memory", "1MiB", "--latency", "10s", "--apply")
    assert "stored as int8" in applied.stderr
    assert (
        "stored as pq:8, the best 10 k re-ranked"
        in call("compress", folder, "--recipe", "pq:8+rerank", "--apply").stderr
    )
    dropped = call("compress", folder, "--recipe", "binary", "--apply", "--drop-vectors").stderr
    assert "the vectors themselves are gone" in dropped
    assert "keeps no vectors" in call("compress", folder, code=1).stderr


def test_judged_queries_add_ndcg(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "tea"}\n{"_id": "q2", "text": "yeast"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t0\t1\nq2\t1\t1\n")
    flags = ("--recipes", "int8", "--format", "json", "--device", "cpu")
    by_folder = json.loads(call("compress", folder, "--beir", tmp_path, *flags).stdout)
    files = ("--queries", tmp_path / "queries.jsonl", "--qrels", tmp_path / "qrels" / "test.tsv")
    by_files = json.loads(call("compress", folder, *files, *flags).stdout)
    assert by_folder["queries"] == by_files["queries"] == 2
    for content in (by_folder, by_files):
        assert content["candidates"][0]["ndcg_change"] in (0, None)
        assert content["candidates"][1]["ndcg_10"] is not None


def test_a_chart_names_every_recipe_without_overlap(found: list[Candidate], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.text import Text

    from searchkit.reports.compression_plot import figure_of, pareto_chart

    judged = [replace(one, ndcg_10=one.recall_10 / 2) for one in found]
    for candidates, dark in ((found, False), (judged, True)):
        figure = figure_of(candidates, title="x", dark=dark)
        for axes in figure.axes:
            assert {text.get_text() for text in axes.texts} == {one.name for one in candidates}
            figure.draw_without_rendering()
            boxes = [
                Text.get_window_extent(text) for text in axes.texts
            ]  # an annotation's own extent includes its arrow
            assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
    files = pareto_chart(tmp_path / "deep" / "x.png", found, title="x")
    assert [file.name for file in files] == ["x.png", "x.svg"]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing to draw"):
        figure_of([], title="x")


# While indexing


def test_indexing_ends_by_storing_the_recipe(tmp_path: Path, mistral: Path) -> None:
    corpus = tmp_path / "notes.jsonl"
    corpus.write_text("".join(json.dumps({"id": str(n), "text": f"note {n} {TEXTS[n % 3]}"}) + "\n" for n in range(30)))
    index = tmp_path / "notes.index"
    flags = (corpus, "--index", index, "--model", mistral, "--device", "cpu", "--recipe")
    assert "expected one of flat" in call("index", *flags, "zip", code=1).stderr
    assert not index.exists()
    few = call("index", *flags, "pq:8").stderr
    assert "pq:8 is trained on at least 256 passages, and there are 30: flat is kept" in few
    assert "30 passages are too few to choose a recipe" in call("index", *flags, "auto").stderr
    assert "stored as rabitq, the best 10 k re-ranked" in call("index", *flags, "rabitq+rerank").stderr
    assert "stored as" not in call("index", *flags, "rabitq+rerank").stderr  # it was stored already


def test_auto_takes_the_smallest_of_the_quick_recipes(
    writable: SearchEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    from searchkit.cli.compress import store_by

    with writable as engine:
        store_by(engine, "auto")
        assert engine.storage.plan.recipe in ("rabitq", "binary", "pq")
        assert "re-ranked" in capsys.readouterr().err
        store_by(engine, "auto")  # unchanged: an earlier run chose it
        assert capsys.readouterr().err == ""
