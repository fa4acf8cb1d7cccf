"""GPU code without a GPU: an index on the CPU stands in for the copy, and FAISS's graphs for those of cuVS."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
from gpus import many, on_device, on_gpu
from stored import InMemory, built, in_segments

from searchkit.engine import SearchEngine
from searchkit.indexer.documents import NewDocument
from searchkit.indexer.store import Store
from searchkit.indexer.vectors import faiss_copies as copies
from searchkit.indexer.vectors import faiss_gpu as gpu
from searchkit.indexer.vectors import faiss_index
from searchkit.indexer.vectors.devices import device_numbers, make_backend
from searchkit.indexer.vectors.faiss_gpu import GpuBackend
from searchkit.indexer.vectors.faiss_index import FaissBackend, FaissIndex
from searchkit.indexer.vectors.recipes import RECIPES, Plan, Tuning, plan
from searchkit.indexer.vectors.search import search
from searchkit.models.embedder import Embedder
from searchkit.ranking import SearchOptions
from searchkit.records import Document

__all__ = ["many"]  # a fixture


class Watched:
    """Stands for an index on a GPU: answers as the CPU does, and refuses what a GPU does."""

    def __init__(self, index: Any) -> None:
        self.index, self.asked = index, 0

    def search(self, queries: np.ndarray, k: int, params: Any = None) -> tuple[np.ndarray, np.ndarray]:
        assert k <= 2048
        assert getattr(getattr(params, "index_params", params), "sel", None) is None
        self.asked += 1
        return self.index.search(queries, k, params=params)


class Graph:
    """Stands for cuVS: builds and searches graphs on the CPU, and takes what cuVS takes."""

    def __init__(self, resources: Any, dim: int, metric: int, config: Any) -> None:
        self.config, self.breadths = config, []
        self.index = faiss.IndexHNSWCagra(dim, config.graph_degree // 2, metric)

    def train(self, vectors: np.ndarray) -> None:
        assert self.index.ntotal == 0
        assert len(vectors) > 4  # it does not come back from building a graph of three or four
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
    copies._resources.cache_clear()
    yield
    copies._resources.cache_clear()


def test_what_faiss_searches_on_a_gpu_follows_from_the_plan_alone() -> None:
    able = {name for name in RECIPES if gpu.unsupported(plan(name, 384, 10_000)) is None}
    assert able - {"cagra"} == {"flat", "fp16", "int8", "pq", "opq", "ivf-pq", "ivf-int8", "binary"}
    assert ("cagra" in able) == hasattr(faiss, "GpuIndexCagra")
    assert gpu.unsupported(plan("hnsw", 384, 10_000)) == "FAISS has no GPU code for hnsw"


@pytest.mark.parametrize(("code", "near"), [(6, 4), (128, 96), (192, 96), (48, None), (96, None)])
def test_a_code_without_gpu_code_is_refused_and_names_the_nearest_that_fits(code: int, near: int | None) -> None:
    reason = gpu.unsupported(plan(f"ivf-pq:{code}", 384, 10_000))
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
    assert device_numbers(device) == expected


def test_a_device_that_cannot_be_understood_is_refused() -> None:
    with pytest.raises(ValueError, match=r"device is 'cuda:x'; expected cuda, cuda:1 or cuda:0,1"):
        device_numbers("cuda:x")


def test_without_a_gpu_the_cpu_searches_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0, raising=False)
    caplog.set_level(logging.INFO)
    assert type(make_backend("cuda")) is FaissBackend
    assert "searched on the CPU: this faiss sees no GPU" in caplog.text


def test_a_recipe_without_gpu_code_stays_on_the_cpu_with_the_reason(
    many: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    index = on_gpu(built("rabitq", many))
    assert index.copy is None
    assert search([InMemory(index)], many[:1], 1)[0].tolist() == [[0]]
    assert "rabitq is searched on the CPU: FAISS has no GPU code for rabitq" in caplog.text


def test_vectors_that_do_not_fit_stay_on_the_cpu_with_the_reason(
    many: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("StandardGpuResources: alloc fail")

    monkeypatch.setattr(copies, "copied", full)
    monkeypatch.setattr(copies, "gpu_knn", full)
    assert on_gpu(built("flat", many)).copy is None
    assert "2000 vectors of flat are searched on the CPU: StandardGpuResources: alloc fail" in caplog.text


def test_the_original_answers_what_a_gpu_cannot(many: np.ndarray) -> None:
    index = built("flat", many)
    watched = Watched(index.raw)
    segment = InMemory(on_gpu(index, watched))
    rows, _ = search([segment], many[:3], 5)
    assert watched.asked == 1
    np.testing.assert_array_equal(rows, np.argsort(-(many[:3] @ many.T), axis=1, kind="stable")[:, :5])
    index.add(many)
    some = np.arange(4000) % 2 == 0
    rows, _ = search([segment], many[:3], 50, allowed=some)
    assert watched.asked == 1  # a filter: the CPU
    assert (rows % 2 == 0).all()
    assert search([segment], many[:3], 2500)[0].shape == (3, 2500)
    assert watched.asked == 1  # more rows than a GPU selects


def test_few_deleted_rows_are_fetched_and_left_out(many: np.ndarray) -> None:
    index = built("flat", many)
    watched = Watched(index.raw)
    allowed = np.ones(len(many), bool)
    allowed[:40] = False
    rows, scores = search([InMemory(on_gpu(index, watched))], many[:50], 5, allowed=allowed)
    assert watched.asked == 1
    every = np.where(allowed, many[:50] @ many.T, -np.inf)
    np.testing.assert_array_equal(rows, np.argsort(-every, axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(scores, np.take_along_axis(every, rows, 1), atol=1e-6)


def test_after_a_search_fails_on_a_gpu_the_cpu_searches(many: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Watched):
        def search(self, queries: np.ndarray, k: int, params: Any = None) -> Any:
            self.asked += 1
            raise RuntimeError("StandardGpuResources: alloc fail")

    index = built("fp16", many)
    failing = Failing(index.raw)
    segment = InMemory(on_gpu(index, failing))
    for _ in range(2):
        assert search([segment], many[:3], 1)[0].tolist() == [[0], [1], [2]]
    assert failing.asked == 1
    assert "2000 vectors are searched on the CPU from now on: StandardGpuResources: alloc fail" in caplog.text


@pytest.mark.parametrize("count", [1, 2, 7])
def test_replicas_answer_their_shares_of_the_queries(count: int, many: np.ndarray) -> None:
    index = built("ivf-int8", many).raw
    replicas = [Watched(index), Watched(index)]
    params = faiss.SearchParametersIVF(nprobe=3)
    found = copies.Replicas(replicas).search(many[:count], 5, params=params)
    for mine, theirs in zip(found, index.search(many[:count], 5, params=params), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert [copy.asked for copy in replicas] == [1, min(1, count - 1)]


def test_filtered_searches_under_a_rotation_stay_on_the_cpu(many: np.ndarray) -> None:
    index = built("opq:2", many[:300])
    watched = Watched(index.raw)
    segment = InMemory(on_gpu(index, watched))
    search([segment], many[:3], 5, allowed=np.arange(300) < 200)
    assert watched.asked == 0
    search([segment], many[:3], 5)
    assert watched.asked == 1


def test_only_originals_are_written(many: np.ndarray, tmp_path: Path) -> None:
    index = built("flat", many)
    assert on_gpu(index, Watched(index.raw)).save(tmp_path / "copied") == index.save(tmp_path / "original")


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was copied to a GPU; the copies are watched."""
    copied: list[Any] = []
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(copies, "copied", lambda raw, *_, **__: copied.append(raw) or Watched(raw))
    return copied


