"""Vectors on GPUs: what FAISS can search there is copied to them, the rest stays where it is and says why.

The files and what the processor searches stay as they are: a copy on a GPU answers what it can, and hands the rest to
its original. GPU indexes take no selectors (so every filter and every deletion means the processor), give at most
MAX_K rows, and cannot be written: convert them with `to_cpu` first.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from searchkit.indexer import dense
from searchkit.indexer.recipes import RECIPES, Plan

logger = logging.getLogger(__name__)

MAX_K = 2048
"""Rows, and cells visited, that FAISS's GPU selection can give."""

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
        raise ValueError(f"device is {device!r}; expected cuda, cuda:1 or cuda:0,1")
    there = int(getattr(dense.faiss_module(), "get_num_gpus", int)())
    wanted = list(dict.fromkeys(int(one) for one in found[1].split(","))) if found[1] else list(range(there))
    if not there:
        # No warning: a model on the GPU beside FAISS for the processor is a usual choice.
        logger.info(
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
    if plan.code and plan.code not in CODES:
        near = min(CODES, key=lambda size: ((plan.width or plan.dim) % size != 0, abs(size - plan.code)))
        return f"FAISS has no GPU code for codes of {plan.code} bytes; the nearest it has is {plan.recipe}:{near}"
    return None


class GpuIndex:
    """A copy on GPUs and its original, behind the interface of the other indexes.

    Args:
        original: What the files hold; answers what a GPU cannot, and gives vectors back.
        copy: FAISS's GPU index, or one that spreads over several.
        resources: What the copy works with; held here, since FAISS only points to it.
        binary: Whether both hold signs (see :class:`searchkit.indexer.dense.SignIndex`).
    """

    def __init__(self, original: Any, copy: Any, resources: Sequence[Any] = ()) -> None:
        self.original, self.copy, self._resources = original, copy, resources
        self._signs = isinstance(original, dense.SignIndex)
        self._searched = dense.SignIndex(original.d, copy) if self._signs else copy

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
        # GPU indexes take no selector: what is filtered, or without deleted rows, is searched where the original is.
        if k > MAX_K or getattr(inner, "sel", None) is not None or getattr(inner, "nprobe", 1) > MAX_K:
            scores, rows = self.original.search(queries, k, params=params)
        else:
            scores, rows = self._searched.search(queries, k, params=params)
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
    try:
        return GpuIndex(index, *_copied(index, plan, list(devices), replicate))
    except (RuntimeError, MemoryError) as error:  # as FAISS says that a GPU's memory is full, or that it lacks a kernel
        logger.warning("%d vectors of %s are searched on the processor: %s", index.ntotal, plan.spelling, error)
        return index


def to_cpu(index: Any) -> Any:
    """The original of an index with a copy on GPUs; other indexes as they came. Only originals can be written."""
    return index.original if isinstance(index, GpuIndex) else index


def train(plan: Plan, sample: np.ndarray, devices: Sequence[int]) -> Any:
    """Like `dense.train`, on the first GPU where FAISS learns there: cells and product-quantised codes."""
    if not devices or why_not(plan) or plan.width or not (plan.cells or plan.code) or len(sample) < plan.needed:
        return dense.train(plan, sample)
    faiss = dense.faiss_module()
    empty = faiss.index_factory(plan.dim, plan.factory, faiss.METRIC_INNER_PRODUCT)
    copy, _resources = _copied(empty, plan, list(devices[:1]), False)
    copy.train(np.ascontiguousarray(sample, dtype=np.float32))
    return faiss.index_gpu_to_cpu(copy)


def encode(template: Any, vectors: np.ndarray, plan: Plan, devices: Sequence[int]) -> Any:
    """Like `dense.encode`, with the codes made on the first GPU where FAISS makes them there; comes as a CPU index."""
    if not devices or why_not(plan) or not (plan.cells or plan.code):
        return dense.encode(template, vectors)
    copy, _resources = _copied(template, plan, list(devices[:1]), False)
    dense.extend(copy, vectors)
    return dense.faiss_module().index_gpu_to_cpu(copy)


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
    resources = faiss.StandardGpuResources()

    def knn(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if k > MAX_K:
            raise ValueError(f"k is {k}; FAISS selects up to {MAX_K} rows on a GPU")
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

    def __post_init__(self) -> None:
        self.first_row, self.count = self.segment.first_row, self.segment.count

    @cached_property
    def index(self) -> Any:
        """The index, copied."""
        return to_gpu(self.segment.index, self.plan, self.devices, replicate=self.replicate)

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
            segment.__dict__.pop("index", None)
        self._held.clear()


def _copied(index: Any, plan: Plan, devices: list[int], replicate: bool) -> tuple[Any, list[Any]]:
    """(FAISS index on the GPUs, resources to hold on to)."""
    faiss = dense.faiss_module()
    source = index.binary if plan.recipe == "binary" else index
    if plan.recipe == "int8":
        source = as_one_cell(index)
    resources = [faiss.StandardGpuResources() for _ in devices]
    # FAISS spreads these over several GPUs itself, but would leave half-precision vectors on the processor.
    if plan.recipe == "fp16" and len(devices) > 1:
        return _spread(index, devices, resources, replicate), resources
    options = faiss.GpuMultipleClonerOptions()
    options.shard = not replicate
    options.useFloat16 = plan.code >= HALF_TABLES
    return faiss.index_cpu_to_gpu_multiple_py(resources, source, options, devices), resources


def _spread(index: Any, devices: list[int], resources: list[Any], replicate: bool) -> Any:
    """Half-precision vectors, all of them or a share on each GPU."""
    faiss = dense.faiss_module()
    whole = faiss.IndexReplicas(index.d, True) if replicate else faiss.IndexShards(index.d, True, True)
    bounds = [number * index.ntotal // len(devices) for number in range(len(devices) + 1)]
    for number, device in enumerate(devices):
        part = index if replicate else part_of(index, bounds[number], bounds[number + 1])
        copy = faiss.index_cpu_to_gpu(resources[number], device, part)
        whole.add_replica(copy) if replicate else whole.add_shard(copy)
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
