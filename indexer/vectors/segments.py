"""Segments on disk: immutable folders of files that a commit names, checked when they are first needed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.indexer.errors import DamagedError
from searchkit.indexer.files import NewFile, Stamp, next_number, stamp, sync_folder, verify
from searchkit.indexer.vectors import faiss_gpu as gpu
from searchkit.indexer.vectors import faiss_index as dense
from searchkit.indexer.vectors.recipes import RECIPES, Plan

INDEX, VECTORS, DOCS, ROWS = "dense.faiss", "vectors.f16", "docs.i64", "rows.i64"
LEVEL = 8
"""So many neighbouring segments of similar size are merged, which leaves few segments and copies little."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A segment as a commit names it."""

    first_row: int
    count: int
    name: str
    files: dict[str, Stamp]


@dataclass
class DiskSegment:
    """One segment, its files opened, and checked against their checksums, when they are first needed.

    Args:
        folder: Where its files lie.
        entry: What the commit says of it.
        plan: How its vectors are stored.
    """

    folder: Path
    entry: Entry
    plan: Plan
    first_row: int = field(init=False)
    count: int = field(init=False)
    _sound: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.first_row, self.count = self.entry.first_row, self.entry.count

    @cached_property
    def index(self) -> Any:
        """The FAISS index, memory-mapped."""
        file = self._checked(INDEX)
        index = dense.read(file, self.plan)
        if index.ntotal != self.count or index.d != self.plan.dim:
            raise DamagedError(
                file, f"holds {index.ntotal} vectors of {index.d}, expected {self.count} of {self.plan.dim}"
            )
        return index

    @cached_property
    def docs(self) -> np.ndarray:
        """(count,) int64, the document of every passage."""
        return np.asarray(np.memmap(self._checked(DOCS), dtype="<i8", mode="r", shape=(self.count,)))

    @cached_property
    def rows(self) -> np.ndarray | None:
        """(count,) int64 in ascending order; None when they follow each other from `first_row`."""
        if ROWS not in self.entry.files:
            return None
        return np.asarray(np.memmap(self._checked(ROWS), dtype="<i8", mode="r", shape=(self.count,)))

    @cached_property
    def _raw(self) -> np.ndarray | None:
        if VECTORS not in self.entry.files:
            return None
        # As plain arrays: each look-up in a memmap object makes another of them, which takes longer than the look-up.
        return np.asarray(np.memmap(self._checked(VECTORS), dtype="<f2", mode="r", shape=(self.count, self.plan.dim)))

    @property
    def keeps_vectors(self) -> bool:
        """Whether the vectors can be had as they were, to half precision at least."""
        return RECIPES[self.plan.recipe].faithful or VECTORS in self.entry.files

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """(n, dim) float32, as exact as they are kept."""
        if self._raw is not None:
            return dense.widened(self._raw.take(positions, axis=0))  # three quarters of the time of raw[positions]
        return dense.reconstructed(self.index, positions)

    def runs(self, kept: np.ndarray) -> Iterator[np.ndarray]:
        """Those vectors that a mask (count,) keeps, some at a time, float32; of no use once the segment is gone."""
        for some in dense.runs(kept):
            if self._raw is not None:
                yield dense.widened(self._raw[some])
            elif self.plan.recipe == "flat":
                yield dense.flat_view(self.index)[some]
            else:
                yield self.vectors(np.arange(some.start, some.stop) if isinstance(some, slice) else some)

    def halves(self, kept: np.ndarray) -> Iterator[np.ndarray]:
        """Likewise in half precision, where they are kept so."""
        assert self._raw is not None
        for some in dense.runs(kept):
            yield self._raw[some]

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Where in the segment these of its rows are."""
        return rows - self.first_row if self.rows is None else np.searchsorted(self.rows, rows)

    def check(self) -> None:
        """Compare every file with its checksum, again if it was before."""
        self._sound.clear()
        for name in self.entry.files:
            self._checked(name)

    def _checked(self, name: str) -> Path:
        if name not in self._sound:
            verify(self.folder / name, self.entry.files[name])
            self._sound.add(name)
        return self.folder / name


def owners(segments: Sequence[DiskSegment], rows: np.ndarray) -> np.ndarray:
    """For rows of any shape the number of the segment that holds each, same shape."""
    firsts = np.array([segment.first_row for segment in segments], dtype=np.int64)
    return np.searchsorted(firsts, rows, side="right") - 1


def documents_of(segments: Sequence[DiskSegment], rows: np.ndarray) -> np.ndarray:
    """For passage rows of any shape the positions of their documents, same shape, int64; -1 for row -1."""
    there = rows >= 0
    if len(segments) == 1 and there.all():  # a compacted index, where this is most of what a small search takes
        return np.asarray(segments[0].docs[segments[0].positions(rows)])
    found = np.full(rows.shape, -1, dtype=np.int64)
    owner = np.where(there, owners(segments, rows), -1)
    for number in set(owner[there].tolist()):
        segment, mine = segments[number], owner == number
        found[mine] = segment.docs[segment.positions(rows[mine])]
    return found


def score(segments: Sequence[DiskSegment], query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The inner product of one query (dim,) with some rows (n,), as (n,) float32, as exact as vectors are kept."""
    scores = np.empty(len(rows), dtype=np.float32)
    owner = owners(segments, rows)
    for number in np.unique(owner):
        segment, mine = segments[number], owner == number
        scores[mine] = segment.vectors(segment.positions(rows[mine])) @ query
    return scores


