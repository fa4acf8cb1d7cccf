"""FAISS's indexes on GPUs: made from those on the CPU, and brought back.

All of it raises what FAISS raises (FAILURES) where a GPU's memory is full or lacks a kernel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from threading import RLock
from typing import Any

import numpy as np

from searchkit.indexer.errors import InputError
from searchkit.indexer.vectors import faiss_index
from searchkit.indexer.vectors.arrays import best
from searchkit.indexer.vectors.faiss_index import SignIndex
from searchkit.indexer.vectors.faiss_library import faiss_module
from searchkit.indexer.vectors.recipes import Plan

logger = logging.getLogger(__name__)

MAX_K = 2048
"""Rows, and lists visited, that FAISS's GPU selection can return."""

STREAMED_FROM = 64
"""Queries at once from which vectors that do not fit into a GPU are copied there in parts to be compared; a guess."""

HALF_TABLES = 56
"""Bytes of a code from which its lookup tables fit into a GPU's shared memory in half precision only."""

KNN_BYTES = 1 << 30
"""Vectors that `exact` has on the GPU at once."""

FAILURES = (RuntimeError, MemoryError)

ALONE = RLock()
"""Held while a GPU works: neither its indexes nor what they work with may be used by two threads at once."""

Knn = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""(queries, vectors, k) -> (scores, positions), each (n_queries, k), best first."""


@cache
def _resources(device: int) -> Any:
    """What FAISS works with on a GPU; one for all indexes there, since each reserves 1.5 GB of the GPU's memory."""
    return faiss_module().StandardGpuResources()


def copied(raw: Any, plan: Plan, devices: list[int], *, replicate: bool = False) -> Any:
    """FAISS's index on GPUs; graphs are replicated, since FAISS cannot split them."""
    if len(devices) > 1 and (replicate or plan.recipe == "cagra"):
        return Replicas([copied(raw, plan, [device]) for device in devices])
    faiss = faiss_module()
    if plan.recipe == "cagra" and not raw.base_level_only:
        # A graph that was built on the CPU has vectors with fewer links than cuVS takes for granted.
        return _built_by_cuvs(faiss_index.flat_view(faiss.downcast_index(raw.storage)), devices[0])
    source = as_single_list(raw) if plan.recipe == "int8" else raw.binary if plan.recipe == "binary" else raw
    options = faiss.GpuMultipleClonerOptions()
    options.shard, options.useFloat16 = True, plan.code >= HALF_TABLES
    options.use_cuvs = False  # it trains differently, and on fewer vectors
    # FAISS itself spreads the others over several GPUs, but would leave half-precision vectors on the CPU.
    if plan.recipe == "fp16" and len(devices) > 1:
        return _spread(raw, devices, options)
    resources = [_resources(device) for device in devices]
    copy = faiss.index_cpu_to_gpu_multiple_py(resources, source, options, devices)
    return SignIndex(raw.d, copy) if plan.recipe == "binary" else copy


