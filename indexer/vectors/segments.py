"""Segments on disk: immutable folders of files that a commit names, verified when they are first needed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import numpy as np

from searchkit.indexer.errors import DamagedError
from searchkit.indexer.files import NewFile, Stamp, next_number, stamp, sync_folder, verify
from searchkit.indexer.vectors.arrays import halved, rebatched, runs, widened
from searchkit.indexer.vectors.backend import VectorBackend, VectorIndex
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
    """One segment; its files are opened, and compared with their checksums, when they are first needed.

    Args:
        folder: The folder of its files.
        entry: How the commit names it.
        plan: How its vectors are stored.
        backend: What opens its index.
    """

    folder: Path
    entry: Entry
    plan: Plan
    backend: VectorBackend
    first_row: int = field(init=False)
    count: int = field(init=False)
    _sound: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.first_row, self.count = self.entry.first_row, self.entry.count

    @cached_property
    def index(self) -> VectorIndex:
        """The index, memory-mapped."""
        file = self._checked(INDEX)
        index = self.backend.open(file, self.plan)
        if (len(index), index.dim) != (self.count, self.plan.dim):
            raise DamagedError(
                file, f"holds {len(index)} vectors of {index.dim}, expected {self.count} of {self.plan.dim}"
            )
        return index

    def template(self) -> VectorIndex:
        """The trained, empty index that its own began as a copy of."""
        return self.backend.open(self._checked(INDEX), self.plan, mapped=False).empty()

    @cached_property
    def docs(self) -> np.ndarray:
        """(count,) int64, the position of every passage's document."""
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
        # A plain array: each look-up in a memmap creates another memmap, which takes longer than the look-up.
        return np.asarray(np.memmap(self._checked(VECTORS), dtype="<f2", mode="r", shape=(self.count, self.plan.dim)))

    @property
    def keeps_vectors(self) -> bool:
        """Whether the vectors can be returned as they were, to at least half precision."""
        return RECIPES[self.plan.recipe].faithful or VECTORS in self.entry.files

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """(n, dim) float32, as exact as they are kept."""
        if self._raw is not None:
            return widened(self._raw.take(positions, axis=0))  # three quarters of the time of raw[positions]
        return self.index.vectors(positions)

    def score(self, query: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """(n,) float32, the inner product of one query (dim,) with some vectors, as exact as they are kept."""
        if self._raw is not None:
            return np.asarray(self.vectors(positions) @ query)
        return self.index.score(query, positions)

    def batches(self, kept: np.ndarray) -> Iterator[np.ndarray]:
        """The vectors that a mask (count,) keeps, some at a time, float32; invalid once the segment is gone."""
        for run in runs(kept):
            yield self.index.vectors(run) if self._raw is None else widened(self._raw[run])

    def halves(self, kept: np.ndarray) -> Iterator[np.ndarray]:
        """The same in half precision, where they are kept in it."""
        assert self._raw is not None
        for run in runs(kept):
            yield self._raw[run]

    @property
    def has_halves(self) -> bool:
        """Whether the vectors are kept in half precision beside their codes."""
        return VECTORS in self.entry.files

    def halves_at(self, positions: np.ndarray) -> np.ndarray:
        """(n, dim) float16, where they are kept in it."""
        assert self._raw is not None
        return self._raw.take(positions, axis=0)

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """The positions of some of its rows."""
        return rows - self.first_row if self.rows is None else np.searchsorted(self.rows, rows)

    def check(self) -> None:
        """Compare every file with its checksum, even those compared before."""
        self._sound.clear()
        for name in self.entry.files:
            self._checked(name)

    def _checked(self, name: str) -> Path:
        if name not in self._sound:
            verify(self.folder / name, self.entry.files[name])
            self._sound.add(name)
        return self.folder / name


def owners(segments: Sequence[DiskSegment], rows: np.ndarray) -> np.ndarray:
    """The number of the segment that holds each row, in the shape of the rows."""
    firsts = np.array([segment.first_row for segment in segments], dtype=np.int64)
    return np.searchsorted(firsts, rows, side="right") - 1


def held(segments: Sequence[DiskSegment], rows: np.ndarray) -> np.ndarray:
    """Whether each of some rows (n,) is in a segment: passages without a vector are in none; (n,) bool."""
    found = np.zeros(len(rows), dtype=bool)
    owner = owners(segments, rows)
    for number in set(owner[owner >= 0].tolist()):
        segment, mine = segments[number], owner == number
        positions = segment.positions(rows[mine])
        inside = positions < segment.count
        if segment.rows is not None:
            inside &= segment.rows[np.minimum(positions, segment.count - 1)] == rows[mine]
        found[mine] = inside
    return found


def documents_of(segments: Sequence[DiskSegment], rows: np.ndarray) -> np.ndarray:
    """The positions of the documents of passage rows, int64, in the shape of the rows; -1 for row -1."""
    present = rows >= 0
    if len(segments) == 1 and present.all():  # a compacted index, where this is most of what a small search takes
        return np.asarray(segments[0].docs[segments[0].positions(rows)])
    docs = np.full(rows.shape, -1, dtype=np.int64)
    owner = np.where(present, owners(segments, rows), -1)
    for number in set(owner[present].tolist()):
        segment, mine = segments[number], owner == number
        docs[mine] = segment.docs[segment.positions(rows[mine])]
    return docs


def score(segments: Sequence[DiskSegment], query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The inner product of one query (dim,) with some rows (n,), as (n,) float32, as exact as vectors are kept."""
    scores = np.empty(len(rows), dtype=np.float32)
    owner = owners(segments, rows)
    for number in np.unique(owner):
        segment, mine = segments[number], owner == number
        scores[mine] = segment.score(query, segment.positions(rows[mine]))
    return scores


def write_segment(
    folder: Path,
    backend: VectorBackend,
    template: VectorIndex,
    vectors: Iterable[np.ndarray],
    docs: np.ndarray,
    rows: np.ndarray,
    *,
    keep_vectors: bool,
) -> Entry:
    """Write and sync a segment under a temporary name, then rename it.

    Args:
        folder: Of all segments.
        backend: What writes its index.
        template: The trained, empty index that says how vectors are stored.
        vectors: (n, dim) float32 arrays, one after another.
        docs: (count,) the position of every row's document.
        rows: (count,) ascending.
        keep_vectors: Keep them in half precision beside an index that does not.
    """
    staging, files = _staging(folder), {}
    if RECIPES[template.plan.recipe].graph:
        vectors = rebatched(vectors)
    if keep_vectors and not RECIPES[template.plan.recipe].faithful:
        with NewFile(staging / VECTORS) as raw:
            files[INDEX] = backend.write(template, _written(vectors, raw), len(rows), staging / INDEX)
        files[VECTORS] = raw.stamp
    else:
        files[INDEX] = backend.write(template, vectors, len(rows), staging / INDEX)
    return _commit_folder(staging, folder, docs, rows, files)


@dataclass(frozen=True)
class Gathered:
    """Vectors that segments of one training hold, in any order.

    Args:
        parts: Those segments, possibly of several indexes.
        owners: (n,) int64, which of them holds each vector.
        positions: (n,) int64, its position there.
    """

    parts: Sequence[DiskSegment]
    owners: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.owners)

    def halves(self) -> np.ndarray | None:
        """(n, dim) float16, as they are kept; None where they are not."""
        if any(not part.has_halves for part in self.parts):
            return None
        halves = np.empty((len(self), self.parts[0].plan.dim), "<f2")
        for number in np.unique(self.owners).tolist():
            mine = self.owners == number
            halves[mine] = self.parts[number].halves_at(self.positions[mine])
        return halves


def gather_segment(
    folder: Path, template: VectorIndex, gathered: Gathered, docs: np.ndarray, rows: np.ndarray
) -> Entry:
    """Write a segment with the vectors and codes of others as they are; arguments as `write_segment` takes them."""
    staging, backend = _staging(folder), gathered.parts[0].backend
    sources = [part.index for part in gathered.parts]
    files = {INDEX: backend.gather(template, sources, gathered.owners, gathered.positions, staging / INDEX)}
    if (halves := gathered.halves()) is not None:
        with NewFile(staging / VECTORS) as raw:
            raw.write(halves.data)
        files[VECTORS] = raw.stamp
    return _commit_folder(staging, folder, docs, rows, files)


def _written(vectors: Iterable[np.ndarray], file: NewFile) -> Iterator[np.ndarray]:
    """The same vectors, each batch written in half precision to a file once it has been consumed."""
    for batch in vectors:
        yield batch
        file.write(halved(batch).data)


def merge_segments(
    folder: Path,
    parts: Sequence[DiskSegment],
    template: VectorIndex,
    *,
    keep_vectors: bool,
    kept: np.ndarray | None = None,
) -> Entry:
    """Write one segment with the rows of several neighbours, codes and vectors as they are.

    Args:
        folder: Of all segments.
        parts: What to merge, or one segment, to leave rows out.
        template: The trained, empty index; for graphs, which are built again.
        keep_vectors: Likewise.
        kept: Mask over all their rows, one part after another; None keeps all.
    """
    plan, backend = parts[0].plan, parts[0].backend
    rows, docs = all_rows(parts), np.concatenate([part.docs for part in parts])
    kept = np.ones(len(rows), dtype=bool) if kept is None else kept
    if RECIPES[plan.recipe].graph:
        vectors = vectors_of(parts, kept)
        return write_segment(folder, backend, template, vectors, docs[kept], rows[kept], keep_vectors=keep_vectors)
    for part in parts:
        part.check()  # or damage since it was opened would get a checksum of its own
    staging, masks = _staging(folder), _masks(parts, kept)
    files = {INDEX: backend.merge([part.folder / INDEX for part in parts], masks, plan, staging / INDEX)}
    if VECTORS in parts[0].entry.files:
        with NewFile(staging / VECTORS) as raw:
            for part, mask in zip(parts, masks, strict=True):
                for batch in part.halves(mask):
                    raw.write(np.ascontiguousarray(batch).data)
        files[VECTORS] = raw.stamp
    return _commit_folder(staging, folder, docs[kept], rows[kept], files)


def vectors_of(parts: Sequence[DiskSegment], kept: np.ndarray) -> Iterator[np.ndarray]:
    """Vectors of several segments, a batch at a time; `kept` is a mask over all their rows."""
    for part, mask in zip(parts, _masks(parts, kept), strict=True):
        yield from part.batches(mask)


def vectors_at(parts: Sequence[DiskSegment], positions: np.ndarray) -> np.ndarray:
    """Vectors by ascending position among all rows of some segments, (n, dim) float32."""
    vectors, first = [], 0
    for part in parts:
        vectors.append(part.vectors(positions[(positions >= first) & (positions < first + part.count)] - first))
        first += part.count
    return np.concatenate(vectors)


def _masks(parts: Sequence[DiskSegment], kept: np.ndarray) -> list[np.ndarray]:
    return np.split(kept, np.cumsum([part.count for part in parts])[:-1])


def copy_segment(folder: Path, part: DiskSegment, docs: np.ndarray, rows: np.ndarray) -> Entry:
    """Write a segment with the index and vectors of another, and these documents and rows."""
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
    """The last segments that are due to be merged: LEVEL or more of one level, and smaller ones among them."""
    levels = [_level(entry.count) for entry in entries]
    for level in range(1 + max(levels, default=-1)):
        tail = list(takewhile(level.__ge__, reversed(levels)))
        if tail.count(level) >= LEVEL:  # small ones alone never have a large one written again
            return list(entries[-len(tail) :])
    return []


def _level(count: int) -> int:
    """0 below 8 commits of the usual size, 1 below 64 of them, and so on."""
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
