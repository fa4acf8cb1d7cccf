"""Texts in batches: of similar length, on as many threads as help, in halves where memory is too small."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np

from searchkit.errors import InputError
from searchkit.models.runtime import Runtime

logger = logging.getLogger(__name__)

Compute = Callable[[list[int]], np.ndarray]
"""The vectors of the texts at some positions, one a row; MemoryError when those are too many."""


class Batches:
    """Batches as a runtime can take them.

    Args:
        runtime: Says how many texts fit into a batch, and how many threads help.
        token_budget: Padded tokens in a batch; None is the runtime's. It is halved when memory is too small.
    """

    def __init__(self, runtime: Runtime, token_budget: int | None) -> None:
        self._runtime = runtime
        self.token_budget = token_budget or runtime.token_budget

    def rows(
        self, lengths: Sequence[int], width: int, compute: Compute, on_batch: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """The (len(lengths), width) float32 unit rows of texts.

        Args:
            lengths: Tokens of each text.
            width: How many leading dimensions are kept.
            compute: Computes their vectors.
            on_batch: Called after every batch with the number of texts in it.

        Raises:
            InputError: A vector is zero or not finite.
        """
        rows = np.empty((len(lengths), width), dtype=np.float32)
        with closing(self._computed(lengths, lambda batch: (batch, self._halved(batch, compute)))) as computed:
            for batch, vectors in computed:
                rows[batch] = unit_rows(vectors[:, :width])
                if on_batch:
                    on_batch(len(batch))
        return rows

    def cut(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Positions in batches of similar length, longest first, so that a batch too large for memory shows at once."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        start = 0
        while start < len(order):
            size = max(1, min(self.token_budget // max(1, lengths[order[start]]), self._runtime.most_texts))
            yield order[start : start + size]
            start += size

    def _computed(
        self, lengths: Sequence[int], compute: Callable[[list[int]], tuple[list[int], np.ndarray]]
    ) -> Generator[tuple[list[int], np.ndarray], None, None]:
        """Each batch with its vectors, from as many threads as the runtime takes."""
        small = sum(lengths) <= self.token_budget and len(lengths) <= self._runtime.most_texts
        if self._runtime.workers == 1 or small:
            # One after another, so that a budget cut for memory holds for the rest.
            yield from map(compute, self.cut(lengths))
            return
        pool = ThreadPoolExecutor(self._runtime.workers)
        try:
            yield from pool.map(compute, self.cut(lengths))
        finally:
            pool.shutdown(cancel_futures=True)

    def _halved(self, batch: list[int], compute: Compute) -> np.ndarray:
        """What `compute` gives for a batch, in halves where memory is too small for it."""
        try:
            return compute(batch)
        except MemoryError:
            if len(batch) == 1:
                raise
            self.token_budget = max(1, self.token_budget // 2)
            logger.warning("out of memory: continuing with batches of %d tokens", self.token_budget)
            middle = len(batch) // 2
            return np.concatenate([self._halved(batch[:middle], compute), self._halved(batch[middle:], compute)])


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Scale rows to length 1, as float32; InputError for a row that is zero or not finite."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = ~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0)
    if bad.any():
        raise InputError(
            f"the model returned {int(bad.sum())} of {len(vectors)} vectors that are zero or not finite; "
            "no search would ever return them. Try --dtype float32"
        )
    return np.asarray(vectors / lengths)
