"""Segments on disk, and in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from searchkit.indexer.vectors import faiss_index, segments
from searchkit.indexer.vectors.backend import VectorBackend, VectorIndex
from searchkit.indexer.vectors.faiss_index import FaissBackend, FaissIndex
from searchkit.indexer.vectors.recipes import Plan, plan
from searchkit.indexer.vectors.segments import DiskSegment


@dataclass
class InMemory:
    """An index as a segment whose vectors are those that it returns."""

    index: VectorIndex
    first_row: int = 0
    rows: np.ndarray | None = None

    @property
    def count(self) -> int:
        return len(self.index)

    @property
    def plan(self) -> Plan:
        return self.index.plan

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        return self.index.vectors(positions)


def flat(dim: int) -> FaissIndex:
    """An empty flat index."""
    return faiss_index.train(Plan("flat", dim), np.empty((0, dim), np.float32))


def built(recipe: str, vectors: np.ndarray) -> FaissIndex:
    """An index trained on the vectors it holds."""
    index = faiss_index.train(plan(recipe, vectors.shape[1], len(vectors)), vectors)
    index.add(vectors)
    return index


def in_segments(
    folder: Path, vectors: np.ndarray, cuts: Sequence[int] = (), template: VectorIndex | None = None, *,
    rows: np.ndarray | None = None, keep_vectors: bool = True, backend: VectorBackend | None = None,
) -> list[DiskSegment]:  # fmt: skip
    """Vectors on disk, cut into segments; the document of a row is half of it, rounded down."""
    backend = backend or FaissBackend()
    template = backend.train(Plan("flat", vectors.shape[1]), vectors[:0]) if template is None else template
    rows = np.arange(len(vectors)) if rows is None else rows
    written = []
    for start, stop in pairwise([0, *cuts, len(vectors)]):
        mine = rows[start:stop]
        entry = segments.write_segment(
            folder, backend, template, [vectors[start:stop]], mine // 2, mine, keep_vectors=keep_vectors
        )
        written.append(DiskSegment(folder / entry.name, entry, template.plan, backend))
    return written


def again(segment: DiskSegment) -> DiskSegment:
    """The same segment, none of its files opened."""
    return DiskSegment(segment.folder, segment.entry, segment.plan, segment.backend)
