"""Segments on disk."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.indexer.vectors import segments
from searchkit.indexer.vectors.recipes import Plan
from searchkit.indexer.vectors.segments import DiskSegment


def in_segments(
    folder: Path, vectors: np.ndarray, cuts: Sequence[int] = (), plan: Plan | None = None, template: Any = None,
    *, rows: np.ndarray | None = None, keep_vectors: bool = True,
) -> list[DiskSegment]:  # fmt: skip
    """Vectors on disk, cut into segments; the document of a row is half of it, rounded down."""
    plan = plan or Plan("flat", vectors.shape[1])
    rows = np.arange(len(vectors)) if rows is None else rows
    found = []
    for start, stop in pairwise([0, *cuts, len(vectors)]):
        mine = rows[start:stop]
        entry = segments.write_segment(
            folder, plan, template, [vectors[start:stop]], mine // 2, mine, keep_vectors=keep_vectors
        )
        found.append(DiskSegment(folder / entry.name, entry, plan))
    return found


def again(segment: DiskSegment) -> DiskSegment:
    """The same segment, none of its files opened."""
    return DiskSegment(segment.folder, segment.entry, segment.plan)
