from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest

from searchkit.engine import SearchEngine
from searchkit.indexer.vectors import faiss_gpu as gpu
from searchkit.indexer.vectors import faiss_index as dense
from searchkit.indexer.vectors.recipes import RECIPES, Plan, Tuning, plan
from searchkit.models.embedder import Embedder
from searchkit.ranking import SearchOptions
from searchkit.records import Document

needs_gpu = pytest.mark.skipif(not getattr(faiss, "get_num_gpus", int)(), reason="faiss sees no GPU here")
CUVS = ["cagra"] if hasattr(faiss, "GpuIndexCagra") else []
BY_GPUS = ["ivf-pq:8", "ivf-int8", "opq:8"]
ON_GPUS = ["flat", "fp16", "int8", "pq:8", *BY_GPUS, "binary", *CUVS]


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    """(2000, 32) float32 unit rows."""
    rows = np.random.default_rng(0).standard_normal((2000, 32)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@dataclass
class InMemory:
    index: Any
    first_row: int
    count: int
    rows: np.ndarray | None = None

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        return dense.reconstructed(gpu.to_cpu(self.index), positions)


class Watched:
    """Stands for an index on a GPU: answers as the processor does, and refuses what a GPU does."""

    def __init__(self, index: Any) -> None:
        self.index, self.asked = index, 0

    def search(self, queries: np.ndarray, k: int, params: Any = None) -> tuple[np.ndarray, np.ndarray]:
        assert k <= 2048
        assert getattr(getattr(params, "index_params", params), "sel", None) is None
        self.asked += 1
        return self.index.search(queries, k, params=params)


def made(recipe: str, vectors: np.ndarray) -> tuple[Plan, Any]:
    chosen = plan(recipe, vectors.shape[1], len(vectors))
    return chosen, dense.encode(dense.train(chosen, vectors), vectors)


class Graph:
    """Stands for cuVS: makes and searches graphs on the processor, and takes what cuVS takes."""

    def __init__(self, resources: Any, dim: int, metric: int, config: Any) -> None:
        self.config, self.breadths = config, []
        self.index = faiss.IndexHNSWCagra(dim, config.graph_degree // 2, metric)

    def train(self, vectors: np.ndarray) -> None:
        assert self.index.ntotal == 0
        assert len(vectors) > 4  # it does not come back from making a graph of three or four
        self.index.add(vectors)

    def search(self, queries: np.ndarray, k: int, params: Any) -> tuple[np.ndarray, np.ndarray]:
        assert k <= params.itopk_size
        self.breadths.append(params.itopk_size)
        return self.index.search(queries, k)

    def copyTo(self, index: Any) -> None:
        assert index.base_level_only
        index.base_level_only = False
        index.add(self.index.storage.reconstruct_n(0, self.index.ntotal))
        index.base_level_only = True


@pytest.fixture
def cuvs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {
        "GpuIndexCagra": Graph, "GpuIndexCagraConfig": SimpleNamespace, "SearchParametersCagra": SimpleNamespace,
        "StandardGpuResources": object, "get_num_gpus": lambda: 1,
    }.items():  # fmt: skip
        monkeypatch.setattr(faiss, name, value, raising=False)
    gpu._resources.cache_clear()
    yield
    gpu._resources.cache_clear()


def test_what_faiss_searches_on_a_gpu_is_told_from_the_recipe_alone() -> None:
    able = {name for name in RECIPES if gpu.why_not(plan(name, 384, 10_000)) is None}
    assert able - {"cagra"} == {"flat", "fp16", "int8", "pq", "opq", "ivf-pq", "ivf-int8", "binary"}
    assert ("cagra" in able) == hasattr(faiss, "GpuIndexCagra")
    assert gpu.why_not(plan("hnsw", 384, 10_000)) == "FAISS has no GPU code for hnsw"


@pytest.mark.parametrize(("code", "near"), [(6, 4), (128, 96), (192, 96), (48, None), (96, None)])
def test_a_code_without_gpu_code_is_refused_and_names_the_nearest_that_fits(code: int, near: int | None) -> None:
    reason = gpu.why_not(plan(f"ivf-pq:{code}", 384, 10_000))
    assert reason is None if near is None else reason is not None and f"ivf-pq:{near}" in reason


@pytest.mark.parametrize(
    ("device", "there", "expected"),
    [
        (None, 2, []),
        ("cpu", 2, []),
        ("cuda", 2, [0, 1]),
        ("cuda", 0, []),
        ("cuda:1", 2, [1]),
        ("cuda:1,0,1", 2, [1, 0]),
        ("cuda:0,7", 2, [0]),
    ],
)
def test_a_device_names_gpus(
    device: str | None, there: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: there, raising=False)
    assert gpu.device_numbers(device) == expected


def test_a_device_that_cannot_be_understood_is_refused() -> None:
    with pytest.raises(ValueError, match=r"device is 'cuda:x'; expected cuda, cuda:1 or cuda:0,1"):
        gpu.device_numbers("cuda:x")


def test_without_a_gpu_the_processor_searches_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    caplog.set_level(logging.INFO)
    segments: list[Any] = [object()]
    assert gpu.Gpus("cuda").hold(segments, Plan("flat", 8)) is segments
    assert "searched on the processor: this faiss sees no GPU" in caplog.text


def test_a_recipe_that_gpus_lack_stays_and_says_why(many: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    chosen, index = made("rabitq", many)
    assert gpu.to_gpu(index, chosen, [0]) is index
    assert "rabitq is searched on the processor: FAISS has no GPU code for rabitq" in caplog.text


def test_a_part_that_does_not_fit_stays_and_says_why(
    many: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("StandardGpuResources: alloc fail")

    monkeypatch.setattr(gpu, "_copied", full)
    monkeypatch.setattr(gpu, "gpu_knn", full)
    chosen, index = made("flat", many)
    assert gpu.to_gpu(index, chosen, [0]) is index
    assert "2000 vectors of flat are searched on the processor: StandardGpuResources: alloc fail" in caplog.text


def test_what_a_gpu_cannot_answer_the_original_does(many: np.ndarray) -> None:
    chosen, index = made("flat", many)
    watched = Watched(index)
    segment: Any = InMemory(gpu.GpuIndex(index, watched), 0, len(many))
    rows, _ = dense.search([segment], many[:3], 5, plan=chosen)
    assert watched.asked == 1
    np.testing.assert_array_equal(rows, np.argsort(-(many[:3] @ many.T), axis=1, kind="stable")[:, :5])
    index.add(many)
    segment.count = 4000
    some = np.arange(4000) % 2 == 0
    rows, _ = dense.search([segment], many[:3], 50, plan=chosen, allowed=some)
    assert watched.asked == 1  # a filter: the processor
    assert (rows % 2 == 0).all()
    assert dense.search([segment], many[:3], 2500, plan=chosen)[0].shape == (3, 2500)
    assert watched.asked == 1  # more rows than a GPU selects


def test_few_deleted_rows_are_asked_for_and_left_out(many: np.ndarray) -> None:
    chosen, index = made("flat", many)
    watched = Watched(index)
    segment: Any = InMemory(gpu.GpuIndex(index, watched), 0, len(many))
    allowed = np.ones(len(many), bool)
    allowed[:40] = False
    rows, scores = dense.search([segment], many[:50], 5, plan=chosen, allowed=allowed)
    assert watched.asked == 1
    every = np.where(allowed, many[:50] @ many.T, -np.inf)
    np.testing.assert_array_equal(rows, np.argsort(-every, axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(scores, np.take_along_axis(every, rows, 1), atol=1e-6)


def test_a_search_that_fails_on_a_gpu_is_done_here_from_then_on(
    many: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Watched):
        def search(self, queries: np.ndarray, k: int, params: Any = None) -> Any:
            self.asked += 1
            raise RuntimeError("StandardGpuResources: alloc fail")

    chosen, index = made("fp16", many)
    failing = Failing(index)
    segment: Any = InMemory(gpu.GpuIndex(index, failing), 0, len(many))
    for _ in range(2):
        assert dense.search([segment], many[:3], 1, plan=chosen)[0].tolist() == [[0], [1], [2]]
    assert failing.asked == 1
    assert "2000 vectors are searched on the processor from now on: StandardGpuResources: alloc fail" in caplog.text


@pytest.mark.parametrize("count", [1, 2, 7])
def test_replicas_answer_their_shares_of_the_queries(count: int, many: np.ndarray) -> None:
    _, index = made("ivf-int8", many)
    copies = [Watched(index), Watched(index)]
    params = faiss.SearchParametersIVF(nprobe=3)
    found = gpu.Replicas(copies).search(many[:count], 5, params=params)
    for mine, theirs in zip(found, index.search(many[:count], 5, params=params), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert [copy.asked for copy in copies] == [1, min(1, count - 1)]


def test_filtered_searches_under_a_rotation_stay_on_the_processor(many: np.ndarray) -> None:
    chosen, index = made("opq:2", many[:300])
    watched = Watched(index)
    segment: Any = InMemory(gpu.GpuIndex(index, watched), 0, 300)
    dense.search([segment], many[:3], 5, plan=chosen, allowed=np.arange(300) < 200)
    assert watched.asked == 0
    dense.search([segment], many[:3], 5, plan=chosen)
    assert watched.asked == 1


def test_only_originals_are_written(many: np.ndarray) -> None:
    _, index = made("flat", many)
    assert gpu.to_cpu(gpu.GpuIndex(index, Watched(index))) is index
    assert gpu.to_cpu(index) is index


def test_copies_of_unchanged_segments_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    first, second, third = (InMemory(None, 4 * n, 4) for n in range(3))
    gpus, chosen = gpu.Gpus("cuda"), Plan("flat", 8)
    before = gpus.hold([first, second], chosen)
    after = gpus.hold([second, third], chosen)
    assert after[0] is before[1]
    assert [segment.first_row for segment in after] == [4, 8]
    assert gpus.hold([first], chosen)[0] is not before[0]


def test_a_segment_is_copied_when_it_is_first_searched(many: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    monkeypatch.setattr(gpu, "_copied", lambda index, *_: copied.append(index) or Watched(index))
    chosen, index = made("flat", many)
    segment = gpu.GpuSegment(InMemory(index, 7, len(many)), chosen, [0])
    assert not copied
    for _ in range(2):
        assert dense.search([segment], many[:1], 1, plan=chosen)[0].tolist() == [[7]]
    assert copied == [index]
    np.testing.assert_array_equal(segment.vectors(np.array([3])), many[3:4])


def test_an_engine_that_is_closed_lets_go_of_copies(many: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(gpu, "_copied", lambda index, *_: Watched(index))
    chosen, index = made("flat", many)
    gpus = gpu.Gpus("cuda:0")
    segments: list[Any] = list(gpus.hold([InMemory(index, 0, len(many))], chosen))
    watched = segments[0].index.copy
    assert segments[0].index.copy is watched
    gpus.let_go()
    assert segments[0].index.copy is not watched


def test_one_cell_answers_as_the_scalar_quantiser_it_was_made_from(many: np.ndarray) -> None:
    _, index = made("int8", many)
    cell = gpu.as_one_cell(index)
    for here, there in zip(index.search(many[:20], 10), cell.search(many[:20], 10), strict=True):
        np.testing.assert_allclose(here, there, atol=1e-6)
    assert gpu.as_one_cell(dense.train(plan("int8", 32, 0), many)).ntotal == 0


def test_parts_of_half_precision_vectors_hold_them_all(many: np.ndarray) -> None:
    _, index = made("fp16", many)
    parts = [gpu.part_of(index, start, stop) for start, stop in ((0, 700), (700, 700), (700, 2000))]
    assert [part.ntotal for part in parts] == [700, 0, 1300]
    np.testing.assert_array_equal(
        np.concatenate([part.reconstruct_n(0, part.ntotal) for part in parts]), index.reconstruct_n(0, 2000)
    )


@pytest.mark.parametrize("chunk", [1, 333, 5000])
def test_exact_search_in_chunks_equals_brute_force(many: np.ndarray, chunk: int) -> None:
    def knn(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return faiss.knn(queries, vectors.astype(np.float32), k, metric=faiss.METRIC_INNER_PRODUCT)

    half = many[:300].astype(np.float16)
    scores, rows = gpu.exact(half, many[:4], 9, knn, chunk)
    everything = many[:4] @ half.astype(np.float32).T
    np.testing.assert_array_equal(rows, np.argsort(-everything, axis=1, kind="stable")[:, :9])
    np.testing.assert_allclose(scores, np.take_along_axis(everything, rows, 1), atol=1e-6)
    assert gpu.exact(half, many[:4], 1000, knn, chunk)[1].shape == (4, 300)


@pytest.mark.parametrize(("recipe", "devices"), [("int8", [0]), ("fp16", [0]), ("ivf-int8", [])])
def test_what_no_gpu_learns_or_encodes_the_processor_does(recipe: str, devices: list[int], many: np.ndarray) -> None:
    chosen, expected = made(recipe, many)
    index = gpu.encode(gpu.train(chosen, many, devices), np.array_split(many, 3), len(many), chosen, devices)
    np.testing.assert_array_equal(index.search(many[:5], 5)[1], expected.search(many[:5], 5)[1])


def test_few_vectors_are_encoded_here_and_many_on_a_gpu(many: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    monkeypatch.setattr(gpu, "_copied", lambda index, *_: copied.append(index) or dense.empty(index))
    monkeypatch.setattr(faiss, "index_gpu_to_cpu", lambda index: index, raising=False)
    chosen, expected = made("pq:8", many)
    template = dense.train(chosen, many)
    for most in (len(many) + 1, len(many)):
        assert not copied
        monkeypatch.setattr(gpu, "ENCODED_FROM", most)
        index = gpu.encode(template, np.array_split(many, 3), len(many), chosen, [0])
        np.testing.assert_array_equal(index.search(many[:5], 5)[1], expected.search(many[:5], 5)[1])
    assert len(copied) == 1


def test_codes_that_do_not_fit_any_more_are_made_here(
    many: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Filling:
        """Takes 1,100 vectors."""

        def __init__(self, index: Any) -> None:
            self.index = index

        def add(self, vectors: np.ndarray) -> None:
            room = 1100 - self.index.ntotal
            self.index.add(vectors[:room])
            if room < len(vectors):
                raise RuntimeError("StandardGpuResources: alloc fail")

    monkeypatch.setattr(gpu, "_copied", lambda index, *_: Filling(dense.empty(index)))
    monkeypatch.setattr(gpu, "ENCODED_FROM", 1)
    monkeypatch.setattr(faiss, "index_gpu_to_cpu", lambda copy: copy.index, raising=False)
    chosen, expected = made("pq:8", many)
    index = gpu.encode(dense.train(chosen, many), np.array_split(many, 4), len(many), chosen, [0])
    for here, there in zip(index.search(many[:50], 5), expected.search(many[:50], 5), strict=True):
        np.testing.assert_array_equal(here, there)
    assert "vectors of pq:8 are encoded on the processor: StandardGpuResources: alloc fail" in caplog.text


@pytest.mark.usefixtures("cuvs")
def test_a_graph_that_cuvs_fails_to_make_is_made_here(
    many: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("too many invalid or duplicated neighbor nodes")

    monkeypatch.setattr(Graph, "train", fail)
    chosen = plan("cagra", 32, len(many))
    index = gpu.encode(gpu.train(chosen, many, [0]), [many], len(many), chosen, [0])
    assert "made on the processor, which takes long: too many invalid" in caplog.text
    assert (index.search(many[:20], 1)[1][:, 0] == np.arange(20)).all()


def test_what_a_gpu_fails_to_learn_or_take_is_done_here(
    many: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("StandardGpuResources: alloc fail")

    monkeypatch.setattr(gpu, "_copied", full)
    monkeypatch.setattr(gpu, "ENCODED_FROM", 1)
    chosen, expected = made("pq:8", many)
    index = gpu.encode(gpu.train(chosen, many, [0]), [many], len(many), chosen, [0])
    np.testing.assert_array_equal(index.search(many[:5], 5)[1], expected.search(many[:5], 5)[1])
    said = [record.message for record in caplog.records]
    assert said == [
        "pq:8 is learnt on the processor: StandardGpuResources: alloc fail",
        "vectors of pq:8 are encoded on the processor: StandardGpuResources: alloc fail",
    ]


@pytest.mark.parametrize("recipe", ["flat", "fp16"])
def test_exact_vectors_that_do_not_fit_are_compared_by_parts(
    recipe: str, many: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def full(*_: object) -> None:
        raise RuntimeError("StandardGpuResources: alloc fail")

    def knn(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(len(vectors))
        return faiss.knn(queries, vectors.astype(np.float32), k, metric=faiss.METRIC_INNER_PRODUCT)

    monkeypatch.setattr(gpu, "_copied", full)
    monkeypatch.setattr(gpu, "gpu_knn", lambda device: knn)
    monkeypatch.setattr(gpu, "KNN_BYTES", 600 * 32 * (4 if recipe == "flat" else 2))
    chosen, index = made(recipe, many)
    segment: Any = InMemory(gpu.to_gpu(index, chosen, [0]), 0, len(many))
    assert f"2000 vectors of {recipe} are brought to the GPU by parts: StandardGpuResources: alloc" in caplog.text
    here: Any = InMemory(index, 0, len(many))
    for count in (gpu.STREAMED_FROM - 1, gpu.STREAMED_FROM):
        assert asked == [1]  # whether it can
        rows, scores = dense.search([segment], many[:count], 5, plan=chosen)
        expected_rows, expected_scores = dense.search([here], many[:count], 5, plan=chosen)
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    assert asked == [1, 600, 600, 600, 200]


@pytest.mark.usefixtures("cuvs")
def test_graphs_are_made_and_searched_by_cuvs_and_read_by_the_processor(
    many: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = plan("cagra", 32, len(many))
    index = gpu.encode(gpu.train(chosen, many, [0]), np.array_split(many, 3), len(many), chosen, [0])
    assert index.base_level_only
    dense.write(index, tmp_path / "dense.faiss")
    again = dense.read(tmp_path / "dense.faiss", chosen)
    segment: Any = InMemory(again, 0, len(many))
    true = np.argsort(-(many[:50] @ many.T), axis=1)[:, :10]
    rows, _ = dense.search([segment], many[:50], 10, plan=chosen)
    assert np.mean([len({*a} & {*b}) / 10 for a, b in zip(rows, true, strict=True)]) > 0.95
    odd = np.arange(len(many)) % 2 == 1
    assert (dense.search([segment], many[:50], 10, plan=chosen, allowed=odd)[0] % 2 == 1).all()
    there = gpu.to_gpu(index, chosen, [])
    assert there is index
    assert not caplog.records


@pytest.mark.usefixtures("cuvs")
def test_graphs_of_the_processor_are_made_anew_where_cuvs_searches(many: np.ndarray) -> None:
    chosen, index = made("cagra", many)
    copy = gpu.to_gpu(index, chosen, [0])
    segment: Any = InMemory(copy, 0, len(many))
    rows, _ = dense.search([segment], many[:20], 10, plan=chosen, tuning=Tuning(ef=70))
    assert (rows[:, 0] == np.arange(20)).all()
    dense.search([segment], many[:20], 200, plan=chosen, tuning=Tuning(ef=70))
    assert copy.copy.breadths == [96, 224]
    dense.search([segment], many[:20], gpu.CAGRA_K + 1, plan=chosen)
    dense.search([segment], many[:20], 10, plan=chosen, allowed=np.arange(len(many)) < len(many) - gpu.CAGRA_K)
    assert len(copy.copy.breadths) == 2  # the processor
    few, small = made("cagra", many[: gpu.CAGRA_FROM - 1])
    assert gpu.to_gpu(small, few, [0]) is small


def test_without_cuvs_or_a_gpu_graphs_are_made_here_and_say_why(
    many: np.ndarray, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(faiss, "GpuIndexCagra", raising=False)
    chosen = plan("cagra", 32, len(many))
    for devices, why in (([], "no GPU is used; ask for one: --device cuda"), ([0], "this faiss has no cuVS")):
        caplog.clear()
        index = gpu.encode(gpu.train(chosen, many, devices), [many], len(many), chosen, devices)
        assert not index.base_level_only
        assert f"graphs of cagra will be made on the processor, which takes long: {why}" in caplog.text


def test_an_engine_learns_and_encodes_where_it_searches(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2, raising=False)
    asked: list[tuple[str, Any]] = []
    monkeypatch.setattr(
        gpu, "train", lambda chosen, sample, on: asked.append(("train", on)) or dense.train(chosen, sample)
    )
    encode = gpu.encode
    monkeypatch.setattr(gpu, "encode", lambda *all: asked.append(("encode", all[-1])) or encode(*all[:-1], []))
    monkeypatch.setattr(
        gpu, "to_gpu", lambda index, _, on, replicate: asked.append(("search", (on, replicate))) or index
    )
    with SearchEngine.create(tmp_path / "on.index", model=embedder, device="cuda:1") as engine:
        engine.add(Document(str(n), "", f"note {n}") for n in range(20))
        engine.store_as("int8")
        engine.add([Document("20", "", "one more")])
    assert asked == [("train", [1]), ("encode", [1]), ("encode", [1])]
    asked.clear()
    with SearchEngine.open(tmp_path / "on.index", model=embedder, device="cuda", replicate=True) as engine:
        assert engine.search("one more", k=1, options=SearchOptions(mode="dense"))[0].id == "20"
    assert asked == [("search", ([0, 1], True))] * 2  # segments


@needs_gpu
@pytest.mark.parametrize("recipe", ON_GPUS)
def test_gpus_answer_as_the_processor_does(recipe: str, many: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    chosen, index = made(recipe, many)
    here: Any = InMemory(index, 0, len(many))
    tuning = Tuning(probes=max(1, chosen.lists))
    expected, scores = dense.search([here], many[:50], 10, plan=chosen, tuning=tuning)
    with caplog.at_level(logging.WARNING):
        there: Any = gpu.GpuSegment(here, chosen, [0])
        rows, found = dense.search([there], many[:50], 10, plan=chosen, tuning=tuning)
    assert not caplog.records
    assert isinstance(there.index, gpu.GpuIndex)
    np.testing.assert_allclose(found, scores, atol=5e-3)
    same = np.mean([len({*mine} & {*theirs}) / 10 for mine, theirs in zip(rows, expected, strict=True)])
    assert same > {"binary": 0.5, "cagra": 0.9}.get(recipe, 0.97)  # ties; another graph; float16 tables


@needs_gpu
@pytest.mark.parametrize("recipe", [*BY_GPUS, *CUVS])
def test_what_a_gpu_learnt_and_encoded_is_read_by_the_processor(
    recipe: str, many: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "ENCODED_FROM", 1)
    chosen = plan(recipe, 32, len(many))
    index = gpu.encode(gpu.train(chosen, many, [0]), [many], len(many), chosen, [0])
    dense.write(index, tmp_path / "dense.faiss")
    again = dense.read(tmp_path / "dense.faiss", chosen)
    assert again.ntotal == len(many)
    segment: Any = InMemory(again, 0, len(many))
    rows, _ = dense.search([segment], many[:50], 10, plan=chosen, tuning=Tuning(probes=max(1, chosen.lists)))
    assert np.mean([n in row for n, row in enumerate(rows)]) > 0.8


@needs_gpu
def test_brute_force_on_a_gpu_finds_what_the_processor_finds(many: np.ndarray) -> None:
    _, rows = gpu.exact(many.astype(np.float16), many[:50], 1, gpu.gpu_knn(), 700)
    np.testing.assert_array_equal(rows[:, 0], np.arange(50))
