"""Vectors on GPUs: what FAISS can search there is copied to them, the rest stays where it is and says why.

The files and what the processor searches stay as they are: a copy on a GPU answers what it can, and hands the rest to
its original. GPU indexes take no selectors (so a filter means the processor; a few deleted rows are asked for too, and
left out), give at most MAX_K rows, and cannot be written: convert them with `to_cpu` first.

A graph of cuVS (the recipe "cagra") lies in its file in the form that FAISS searches on the processor too. Where there
is no cuVS, or too little to make it worth while, FAISS makes the graph on the processor.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from threading import RLock
from typing import Any

import numpy as np

from searchkit.indexer.errors import InputError
from searchkit.indexer.vectors import faiss_index as dense
from searchkit.indexer.vectors.recipes import RECIPES, Plan

logger = logging.getLogger(__name__)

MAX_K = 2048
"""Rows, and cells visited, that FAISS's GPU selection can give."""

CAGRA_K = 512
"""Rows that a search in a graph of cuVS can give, which is also the greatest breadth of one block of threads."""

CAGRA_FROM = 1024
"""Vectors from which graphs are made by cuVS: smaller ones take no time, and of very small ones it makes none."""

ENCODED_FROM = 65_536
"""Vectors from which codes are made on a GPU; a guess: to get ready there takes about as long as these here."""

STREAMED_FROM = 64
"""Queries at once from which vectors that do not fit into a GPU are brought there by parts to be compared; a guess."""

CODES = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
"""Bytes of product-quantised codes that FAISS has GPU code for; all with 8 bits a centroid, as ours have."""

HALF_TABLES = 56
"""Bytes of a code from which its lookup tables fit into a GPU's shared memory in half precision only."""

KNN_BYTES = 1 << 30
"""Vectors that `exact` has on the GPU at once."""


def device_numbers(device: str | None) -> list[int]:
    """The GPUs that a device names, as FAISS counts them; none, with a logged reason, where FAISS has no such GPU.

    Args:
        device: "cuda" (every GPU), "cuda:1", "cuda:0,2"; anything else names none.

    Raises:
        ValueError: The device begins with "cuda" and cannot be understood.
    """
    if not device or not device.startswith("cuda"):
        return []
    if not (found := re.fullmatch(r"cuda(?::(\d+(?:,\d+)*))?", device)):
        raise InputError(f"device is {device!r}; expected cuda, cuda:1 or cuda:0,1")
    there = int(getattr(dense.faiss_module(), "get_num_gpus", int)())
    wanted = list(dict.fromkeys(int(one) for one in found[1].split(","))) if found[1] else list(range(there))
    if not there:
        logger.warning(
            "vectors are searched on the processor: this faiss sees no GPU; "
            "where there is one, take pip install 'searchkit[gpu]' in place of searchkit[cpu]"
        )
    if missing := [one for one in wanted if there and one >= there]:
        logger.warning("faiss sees GPUs 0 to %d and not %s, which are left out", there - 1, missing)
    return [one for one in wanted if one < there]


def why_not(plan: Plan) -> str | None:
    """Why vectors of a recipe are not searched on a GPU; None where they are."""
    if not RECIPES[plan.recipe].gpu:
        return f"FAISS has no GPU code for {plan.recipe}"
    if plan.recipe == "cagra" and not hasattr(dense.faiss_module(), "GpuIndexCagra"):
        return "this faiss has no cuVS; take the package faiss-gpu-cuvs in place of faiss-gpu"
    if plan.code and plan.code not in CODES:
        near = min(CODES, key=lambda size: ((plan.width or plan.dim) % size != 0, abs(size - plan.code)))
        return f"FAISS has no GPU code for codes of {plan.code} bytes; the nearest it has is {plan.recipe}:{near}"
    return None


_ALONE = RLock()
"""Held while a GPU works: neither its indexes nor what they work with may be used by two threads at once."""