class Replicas:
    """The same index on several GPUs, each of which answers its share of the queries.

    FAISS's own takes no search parameters.
    """

    def __init__(self, copies: Sequence[Any]) -> None:
        self.copies = copies

    def search(self, queries: np.ndarray, k: int, params: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """(scores, positions), each (n_queries, k), best first."""
        shares = np.array_split(queries, min(len(queries), len(self.copies)))
        with ThreadPoolExecutor(len(shares)) as pool:
            answers = list(pool.map(lambda copy, share: copy.search(share, k, params=params), self.copies, shares))
        return np.concatenate([scores for scores, _ in answers]), np.concatenate([rows for _, rows in answers])


# Encoding


def encoded(raw: Any, batches: Iterable[np.ndarray], plan: Plan, device: int) -> Any:
    """An empty index with these vectors, on a GPU as long as that works and on the CPU from there on."""
    copy: Any = None
    with ALONE:
        try:
            copy = copied(raw, plan, [device])
        except FAILURES as error:
            logger.warning("vectors of %s are encoded on the CPU: %s", plan.spelling, error)
        total = 0
        for batch in batches:
            total += len(batch)
            if copy is not None:
                try:
                    faiss_index.add(copy, batch)
                    continue
                except FAILURES as error:
                    logger.warning("vectors of %s are encoded on the CPU: %s", plan.spelling, error)
                    raw, copy = faiss_module().index_gpu_to_cpu(copy), None
                    batch = batch[len(batch) - (total - raw.ntotal) :]
            faiss_index.add(raw, batch)
        return raw if copy is None else faiss_module().index_gpu_to_cpu(copy)


def graph(raw: Any, batches: Iterable[np.ndarray], count: int, device: int) -> Any:
    """An empty index with a graph of these vectors that cuVS built, or FAISS where cuVS fails."""
    vectors, start = np.empty((count, raw.d), np.float32), 0
    for batch in batches:
        vectors[start : start + len(batch)] = batch
        start += len(batch)
    try:
        with ALONE:
            copy = _built_by_cuvs(vectors, device)
            raw.base_level_only = True  # or FAISS would build upper levels of a graph that is searched without
            copy.copyTo(raw)
        return raw
    except FAILURES as error:
        logger.warning("the graph of %d vectors is built on the CPU, which takes long: %s", count, error)
    raw.base_level_only = False
    raw.reset()
    faiss_index.add(raw, vectors)
    return raw


def _built_by_cuvs(vectors: np.ndarray, device: int) -> Any:
    """A graph on a GPU, of (n, dim) float32."""
    faiss = faiss_module()
    config = faiss.GpuIndexCagraConfig()
    config.device, config.graph_degree = device, faiss_index.CAGRA_LINKS
    copy = faiss.GpuIndexCagra(_resources(device), vectors.shape[1], faiss.METRIC_INNER_PRODUCT, config)
    copy.train(vectors)
    return copy


def in_cuvs(breadth: int) -> Any:
    """Parameters of a search in a graph on a GPU, where breadths are multiples of 32."""
    params = faiss_module().SearchParametersCagra()
    params.itopk_size = 32 * -(-breadth // 32)
    return params


# Exact search in parts


def exact(vectors: np.ndarray, queries: np.ndarray, k: int, knn: Knn, chunk: int | None = None) -> tuple[Any, Any]:
    """The k best of vectors that are in no index, some of them on the GPU at a time.

    Args:
        vectors: (n, dim) float16 or float32, may be memory-mapped.
        queries: (n_queries, dim) float32.
        k: Rows per query.
        knn: What compares; see `gpu_knn`.
        chunk: Vectors at a time; None takes a gigabyte of them.

    Returns:
        (scores, positions): float32 and int64, each (n_queries, min(k, n)), best first; equal scores by position.
    """
    k = min(k, len(vectors))
    best_rows, best_scores = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
    size = chunk or max(1, KNN_BYTES // max(1, vectors.itemsize * vectors.shape[1]))
    for start in range(0, len(vectors), size):
        part = np.ascontiguousarray(vectors[start : start + size])
        scores, rows = knn(queries, part, min(k, len(part)))
        scores, rows = np.concatenate([best_scores, scores], axis=1), np.concatenate([best_rows, rows + start], axis=1)
        best_rows, best_scores = best(rows, scores, k)
    return best_scores, best_rows


def gpu_knn(device: int = 0) -> Knn:
    """FAISS's brute force on one GPU, for `exact`, with k up to MAX_K."""
    faiss = faiss_module()
    resources = _resources(device)

    def knn(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if k > MAX_K:
            raise InputError(f"k is {k}; FAISS selects up to {MAX_K} rows on a GPU")
        # FAISS wants both sides of one type, and halving queries loses less than doubling vectors costs.
        queries = np.ascontiguousarray(queries, dtype=vectors.dtype)
        scores, rows = faiss.knn_gpu(resources, queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT, device=device)
        return scores, rows

    return knn


@dataclass(frozen=True)
class Streamed:
    """Vectors that do not fit into a GPU, compared there in parts where there are enough queries (see `exact`)."""

    raw: Any
    vectors: np.ndarray
    knn: Knn

    def search(self, queries: np.ndarray, k: int, params: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """(scores, positions), each (n_queries, k), best first."""
        if len(queries) < STREAMED_FROM:
            scores, positions = self.raw.search(queries, k, params=params)
        else:
            scores, positions = exact(self.vectors, queries, k, self.knn)
        return scores, positions


def streamed(raw: Any, plan: Plan, device: int) -> Streamed | None:
    """A Streamed copy of exact or half-precision vectors; None where the GPU cannot do even that."""
    vectors = faiss_index.flat_view(raw) if plan.recipe == "flat" else _codes(raw).view(np.float16)
    try:
        knn = gpu_knn(device)
        knn(np.ascontiguousarray(vectors[:1], dtype=np.float32), vectors[:1], 1)
    except FAILURES:
        return None
    return Streamed(raw, vectors, knn)


# Scalar-quantized indexes in the forms that GPUs take


def _spread(raw: Any, devices: list[int], options: Any) -> Any:
    """Half-precision vectors, a share of them on each GPU."""
    faiss = faiss_module()
    whole = faiss.IndexShards(raw.d, True, True)
    bounds = [number * raw.ntotal // len(devices) for number in range(len(devices) + 1)]
    for number, device in enumerate(devices):
        part = part_of(raw, bounds[number], bounds[number + 1])
        whole.add_shard(faiss.index_cpu_to_gpu(_resources(device), device, part, options))
    return whole


def part_of(raw: Any, start: int, stop: int) -> Any:
    """Some rows of a scalar-quantized index as an index of its own, with the same codes."""
    part = faiss_module().IndexScalarQuantizer(raw.d, raw.sq.qtype, raw.metric_type)
    part.sq, part.is_trained = raw.sq, True
    part.add_sa_codes(_codes(raw)[start:stop])
    return part


def as_single_list(raw: Any) -> Any:
    """A scalar-quantized index as an inverted file of one list with the same codes: FAISS has GPU code for that."""
    faiss = faiss_module()
    centroid = faiss.IndexFlatIP(raw.d)
    centroid.add(np.zeros((1, raw.d), dtype=np.float32))
    # by_residual is off: codes are of the vectors themselves, not of their differences from the centroid.
    whole = faiss.IndexIVFScalarQuantizer(centroid, raw.d, 1, raw.sq.qtype, raw.metric_type, False)
    centroid.this.disown()
    whole.own_fields = True
    whole.sq, whole.is_trained = raw.sq, True
    rows, codes = np.arange(raw.ntotal, dtype=np.int64), _codes(raw)
    whole.invlists.add_entries(0, raw.ntotal, faiss.swig_ptr(rows), faiss.swig_ptr(codes))
    whole.ntotal = raw.ntotal
    return whole


def _codes(raw: Any) -> np.ndarray:
    """(ntotal, bytes) uint8, the codes of a scalar-quantized index, where they are."""
    if not raw.ntotal:
        return np.empty((0, raw.code_size), np.uint8)
    flat = faiss_module().rev_swig_ptr(raw.codes.data(), raw.ntotal * raw.code_size)
    return np.asarray(flat).reshape(raw.ntotal, raw.code_size)
