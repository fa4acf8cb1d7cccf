"""FAISS on GPUs: a copy there answers what it can, and the index on the CPU answers the rest.

Files stay those of the CPU. GPU indexes take no selectors (so filtered searches run on the CPU; few deleted rows are
fetched too and left out), return at most MAX_K rows, and cannot be written.

A graph of cuVS (the recipe "cagra") is saved in the form that FAISS searches on the CPU too. Where there is no cuVS, or
too few vectors to make it worthwhile, FAISS builds the graph on the CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from searchkit.indexer.allowed import AllowedRows
from searchkit.indexer.vectors import faiss_copies as copies
from searchkit.indexer.vectors import faiss_index
from searchkit.indexer.vectors.backend import VectorIndex
from searchkit.indexer.vectors.faiss_copies import ALONE, FAILURES, MAX_K
from searchkit.indexer.vectors.faiss_index import FaissBackend, FaissIndex
from searchkit.indexer.vectors.faiss_library import faiss_module
from searchkit.indexer.vectors.recipes import RECIPES, Plan, Tuning

logger = logging.getLogger(__name__)

CAGRA_K = 512
"""Rows that a search in a graph of cuVS can return, which is also the greatest breadth of one block of threads."""

CAGRA_FROM = 1024
"""Vectors from which cuVS builds graphs: smaller ones take no time, and of very small ones it builds none."""

ENCODED_FROM = 65_536
"""Vectors from which a GPU encodes; a guess: preparing it takes about as long as encoding as many on the CPU."""

CODES = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
"""Bytes of product-quantized codes that FAISS has GPU code for, all with 8 bits per centroid, as ours have."""


def unsupported(plan: Plan) -> str | None:
    """Why vectors of a plan are not searched on a GPU; None where they are."""
    if not RECIPES[plan.recipe].gpu:
        return f"FAISS has no GPU code for {plan.recipe}"
    if plan.recipe == "cagra" and not hasattr(faiss_module(), "GpuIndexCagra"):
        return "this faiss has no cuVS; install the package faiss-gpu-cuvs instead of faiss-gpu"
    if plan.code and plan.code not in CODES:
        near = min(CODES, key=lambda size: ((plan.width or plan.dim) % size != 0, abs(size - plan.code)))
        return f"FAISS has no GPU code for codes of {plan.code} bytes; the nearest it has is {plan.recipe}:{near}"
    return None


class GpuIndex(FaissIndex):
    """An index of FAISS with a copy on GPUs, which is made when it is first searched.

    Args:
        plan: How the vectors are stored.
        raw: The index on the CPU; answers what a GPU cannot, and returns vectors.
        devices: GPUs by FAISS's numbers.
        replicate: Give each GPU all vectors instead of a share of them.
    """

    def __init__(self, plan: Plan, raw: Any, devices: Sequence[int], *, replicate: bool = False) -> None:
        super().__init__(plan, raw)
        self._devices, self._replicate = devices, replicate
        self._most = CAGRA_K if plan.recipe == "cagra" else MAX_K  # rows that the copy can return
        self._copy: Any = None
        self._tried = False

    @property
    def copy(self) -> Any:
        """The copy; None, with a logged reason, where there can be none."""
        if not self._tried:
            with ALONE:
                if not self._tried:
                    self._copy, self._tried = self._copied(), True
        return self._copy

    def release(self) -> None:
        """Free the GPUs' memory."""
        self._copy, self._tried = None, False

    def search(
        self, queries: np.ndarray, k: int, *, tuning: Tuning, allowed: AllowedRows | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best positions, from the copy where it can return them."""
        # GPU indexes take no selector: where few positions are not allowed, these are fetched too and left out.
        depth = k if allowed is None else k + len(allowed) - allowed.count
        able = depth <= self._most and min(tuning.probes, self.plan.lists) <= MAX_K
        if able and (copy := self.copy) is not None:
            graph = RECIPES[self.plan.recipe].graph
            params = copies.in_cuvs(max(depth, tuning.ef)) if graph else faiss_index.unfiltered(self.plan, tuning)
            try:
                with ALONE:  # what the CPU answers waits for no GPU
                    scores, positions = copy.search(queries, depth, params=params)
                return (positions, scores) if allowed is None else _without(positions, scores, k, allowed.mask)
            except FAILURES as error:
                logger.warning("%d vectors are searched on the CPU from now on: %s", len(self), error)
                self._copy = None
        return super().search(queries, k, tuning=tuning, allowed=allowed)

    def _copied(self) -> Any:
        plan = self.plan
        if reason := unsupported(plan):
            logger.warning("%s is searched on the CPU: %s", plan.spelling, reason)
            return None
        if plan.recipe == "cagra" and len(self) < CAGRA_FROM:
            return None
        try:
            return copies.copied(self.raw, plan, list(self._devices), replicate=self._replicate)
        except FAILURES as error:  # a full GPU, or a kernel it lacks
            if plan.recipe in ("flat", "fp16") and (streamed := copies.streamed(self.raw, plan, self._devices[0])):
                logger.warning("%d vectors of %s are copied to the GPU in parts: %s", len(self), plan.spelling, error)
                return streamed
            logger.warning("%d vectors of %s are searched on the CPU: %s", len(self), plan.spelling, error)
            return None


def _without(positions: np.ndarray, scores: np.ndarray, k: int, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The k best that a mask allows."""
    scores = np.where((positions >= 0) & allowed[positions], scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    positions, scores = np.take_along_axis(positions, order, 1), np.take_along_axis(scores, order, 1)
    return np.where(np.isneginf(scores), -1, positions), scores


class GpuBackend(FaissBackend):
    """FAISS on GPUs, as far as it can train, encode and search there.

    Args:
        devices: GPUs by FAISS's numbers, one or more.
        replicate: Give each GPU all vectors instead of a share of them.
    """

    def __init__(self, devices: Sequence[int], *, replicate: bool = False) -> None:
        self.devices, self.replicate = list(devices), replicate
        self._opened: WeakSet[GpuIndex] = WeakSet()

    def train(self, plan: Plan, sample: np.ndarray) -> FaissIndex:
        """An empty index, IVF lists and product-quantized codes trained on the first GPU."""
        reason = unsupported(plan)
        if plan.recipe == "cagra" and reason:
            logger.warning("graphs of cagra will be built on the CPU, which takes long: %s", reason)
        if reason or plan.width or not (plan.lists or plan.code) or len(sample) < plan.needed:
            return faiss_index.train(plan, sample)
        faiss = faiss_module()
        empty = faiss.index_factory(plan.dim, plan.factory, faiss.METRIC_INNER_PRODUCT)
        try:
            with ALONE:
                copy = copies.copied(empty, plan, self.devices[:1])
                copy.train(np.ascontiguousarray(sample, dtype=np.float32))
                return FaissIndex(plan, faiss.index_gpu_to_cpu(copy))
        except FAILURES as error:
            logger.warning("%s is trained on the CPU: %s", plan.spelling, error)
            return faiss_index.train(plan, sample)

    def build(self, template: VectorIndex, batches: Iterable[np.ndarray], count: int) -> GpuIndex:
        """A new index, its codes or graph made on the first GPU where FAISS makes them there."""
        empty, plan = template.empty(), template.plan
        assert isinstance(empty, FaissIndex)
        able = not unsupported(plan)
        if able and plan.recipe == "cagra" and count >= CAGRA_FROM:
            raw = copies.graph(empty.raw, batches, count, self.devices[0])
        elif able and (plan.lists or plan.code) and count >= ENCODED_FROM:
            raw = copies.encoded(empty.raw, batches, plan, self.devices[0])
        else:
            raw = empty.raw
            for batch in batches:
                faiss_index.add(raw, batch)
        return self._searched(plan, raw)

    def open(self, file: Path, plan: Plan, *, mapped: bool = True) -> FaissIndex:
        """Open an index; one that is mapped, to be searched, is copied to the GPUs when it first is."""
        raw = faiss_index.read(file, plan, mapped=mapped)
        return self._searched(plan, raw) if mapped else FaissIndex(plan, raw)

    def accelerates(self, plan: Plan) -> bool:
        """Whether FAISS has GPU code for the plan."""
        return unsupported(plan) is None

    def close(self) -> None:
        """Free the GPUs' memory."""
        for index in self._opened:
            index.release()

    def _searched(self, plan: Plan, raw: Any) -> GpuIndex:
        index = GpuIndex(plan, raw, self.devices, replicate=self.replicate)
        self._opened.add(index)
        return index