def write_segment(
    folder: Path,
    plan: Plan,
    template: Any,
    vectors: Iterable[np.ndarray],
    docs: np.ndarray,
    rows: np.ndarray,
    *,
    keep_vectors: bool,
    devices: Sequence[int] = (),
) -> Entry:
    """Write and sync a segment under a temporary name, then rename it.

    Args:
        folder: Of all segments.
        plan: How vectors are stored.
        template: The trained, empty index; not looked at for "flat".
        vectors: (n, dim) float32 arrays, one after another.
        docs: (count,) the document of every row.
        rows: (count,) ascending.
        keep_vectors: Keep them in half precision beside an index that does not.
        devices: GPUs that make codes, where FAISS does that there.
    """
    staging = _staging(folder)
    count = len(rows)
    keep_vectors = keep_vectors and not RECIPES[plan.recipe].faithful
    if RECIPES[plan.recipe].exact:
        return _commit_folder(
            staging, folder, docs, rows, {INDEX: dense.write_flat(vectors, count, plan.dim, staging / INDEX)}
        )
    files = {}
    if keep_vectors:
        with NewFile(staging / VECTORS) as raw:
            index = gpu.encode(template, _also_written(vectors, raw), count, plan, devices)
        files[VECTORS] = raw.stamp
    else:
        index = gpu.encode(template, vectors, count, plan, devices)
    files[INDEX] = dense.write(index, staging / INDEX)
    return _commit_folder(staging, folder, docs, rows, files)


def _also_written(vectors: Iterable[np.ndarray], file: NewFile) -> Iterator[np.ndarray]:
    """The same vectors, each in half precision in a file once the next is asked for."""
    for some in vectors:
        yield some
        file.write(np.ascontiguousarray(some, dtype="<f2").data)


def merge_segments(
    folder: Path,
    parts: Sequence[DiskSegment],
    template: Any,
    *,
    keep_vectors: bool,
    kept: np.ndarray | None = None,
    devices: Sequence[int] = (),
) -> Entry:
    """Write one segment with the rows of several neighbours, codes and vectors as they are.

    Args:
        folder: Of all segments.
        parts: What to join, or one segment, to leave rows out of.
        template: The trained, empty index; for graphs, which are made anew.
        keep_vectors: Likewise.
        kept: Mask over all their rows, one part after another; None keeps all.
        devices: GPUs that make graphs anew.
    """
    plan = parts[0].plan
    rows, docs = all_rows(parts), np.concatenate([part.docs for part in parts])
    kept = np.ones(len(rows), dtype=bool) if kept is None else kept
    if RECIPES[plan.recipe].graph:
        vectors = vectors_of(parts, kept)
        docs, rows = docs[kept], rows[kept]
        return write_segment(folder, plan, template, vectors, docs, rows, keep_vectors=keep_vectors, devices=devices)
    for part in parts:
        part.check()  # or damage since it was opened would get a checksum of its own
    staging = _staging(folder)
    masks = _masks(parts, kept)
    files = {INDEX: dense.join([part.folder / INDEX for part in parts], masks, plan, staging / INDEX)}
    if VECTORS in parts[0].entry.files:
        with NewFile(staging / VECTORS) as raw:
            for part, mask in zip(parts, masks, strict=True):
                for some in part.halves(mask):
                    raw.write(np.ascontiguousarray(some).data)
        files[VECTORS] = raw.stamp
    return _commit_folder(staging, folder, docs[kept], rows[kept], files)


