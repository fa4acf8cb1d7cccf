"""Segments on disk and in memory, and small index folders without a model."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from searchkit.indexer.documents import NewDocument
from searchkit.indexer.rewriting import rewrite
from searchkit.indexer.store import Store
from searchkit.indexer.vectors import faiss_index, segments
from searchkit.indexer.vectors.backend import VectorBackend, VectorIndex
from searchkit.indexer.vectors.faiss_index import FaissBackend, FaissIndex
from searchkit.indexer.vectors.recipes import Plan, plan
from searchkit.indexer.vectors.segments import DiskSegment

if TYPE_CHECKING:
    import pytest

TWO_PASSAGES = "Bread rises. Yeast makes gas."


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


def change(folder: Path, statement: str) -> None:
    """Damage a database; the statement has to change something."""
    with closing(sqlite3.connect(folder / "index.db")) as db, db:
        assert db.execute(statement).rowcount > 0


def document(name: str, text: str = TWO_PASSAGES, spans: tuple[tuple[int, int], ...] = ((0, 12), (13, 29))) -> Any:
    """A document of two passages."""
    return NewDocument(name, f"Title {name}", text, json.dumps({"n": name}), f"sum of {name}", list(spans))


def vectors_in(opened: Store) -> np.ndarray:
    """All that its segments hold."""
    found = opened.snapshot().segments
    return np.concatenate([segment.vectors(np.arange(segment.count)) for segment in found])


def compact(opened: Store, **options: Any) -> None:
    """Write it again without what is deleted."""
    rewrite(opened, opened.template(), purge=True, **options)


def merge_all(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge its segments, few as they are."""
    with monkeypatch.context() as patch:
        patch.setattr(segments, "LEVEL", 2)
        opened.merge_small_segments()


def segment_files(folder: Path) -> list[Path]:
    """The vectors of an index."""
    return sorted(folder.glob("segments/*/dense.faiss"))