class GpuIndex:
    """A copy on GPUs and its original, behind the interface of the other indexes.

    Args:
        original: What the files hold; answers what a GPU cannot, and gives vectors back.
        copy: FAISS's GPU index, or one that spreads over several.
    """

    def __init__(self, original: Any, copy: Any) -> None:
        self.original = original
        self.copy = dense.SignIndex(original.d, copy) if isinstance(original, dense.SignIndex) else copy
        graph = isinstance(original, dense.faiss_module().IndexHNSWCagra)
        self.most = CAGRA_K if graph else MAX_K
        """Rows that the copy can give."""

    @property
    def d(self) -> int:
        """Width of the vectors."""
        return int(self.original.d)

    @property
    def ntotal(self) -> int:
        """Vectors held."""
        return int(self.original.ntotal)

    def search(self, queries: np.ndarray, k: int, params: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """(scores, rows), each (n_queries, k), best first; -1 where there are fewer."""
        inner = getattr(params, "index_params", params)
        breadth = getattr(inner, "efSearch", 0)
        # GPU indexes take no selector: what is filtered is searched where the original is.
        able = k <= self.most and getattr(inner, "sel", None) is None and getattr(inner, "nprobe", 1) <= MAX_K
        if able and (copy := self.copy) is not None:
            try:
                with _ALONE:  # what the processor answers waits for no GPU
                    scores, rows = copy.search(queries, k, params=_in_cuvs(max(k, breadth)) if breadth else params)
                return scores, rows
            except (RuntimeError, MemoryError) as error:
                logger.warning("%d vectors are searched on the processor from now on: %s", self.ntotal, error)
                self.copy = None
        scores, rows = self.original.search(queries, k, params=params)
        return scores, rows

    def reconstruct_batch(self, rows: np.ndarray) -> np.ndarray:
        """(n, dim) float32, what the original knows of some vectors."""
        return dense.reconstructed(self.original, rows)


def to_gpu(index: Any, plan: Plan, devices: Sequence[int], *, replicate: bool = False) -> Any:
    """The index with a copy on GPUs, or as it came, with a logged reason, where that cannot be.

    Args:
        index: As `dense.read` or `dense.train` gives it.
        plan: How its vectors are stored.
        devices: GPUs by FAISS's numbers; none leaves the index as it is.
        replicate: Give each GPU all vectors, for more queries at once, instead of a share of them, for more vectors.
    """
    if not devices or isinstance(index, GpuIndex):
        return index
    if reason := why_not(plan):
        logger.warning("%s is searched on the processor: %s", plan.spelling, reason)
        return index
    if plan.recipe == "cagra" and index.ntotal < CAGRA_FROM:
        return index
    try:
        with _ALONE:
            return GpuIndex(index, _copied(index, plan, list(devices), replicate))
    except (RuntimeError, MemoryError) as error:  # as FAISS says that a GPU's memory is full, or that it lacks a kernel
        if plan.recipe in ("flat", "fp16") and (streamed := _streamed(index, plan, devices[0])) is not None:
            logger.warning("%d vectors of %s are brought to the GPU by parts: %s", index.ntotal, plan.spelling, error)
            return GpuIndex(index, streamed)
        logger.warning("%d vectors of %s are searched on the processor: %s", index.ntotal, plan.spelling, error)
        return index


def to_cpu(index: Any) -> Any:
    """The original of an index with a copy on GPUs; other indexes as they came. Only originals can be written."""
    return index.original if isinstance(index, GpuIndex) else index


def train(plan: Plan, sample: np.ndarray, devices: Sequence[int]) -> Any:
    """Like `dense.train`, on the first GPU where FAISS learns there: cells and product-quantised codes."""
    if plan.recipe == "cagra" and (
        reason := why_not(plan) if devices else "no GPU is used; ask for one: --device cuda"
    ):
        logger.warning("graphs of cagra will be made on the processor, which takes long: %s", reason)
    if not devices or why_not(plan) or plan.width or not (plan.lists or plan.code) or len(sample) < plan.needed:
        return dense.train(plan, sample)
    faiss = dense.faiss_module()
    empty = faiss.index_factory(plan.dim, plan.factory, faiss.METRIC_INNER_PRODUCT)
    try:
        with _ALONE:
            copy = _copied(empty, plan, list(devices[:1]), False)
            copy.train(np.ascontiguousarray(sample, dtype=np.float32))
            return faiss.index_gpu_to_cpu(copy)
    except (RuntimeError, MemoryError) as error:
        logger.warning("%s is learnt on the processor: %s", plan.spelling, error)
        return dense.train(plan, sample)


def encode(template: Any, vectors: Iterable[np.ndarray], count: int, plan: Plan, devices: Sequence[int]) -> Any:
    """Like `dense.encode`, with codes and graphs made on the first GPU where FAISS makes them there.

    Args:
        template: The trained, empty index.
        vectors: (n, dim) arrays of any float type, one after another.
        count: How many there are in all.
        plan: How they are stored.
        devices: GPUs by FAISS's numbers.

    Returns:
        An index that can be written.
    """
    index = dense.empty(template)
    able = devices and not why_not(plan)
    if able and plan.recipe == "cagra" and count >= CAGRA_FROM:
        return _graph(index, vectors, count, devices[0])
    if able and (plan.lists or plan.code) and count >= ENCODED_FROM:
        return _encoded(index, vectors, plan, devices[0])
    for some in vectors:
        dense.extend(index, some)
    return index


def _encoded(index: Any, vectors: Iterable[np.ndarray], plan: Plan, device: int) -> Any:
    """An empty index with these vectors, on a GPU as long as that goes well and on the processor from there on."""
    copy: Any = None
    with _ALONE:
        try:
            copy = _copied(index, plan, [device], False)
        except (RuntimeError, MemoryError) as error:
            logger.warning("vectors of %s are encoded on the processor: %s", plan.spelling, error)
        total = 0
        for some in vectors:
            total += len(some)
            if copy is not None:
                try:
                    dense.extend(copy, some)
                    continue
                except (RuntimeError, MemoryError) as error:
                    logger.warning("vectors of %s are encoded on the processor: %s", plan.spelling, error)
                    index, copy = dense.faiss_module().index_gpu_to_cpu(copy), None
                    some = some[len(some) - (total - index.ntotal) :]
            dense.extend(index, some)
        return index if copy is None else dense.faiss_module().index_gpu_to_cpu(copy)


Knn = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""(queries, vectors, k) -> (scores, positions), each (n_queries, k), best first."""


def exact(vectors: np.ndarray, queries: np.ndarray, k: int, knn: Knn, chunk: int | None = None) -> tuple[Any, Any]:
    """The k best of vectors that are nowhere indexed, some of them on the GPU at a time.

    Args:
        vectors: (n, dim) float16 or float32, may be memory-mapped.
        queries: (n_queries, dim) float32.
        k: Rows a query.
        knn: What compares; see `gpu_knn`.
        chunk: Vectors at a time; None takes a gigabyte of them.

    Returns:
        (scores, positions): float32 and int64, each (n_queries, min(k, n)), best first; equal scores by position.
    """
    k = min(k, len(vectors))
    best_scores, best = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    size = chunk or max(1, KNN_BYTES // max(1, vectors.itemsize * vectors.shape[1]))
    for start in range(0, len(vectors), size):
        some = np.ascontiguousarray(vectors[start : start + size])
        scores, found = knn(queries, some, min(k, len(some)))
        scores = np.concatenate([best_scores, scores], axis=1)
        rows = np.concatenate([best, found + start], axis=1)
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        best_scores, best = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    return best_scores, best


def gpu_knn(device: int = 0) -> Knn:
    """FAISS's brute force on one GPU, for `exact`, with k up to MAX_K."""
    faiss = dense.faiss_module()
    resources = _resources(device)

    def knn(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if k > MAX_K:
            raise InputError(f"k is {k}; FAISS selects up to {MAX_K} rows on a GPU")
        # FAISS wants both sides of one type, and halving queries loses less than doubling vectors costs.
        asked = np.ascontiguousarray(queries, dtype=vectors.dtype)
        scores, rows = faiss.knn_gpu(resources, asked, vectors, k, metric=faiss.METRIC_INNER_PRODUCT, device=device)
        return scores, rows

    return knn


@dataclass
class GpuSegment:
    """A segment whose index has a copy on GPUs, made when it is first searched."""

    segment: dense.Segment
    plan: Plan
    devices: Sequence[int]
    replicate: bool = False
    first_row: int = field(init=False)
    count: int = field(init=False)
    _index: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.first_row, self.count = self.segment.first_row, self.segment.count

    @property
    def index(self) -> Any:
        """The index, copied."""
        with _ALONE:
            if self._index is None:
                self._index = to_gpu(self.segment.index, self.plan, self.devices, replicate=self.replicate)
            return self._index

    def let_go(self) -> None:
        """Free the GPUs' memory."""
        self._index = None

    @property
    def rows(self) -> np.ndarray | None:
        """(count,) int64, the row of every position; None when they follow each other from `first_row`."""
        return self.segment.rows

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """(n, dim) float32, as exact as they are kept."""
        return self.segment.vectors(positions)


class Gpus:
    """The GPUs that an index is searched on, and the segments that have copies there.

    Args:
        device: As `device_numbers` takes it.
        replicate: Give each GPU all vectors instead of a share of them.
    """

    def __init__(self, device: str | None, *, replicate: bool = False) -> None:
        self.devices = device_numbers(device)
        self._replicate = replicate
        self._held: dict[int, GpuSegment] = {}

    def hold(self, segments: Sequence[dense.Segment], plan: Plan) -> Sequence[dense.Segment]:
        """These segments for searching; copies of those that came before stay, others are let go of."""
        if not self.devices:
            return segments
        # By identity: a segment that did not change is the same object in the next commit.
        self._held = {
            id(segment): self._held.get(id(segment)) or GpuSegment(segment, plan, self.devices, self._replicate)
            for segment in segments
        }
        return list(self._held.values())

    def let_go(self) -> None:
        """Free the GPUs' memory."""
        for segment in self._held.values():
            segment.let_go()
        self._held.clear()


@cache
def _resources(device: int) -> Any:
    """What FAISS works with on a GPU; one for all indexes there, for each sets 1.5 GB of the GPU's memory aside."""
    return dense.faiss_module().StandardGpuResources()


def _copied(index: Any, plan: Plan, devices: list[int], replicate: bool) -> Any:
    """FAISS's index on the GPUs; without shares of graphs, which FAISS cannot make."""
    if len(devices) > 1 and (replicate or plan.recipe == "cagra"):
        return Replicas([_copied(index, plan, [device], False) for device in devices])
    faiss = dense.faiss_module()
    source = index.binary if plan.recipe == "binary" else index
    if plan.recipe == "int8":
        source = as_one_cell(index)
    if plan.recipe == "cagra" and not index.base_level_only:
        # A graph that was made on the processor has vectors with fewer links than cuVS takes for granted.
        return _made_by_cuvs(dense.flat_view(faiss.downcast_index(index.storage)), devices[0])
    options = faiss.GpuMultipleClonerOptions()
    options.shard, options.useFloat16 = True, plan.code >= HALF_TABLES
    options.use_cuvs = False  # it learns otherwise, and from fewer vectors
    # FAISS spreads the others over several GPUs itself, but would leave half-precision vectors on the processor.
    if plan.recipe == "fp16" and len(devices) > 1:
        return _spread(index, devices, options)
    resources = [_resources(device) for device in devices]
    return faiss.index_cpu_to_gpu_multiple_py(resources, source, options, devices)


class Replicas:
    """The same index on several GPUs, each of which answers its share of the queries.

    FAISS's own takes no search parameters.
    """

    def __init__(self, copies: Sequence[Any]) -> None:
        self.copies = copies

    def search(self, queries: np.ndarray, k: int, params: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """(scores, rows), each (n_queries, k), best first."""
        shares = np.array_split(queries, min(len(queries), len(self.copies)))
        with ThreadPoolExecutor(len(shares)) as pool:
            found = list(pool.map(lambda copy, share: copy.search(share, k, params=params), self.copies, shares))
        return np.concatenate([scores for scores, _ in found]), np.concatenate([rows for _, rows in found])


def _graph(index: Any, vectors: Iterable[np.ndarray], count: int, device: int) -> Any:
    """The empty index given, with a graph of these vectors that cuVS made, or FAISS where cuVS fails."""
    every, start = np.empty((count, index.d), np.float32), 0
    for some in vectors:
        every[start : start + len(some)] = some
        start += len(some)
    try:
        with _ALONE:
            copy = _made_by_cuvs(every, device)
            index.base_level_only = True  # or FAISS would make upper levels of a graph that is searched without
            copy.copyTo(index)
        return index
    except (RuntimeError, MemoryError) as error:
        logger.warning("the graph of %d vectors is made on the processor, which takes long: %s", count, error)
    index.base_level_only = False
    index.reset()
    dense.extend(index, every)
    return index


def _made_by_cuvs(vectors: np.ndarray, device: int) -> Any:
    """A graph on a GPU, of (n, dim) float32."""
    faiss = dense.faiss_module()
    config = faiss.GpuIndexCagraConfig()
    config.device, config.graph_degree = device, dense.CAGRA_LINKS
    copy = faiss.GpuIndexCagra(_resources(device), vectors.shape[1], faiss.METRIC_INNER_PRODUCT, config)
    copy.train(vectors)
    return copy


def _in_cuvs(breadth: int) -> Any:
    """What a search in a graph on a GPU takes: breadths are multiples of 32 there."""
    params = dense.faiss_module().SearchParametersCagra()
    params.itopk_size = 32 * -(-breadth // 32)
    return params


@dataclass(frozen=True)
class Streamed:
    """Vectors that do not fit into a GPU, compared there by parts where queries are many enough (see `exact`)."""

    original: Any
    vectors: np.ndarray
    knn: Knn

    def search(self, queries: np.ndarray, k: int, params: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """(scores, rows), each (n_queries, k), best first."""
        if len(queries) < STREAMED_FROM:
            scores, rows = self.original.search(queries, k, params=params)
        else:
            scores, rows = exact(self.vectors, queries, k, self.knn)
        return scores, rows


def _streamed(index: Any, plan: Plan, device: int) -> Streamed | None:
    """That, or None where the GPU cannot do even that."""
    vectors = dense.flat_view(index) if plan.recipe == "flat" else _codes(index).view(np.float16)
    try:
        knn = gpu_knn(device)
        knn(np.ascontiguousarray(vectors[:1], dtype=np.float32), vectors[:1], 1)
    except (RuntimeError, MemoryError):
        return None
    return Streamed(index, vectors, knn)


def _spread(index: Any, devices: list[int], options: Any) -> Any:
    """Half-precision vectors, a share of them on each GPU."""
    faiss = dense.faiss_module()
    whole = faiss.IndexShards(index.d, True, True)
    bounds = [number * index.ntotal // len(devices) for number in range(len(devices) + 1)]
    for number, device in enumerate(devices):
        part = part_of(index, bounds[number], bounds[number + 1])
        whole.add_shard(faiss.index_cpu_to_gpu(_resources(device), device, part, options))
    return whole


def part_of(index: Any, start: int, stop: int) -> Any:
    """Some rows of a scalar-quantised index as an index of its own, with the same codes."""
    faiss = dense.faiss_module()
    part = faiss.IndexScalarQuantizer(index.d, index.sq.qtype, index.metric_type)
    part.sq, part.is_trained = index.sq, True
    codes = _codes(index)[start:stop]
    part.add_sa_codes(codes)
    return part


def as_one_cell(index: Any) -> Any:
    """A scalar-quantised index as an inverted file of one cell with the same codes: the form FAISS has GPU code for."""
    faiss = dense.faiss_module()
    cell = faiss.IndexFlatIP(index.d)
    cell.add(np.zeros((1, index.d), dtype=np.float32))
    # by_residual is off: codes are of the vectors themselves, not of what is left beside the cell's centre.
    whole = faiss.IndexIVFScalarQuantizer(cell, index.d, 1, index.sq.qtype, index.metric_type, False)
    cell.this.disown()
    whole.own_fields = True
    whole.sq, whole.is_trained = index.sq, True
    rows, codes = np.arange(index.ntotal, dtype=np.int64), _codes(index)
    whole.invlists.add_entries(0, index.ntotal, faiss.swig_ptr(rows), faiss.swig_ptr(codes))
    whole.ntotal = index.ntotal
    return whole


def _codes(index: Any) -> np.ndarray:
    """(ntotal, bytes) uint8, the codes of a scalar-quantised index, where they lie."""
    faiss = dense.faiss_module()
    if not index.ntotal:
        return np.empty((0, index.code_size), np.uint8)
    flat = faiss.rev_swig_ptr(index.codes.data(), index.ntotal * index.code_size)
    return np.asarray(flat).reshape(index.ntotal, index.code_size)