def vectors_of(parts: Sequence[DiskSegment], kept: np.ndarray) -> Iterator[np.ndarray]:
    """Vectors of several segments, some at a time; `kept` is a mask over all their rows."""
    for part, mask in zip(parts, _masks(parts, kept), strict=True):
        yield from part.runs(mask)


def vectors_at(parts: Sequence[DiskSegment], places: np.ndarray) -> np.ndarray:
    """Vectors by ascending place among all rows of some segments, (n, dim) float32."""
    found, first = [], 0
    for part in parts:
        mine = places[(places >= first) & (places < first + part.count)] - first
        found.append(part.vectors(mine))
        first += part.count
    return np.concatenate(found)


def _masks(parts: Sequence[DiskSegment], kept: np.ndarray) -> list[np.ndarray]:
    return np.split(kept, np.cumsum([part.count for part in parts])[:-1])


def copy_segment(folder: Path, part: DiskSegment, docs: np.ndarray, rows: np.ndarray) -> Entry:
    """Write a segment with the index and vectors of another, and the documents and rows given."""
    staging = _staging(folder)
    files = {}
    for name in {INDEX, VECTORS} & part.entry.files.keys():
        verify(part.folder / name, part.entry.files[name])
        shutil.copyfile(part.folder / name, staging / name)
        files[name] = stamp(staging / name)
    return _commit_folder(staging, folder, docs, rows, files)


def all_rows(parts: Sequence[DiskSegment]) -> np.ndarray:
    """The rows of several segments, one after another."""
    return np.concatenate(
        [np.arange(part.first_row, part.first_row + part.count) if part.rows is None else part.rows for part in parts]
    )


def to_merge(entries: Sequence[Entry]) -> list[Entry]:
    """The neighbours at the end that are due to be joined: LEVEL or more of one level, and the smaller among them."""
    levels = [_level(entry.count) for entry in entries]
    for level in range(1 + max(levels, default=-1)):
        tail = list(takewhile(level.__ge__, reversed(levels)))
        if tail.count(level) >= LEVEL:  # small ones alone never have a large one written again
            return list(entries[-len(tail) :])
    return []


def _level(count: int) -> int:
    """0 below 8 commits of usual size, 1 below 64 of them, and so on."""
    level = 0
    while count >= 1024 * LEVEL ** (level + 1):
        level += 1
    return level


def _staging(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    staging = folder / f"{next_number(folder)}.tmp"
    shutil.rmtree(staging, ignore_errors=True)  # left by a commit that failed
    staging.mkdir()
    return staging


def _commit_folder(staging: Path, folder: Path, docs: np.ndarray, rows: np.ndarray, files: dict[str, Stamp]) -> Entry:
    first_row, count = int(rows[0]), len(rows)
    numbers = {DOCS: docs}
    if int(rows[-1]) - first_row + 1 != count:
        numbers[ROWS] = rows
    for name, values in numbers.items():
        with NewFile(staging / name) as new:
            new.write(np.ascontiguousarray(values, dtype="<i8").data)
        files[name] = new.stamp
    sync_folder(staging)
    name = staging.name.removesuffix(".tmp")
    staging.rename(folder / name)
    sync_folder(folder)
    return Entry(first_row, count, name, files)