def test_copies_of_unchanged_segments_stay(many: np.ndarray, tmp_path: Path, copied: list[Any]) -> None:
    backend = make_backend("cuda")
    with Store.create(tmp_path / "i", {}, dim=32, backend=backend) as store:
        before = []  # as a searcher holds a commit until it has the next
        for n in range(3):
            store.commit([NewDocument(str(n), "", "a", "{}", "", [(0, 1)])], many[n : n + 1])
            parts = store.snapshot().segments
            assert [part.index for part in parts[:-1]] == [part.index for part in before]
            assert search(parts, many[n : n + 1], 1)[0].tolist() == [[n]]
            assert len(copied) == n + 1
            before = parts


def test_a_segment_is_copied_when_it_is_first_searched(many: np.ndarray, tmp_path: Path, copied: list[Any]) -> None:
    (segment,) = in_segments(tmp_path, many, rows=np.arange(7, 2007), backend=make_backend("cuda"))
    np.testing.assert_array_equal(segment.vectors(np.array([3])), many[3:4])
    assert not copied
    for _ in range(2):
        assert search([segment], many[:1], 1)[0].tolist() == [[7]]
    assert len(copied) == 1


def test_an_engine_that_is_closed_frees_its_copies(many: np.ndarray, tmp_path: Path, copied: list[Any]) -> None:
    backend = make_backend("cuda:0")
    (segment,) = in_segments(tmp_path, many, backend=backend)
    index: Any = segment.index
    watched = index.copy
    assert index.copy is watched
    backend.close()
    assert index.copy is not watched


