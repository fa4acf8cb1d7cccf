"""The port that vector libraries implement: an index holds vectors, a backend makes, opens and merges indexes.

Everything above this folder works with these two alone. Metrics are inner products, positions count from 0 in the order
in which vectors were added, and files are written once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from searchkit.indexer.allowed import AllowedRows
from searchkit.indexer.files import Stamp
from searchkit.indexer.vectors.recipes import Plan, Tuning


class VectorIndex(Protocol):
    """Vectors of one plan, in memory or in a mapped file."""

    @property
    def plan(self) -> Plan:
        """How the vectors are stored."""

    @property
    def dim(self) -> int:
        """Width of the vectors."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in a file, which is about what it takes in memory."""

    def __len__(self) -> int:
        """Vectors held."""

    def add(self, vectors: np.ndarray) -> None:
        """Add vectors, (n, dim) of any float type, after those it holds; not to an index in a mapped file."""

    def search(
        self, queries: np.ndarray, k: int, *, tuning: Tuning, allowed: AllowedRows | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best positions of every query.

        Args:
            queries: (n_queries, dim) float32, contiguous.
            k: Positions per query, 1 to the number of vectors.
            tuning: How hard to search.
            allowed: Positions that may be returned; None allows all.

        Returns:
            (positions, scores): int64 and float32, each (n_queries, k), best first; position -1 where there are fewer.
        """

    def vectors(self, positions: np.ndarray | slice) -> np.ndarray:
        """(n, dim) float32: what it knows of some vectors, decoded; valid no longer than the index."""

    def score(self, query: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """(n,) float32: the inner product of one query (dim,) with some decoded vectors."""

    def empty(self) -> VectorIndex:
        """A new index of the same training, without vectors."""

    def save(self, file: Path) -> Stamp:
        """Write it to a new file and force that to the disk."""


class VectorBackend(Protocol):
    """What makes indexes, opens them and merges their files."""

    def train(self, plan: Plan, sample: np.ndarray) -> VectorIndex:
        """An empty index, trained where its recipe needs that: the template of all indexes of a plan.

        Args:
            plan: How vectors will be stored.
            sample: (n, dim) float32 unit rows to train on.

        Raises:
            InputError: The sample is too small for the recipe.
        """

    def build(self, template: VectorIndex, batches: Iterable[np.ndarray], count: int) -> VectorIndex:
        """A new index of a template's training with vectors, which come as (n, dim) arrays, `count` in all."""

    def write(self, template: VectorIndex, batches: Iterable[np.ndarray], count: int, file: Path) -> Stamp:
        """Like `build` and `save`; exact vectors are never held in memory all at once."""

    def open(self, file: Path, plan: Plan, *, mapped: bool = True) -> VectorIndex:
        """Open what `save`, `write` or `merge` wrote; compare its checksum first, since libraries trust their files.

        Args:
            file: The index.
            plan: How its vectors are stored.
            mapped: Leave the vectors on the disk and only search; False reads all, so that vectors can be added.
        """

    def merge(self, files: Sequence[Path], kept: Sequence[np.ndarray], plan: Plan, file: Path) -> Stamp:
        """Write one index with the codes of several as they are, in order: decoding and encoding would change some.

        Args:
            files: Indexes of one training.
            kept: For each of them a mask over its positions, False for those to leave out.
            plan: How they are stored; graphs cannot be merged.
            file: To write.
        """

    def gather(
        self,
        template: VectorIndex,
        sources: Sequence[VectorIndex],
        owners: np.ndarray,
        positions: np.ndarray,
        file: Path,
    ) -> Stamp:
        """Write one index with some vectors of several, in any order, codes as they are; graphs are linked again.

        Args:
            template: The trained, empty index that all of them began as copies of.
            sources: Open indexes.
            owners: (n,) int64, which of them each vector comes from.
            positions: (n,) int64, its position there.
            file: To write.
        """

    def accelerates(self, plan: Plan) -> bool:
        """Whether a GPU searches vectors stored by this plan."""

    def close(self) -> None:
        """Release what its indexes hold outside this process's memory."""