def test_a_single_list_answers_as_the_scalar_quantizer_it_was_made_from(many: np.ndarray) -> None:
    index = built("int8", many)
    single = copies.as_single_list(index.raw)
    for here, there in zip(index.raw.search(many[:20], 10), single.search(many[:20], 10), strict=True):
        np.testing.assert_allclose(here, there, atol=1e-6)
    assert copies.as_single_list(index.empty().raw).ntotal == 0


def test_parts_of_half_precision_vectors_hold_them_all(many: np.ndarray) -> None:
    index = built("fp16", many).raw
    parts = [copies.part_of(index, start, stop) for start, stop in ((0, 700), (700, 700), (700, 2000))]
    assert [part.ntotal for part in parts] == [700, 0, 1300]
    np.testing.assert_array_equal(
        np.concatenate([part.reconstruct_n(0, part.ntotal) for part in parts]), index.reconstruct_n(0, 2000)
    )


@pytest.mark.parametrize("chunk", [1, 333, 5000])
def test_exact_search_in_chunks_equals_brute_force(many: np.ndarray, chunk: int) -> None:
    def knn(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return faiss.knn(queries, vectors.astype(np.float32), k, metric=faiss.METRIC_INNER_PRODUCT)

    half = many[:300].astype(np.float16)
    scores, rows = copies.exact(half, many[:4], 9, knn, chunk)
    everything = many[:4] @ half.astype(np.float32).T
    np.testing.assert_array_equal(rows, np.argsort(-everything, axis=1, kind="stable")[:, :9])
    np.testing.assert_allclose(scores, np.take_along_axis(everything, rows, 1), atol=1e-6)
    assert copies.exact(half, many[:4], 1000, knn, chunk)[1].shape == (4, 300)


@pytest.mark.parametrize(("recipe", "devices"), [("int8", [0]), ("fp16", [0]), ("ivf-int8", [])])
def test_what_no_gpu_trains_or_encodes_the_cpu_does(recipe: str, devices: list[int], many: np.ndarray) -> None:
    expected = built(recipe, many)
    index = on_device(expected.plan, np.array_split(many, 3), devices)
    np.testing.assert_array_equal(index.raw.search(many[:5], 5)[1], expected.raw.search(many[:5], 5)[1])


def test_few_vectors_are_encoded_on_the_cpu_and_many_on_a_gpu(
    many: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []
    monkeypatch.setattr(copies, "copied", lambda raw, *_: copied.append(raw) or faiss_index.emptied(raw))
    monkeypatch.setattr(faiss, "index_gpu_to_cpu", lambda index: index, raising=False)
    expected = built("pq:8", many)
    for most in (len(many) + 1, len(many)):
        assert not copied
        monkeypatch.setattr(gpu, "ENCODED_FROM", most)
        index = GpuBackend([0]).build(expected.empty(), np.array_split(many, 3), len(many))
        np.testing.assert_array_equal(index.raw.search(many[:5], 5)[1], expected.raw.search(many[:5], 5)[1])
    assert len(copied) == 1


def test_codes_that_no_longer_fit_are_made_on_the_cpu(
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

    monkeypatch.setattr(copies, "copied", lambda raw, *_: Filling(faiss_index.emptied(raw)))
    monkeypatch.setattr(gpu, "ENCODED_FROM", 1)
    monkeypatch.setattr(faiss, "index_gpu_to_cpu", lambda copy: copy.index, raising=False)
    expected = built("pq:8", many)
    index = GpuBackend([0]).build(expected.empty(), np.array_split(many, 4), len(many))
    for here, there in zip(index.raw.search(many[:50], 5), expected.raw.search(many[:50], 5), strict=True):
        np.testing.assert_array_equal(here, there)
    assert "vectors of pq:8 are encoded on the CPU: StandardGpuResources: alloc fail" in caplog.text


@pytest.mark.usefixtures("cuvs")
def test_a_graph_that_cuvs_fails_to_build_is_built_on_the_cpu(
    many: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("too many invalid or duplicated neighbor nodes")

    monkeypatch.setattr(Graph, "train", fail)
    index = on_device(plan("cagra", 32, len(many)), [many])
    assert "built on the CPU, which takes long: too many invalid" in caplog.text
    assert (index.raw.search(many[:20], 1)[1][:, 0] == np.arange(20)).all()


def test_what_a_gpu_fails_to_train_or_hold_is_done_on_the_cpu(
    many: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("StandardGpuResources: alloc fail")

    monkeypatch.setattr(copies, "copied", full)
    monkeypatch.setattr(gpu, "ENCODED_FROM", 1)
    expected = built("pq:8", many)
    index = on_device(expected.plan, [many])
    np.testing.assert_array_equal(index.raw.search(many[:5], 5)[1], expected.raw.search(many[:5], 5)[1])
    said = [record.message for record in caplog.records]
    assert said == [
        "pq:8 is trained on the CPU: StandardGpuResources: alloc fail",
        "vectors of pq:8 are encoded on the CPU: StandardGpuResources: alloc fail",
    ]


@pytest.mark.parametrize("recipe", ["flat", "fp16"])
def test_exact_vectors_that_do_not_fit_are_compared_by_parts(
    recipe: str, many: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("StandardGpuResources: alloc fail")

    def knn(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(len(vectors))
        return faiss.knn(queries, vectors.astype(np.float32), k, metric=faiss.METRIC_INNER_PRODUCT)

    monkeypatch.setattr(copies, "copied", full)
    monkeypatch.setattr(copies, "gpu_knn", lambda device: knn)
    monkeypatch.setattr(copies, "KNN_BYTES", 600 * 32 * (4 if recipe == "flat" else 2))
    index = built(recipe, many)
    segment, here = InMemory(on_gpu(index)), InMemory(index)
    for count in (copies.STREAMED_FROM - 1, copies.STREAMED_FROM):
        assert asked == [1] * bool(asked)  # whether it can
        rows, scores = search([segment], many[:count], 5)
        expected_rows, expected_scores = search([here], many[:count], 5)
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    assert asked == [1, 600, 600, 600, 200]
    assert f"2000 vectors of {recipe} are copied to the GPU in parts: StandardGpuResources: alloc" in caplog.text


@pytest.mark.usefixtures("cuvs")
def test_graphs_are_built_and_searched_by_cuvs_and_read_by_the_cpu(
    many: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = plan("cagra", 32, len(many))
    index = on_device(chosen, np.array_split(many, 3))
    assert index.raw.base_level_only
    index.save(tmp_path / "dense.faiss")
    segment = InMemory(FaissBackend().open(tmp_path / "dense.faiss", chosen))
    true = np.argsort(-(many[:50] @ many.T), axis=1)[:, :10]
    rows, _ = search([segment], many[:50], 10)
    assert np.mean([len({*a} & {*b}) / 10 for a, b in zip(rows, true, strict=True)]) > 0.95
    odd = np.arange(len(many)) % 2 == 1
    assert (search([segment], many[:50], 10, allowed=odd)[0] % 2 == 1).all()
    assert not caplog.records


@pytest.mark.usefixtures("cuvs")
def test_graphs_of_the_cpu_are_built_again_where_cuvs_searches(many: np.ndarray) -> None:
    index = on_gpu(built("cagra", many))
    segment = InMemory(index)
    rows, _ = search([segment], many[:20], 10, tuning=Tuning(ef=70))
    assert (rows[:, 0] == np.arange(20)).all()
    search([segment], many[:20], 200, tuning=Tuning(ef=70))
    assert index.copy.breadths == [96, 224]
    search([segment], many[:20], gpu.CAGRA_K + 1)
    search([segment], many[:20], 10, allowed=np.arange(len(many)) < len(many) - gpu.CAGRA_K)
    assert len(index.copy.breadths) == 2  # the CPU
    assert on_gpu(built("cagra", many[: gpu.CAGRA_FROM - 1])).copy is None


def test_without_cuvs_or_a_gpu_graphs_are_built_on_the_cpu_with_the_reason(
    many: np.ndarray, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(faiss, "GpuIndexCagra", raising=False)
    chosen = plan("cagra", 32, len(many))
    for devices, why in (([], "no GPU is used; ask for one: --device cuda"), ([0], "this faiss has no cuVS")):
        caplog.clear()
        index = on_device(chosen, [many], devices)
        assert not index.raw.base_level_only
        assert f"graphs of cagra will be built on the CPU, which takes long: {why}" in caplog.text


def test_an_engine_trains_and_encodes_where_it_searches(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2, raising=False)
    asked: list[tuple[str, Any]] = []

    def train(self: GpuBackend, plan: Plan, sample: np.ndarray) -> FaissIndex:
        if plan.recipe != "flat":
            asked.append(("train", self.devices))
        return faiss_index.train(plan, sample)

    build = GpuBackend.build
    monkeypatch.setattr(GpuBackend, "train", train)
    monkeypatch.setattr(
        GpuBackend, "build", lambda self, *rest: asked.append(("encode", self.devices)) or build(self, *rest)
    )
    monkeypatch.setattr(
        copies, "copied", lambda raw, _, on, replicate: asked.append(("search", (on, replicate))) or Watched(raw)
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
