"""The columns of an index, which filters and facets read instead of all documents.

They are derived from the documents and named by no commit: files in the folder `columns`, each with the checksum of the
metadata that it was made of. These checksums and that of the documents that no file holds yet have to add up to the one
that the last commit left for all documents; where they do not, or a file is missing or damaged, the documents are read.
A writer makes a file of every `PART` documents that are new, and merges files as segments are merged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from searchkit.indexer.columns.build import Removed, merged, part_of, without
from searchkit.indexer.columns.filtering import passing
from searchkit.indexer.columns.part import Part, UnusableError, id_number
from searchkit.indexer.columns.values import Values
from searchkit.indexer.database import Database
from searchkit.indexer.errors import REPAIR

logger = logging.getLogger(__name__)

T = TypeVar("T")

NOT_STRICT = "%s: filters read NaN and Infinity in metadata as null; %s"
FOLDER = "columns"
PART = 1 << 14
"""New documents of which a writer makes a file; a reader makes columns of fewer in memory."""
LEVEL = 8
"""Files of similar size that are merged."""
_LAGGING = 4 * PART
"""Documents without a file from which reading all of them is left to SQLite, as in an index of an earlier version."""
_TAIL = 32
"""Columns in memory, one for each commit, that are kept apart."""
_RETRIES = 4

_ROWS = "SELECT doc, first_row, passages, id, title, metadata FROM documents WHERE doc >= ? AND doc < ? ORDER BY doc"


class Columns:
    """The columns of one index folder.

    Args:
        database: Where its documents are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._folder = database.folder / FOLDER
        self._state: tuple[int, int, int] | None = None
        self._parts: list[Part] | None = []
        self._opened: dict[str, Part] = {}
        self._tail: list[Part] = []
        self._values: dict[str, Values] = {}
        self._warned = False
        self._trusted = False  # whether the files that were there have been compared with the documents

    # Reading, inside `Database.access`

    def matching(self, where: Mapping[str, Any], below: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """(docs, first rows, passages) of every document below a position that passes a filter, deleted ones included.

        None where columns cannot tell.
        """

        def read(parts: list[Part]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            chosen = list(zip(parts, map(np.flatnonzero, self._passing(where, parts)), strict=True))
            docs = _joined([part.docs(some) for part, some in chosen])
            early = int(np.searchsorted(docs, below))
            first_rows = _joined([part.first_rows(some) for part, some in chosen])
            passages = _joined([part.passages(some) for part, some in chosen])
            return docs[:early], first_rows[:early], passages[:early]

        return self._told(read)

    def masks(self, where: Mapping[str, Any], documents: int, rows: int) -> tuple[np.ndarray, np.ndarray] | None:
        """(documents,) and (rows,) bool by position, what passes a filter, deleted documents included.

        None where columns cannot tell.
        """

        def read(parts: list[Part]) -> tuple[np.ndarray, np.ndarray]:
            found = np.zeros(documents, dtype=bool), np.zeros(rows, dtype=bool)
            for part, passes in zip(parts, self._passing(where, parts), strict=True):
                part.mark(passes, *found)
            return found

        return self._told(read)

    def values(self, key: str, below: int) -> tuple[np.ndarray, np.ndarray, list[str]] | None:
        """What documents below a position have under the first part of a key, deleted ones included.

        Returns:
            (docs, numbers, values): int64 positions in order, of documents that have the key alone; the number of the
            value of each; and JSON objects with the key and a value. None where columns cannot tell.
        """

        def read(parts: list[Part]) -> tuple[np.ndarray, np.ndarray, list[str]]:
            docs, numbers, known = [], [], dict[str, int]()
            for part in parts:
                if key in part.keys:
                    codes = part.codes(key)
                    some = np.flatnonzero(codes)
                    mine = np.array([known.setdefault(text, len(known)) for text in part.texts(key)], np.int64)
                    docs.append(part.docs(some))
                    numbers.append(mine[codes[some].astype(np.int64) - 1])
            every = _joined(docs)
            early = int(np.searchsorted(every, below))
            return every[:early], _joined(numbers)[:early], list(known)

        return self._told(read)

    def counted(self, dead: np.ndarray, *, all_keys: bool) -> list[tuple[str, int]] | None:
        """JSON objects with one key and a value each, and how many documents have them; None where columns cannot tell.

        Args:
            dead: (n,) int64, positions of documents that do not count.
            all_keys: Whether all keys are needed, those with very many values too.

        Returns:
            Keys are in the order in which documents have them first, and so are the values of each.
        """

        def read(parts: list[Part]) -> list[tuple[str, int]] | None:
            many = {key for part in parts for key in part.keys if part.has_many(key)}
            if all_keys and many:
                return None
            if not all_keys:
                large = [part for part in parts if part.count >= LEVEL * PART]
                many |= {
                    key for part in large for key in part.keys if part.keys[key].get("distinct", 0) > part.count / 2
                }
            return [pair for part in parts for pair in _counted(part, dead, many)]

        return self._told(read)

    def may_have(self, ids: Sequence[str]) -> list[int] | None:
        """Positions of documents, deleted ones included, that may have one of some ids: all that have, and hardly more.

        None where columns cannot tell.
        """
        numbers = np.array([id_number(id) for id in ids], np.uint64)
        return self._told(
            lambda parts: [
                doc for part in parts for doc in part.docs(np.flatnonzero(np.isin(part.ids(), numbers))).tolist()
            ]
        )

    def _told(self, read: Callable[[list[Part]], T | None]) -> T | None:
        """What the columns tell; None where they cannot."""
        parts = self._current()
        try:
            return None if parts is None else read(parts)
        except UnusableError as error:
            logger.debug("%s; the documents are read instead", error)
            return None

    def _passing(self, where: Mapping[str, Any], parts: Sequence[Part]) -> list[np.ndarray]:
        """(documents,) bool of each part, which of them pass a filter."""
        mask = passing(where, parts, self._values)
        return np.split(mask, np.cumsum([part.count for part in parts]))[: len(parts)]

    def _current(self) -> list[Part] | None:
        """The columns of all documents of the last commit, one after another; None where documents must be read."""
        number = self._database.number
        state = number("compacted"), number("next_doc"), number("contents")
        if state != self._state:
            self._values = {}
            self._parts = self._found(*state)
            self._state = state
        return self._parts

    def _found(self, compacted: int, next_doc: int, contents: int) -> list[Part] | None:
        parts = self._files(compacted, next_doc)
        start = parts[-1].stop if parts else 0
        if next_doc - start > _LAGGING:
            return None
        try:
            tail = self._tail if self._tail and self._fits(self._tail, compacted, start, next_doc) else []
            if len(tail) >= _TAIL:
                tail = []
            if (first := tail[-1].stop if tail else start) < next_doc:
                tail = [*tail, self._derived(first, next_doc, compacted)]
            self._tail = tail
        except (ValueError, TypeError, RecursionError):  # damage, which whoever reads the documents reports
            return None
        left = contents
        for part in [*parts, *tail]:
            left ^= int(part.header["contents"])
        if left:
            logger.debug("%s: columns are not those of the documents", self._folder)
            return None
        if not (self._warned or all(part.header["strict"] for part in [*parts, *tail])):
            self._warned = True
            logger.warning(NOT_STRICT, self._database.folder, REPAIR)
        return [*parts, *tail]

    @staticmethod
    def _fits(tail: Sequence[Part], compacted: int, start: int, next_doc: int) -> bool:
        return tail[0].header["compacted"] == compacted and tail[0].start == start and tail[-1].stop <= next_doc

    def _files(self, compacted: int, next_doc: int) -> list[Part]:
        """Opened files that follow each other from the first document on."""
        for _ in range(_RETRIES):
            named = _named(self._folder)
            parts: list[Part] = []
            names: set[str] = set()
            start = 0
            try:
                while found := [stop for made, first, stop in named if (made, first) == (compacted, start)]:
                    stop = max((stop for stop in found if stop <= next_doc), default=0)
                    if not stop:
                        break
                    name = _name(compacted, start, stop)
                    if name not in self._opened:
                        self._opened[name] = Part.open(self._folder / name)
                    part = self._opened[name]
                    if (part.header["compacted"], part.start, part.stop) != (compacted, start, stop):
                        raise UnusableError(f"{name} holds other documents")
                    parts.append(part)
                    names.add(name)
                    start = stop
            except UnusableError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    continue  # a writer has just merged it
                logger.debug("%s", error)
            self._opened = {name: part for name, part in self._opened.items() if name in names}
            return parts
        return []

    def _derived(self, start: int, stop: int, compacted: int) -> Part:
        return part_of(self._database.db.execute(_ROWS, (start, stop)), start, stop, compacted)

    # Writing

    def follow(self) -> None:
        """Make files of documents that have none, and merge files; for the writer, after its commits."""
        with self._database.access(), self._database.reading():
            try:
                covered = self._covered()
                if self._database.number("next_doc") - covered >= PART and not self._trusted:
                    self._trusted = True
                    if covered and self._current() is None:
                        self._discard()
                self._extend()
            except UnusableError as error:
                logger.debug("%s; making all columns again", error)
                self._discard()
            except (OSError, ValueError, TypeError, RecursionError) as error:  # a full disk, or damage
                logger.debug("%s: %s", self._folder, error)

    def carry_over(self, before: int, removed: Removed) -> None:
        """Make the files of before a purge into those after it, which takes a tenth of reading all documents again.

        Args:
            before: The purge before it.
            removed: What it removed.
        """
        with self._database.access(), self._database.reading():
            try:
                compacted, next_doc = self._database.number("compacted"), self._database.number("next_doc")
                parts = self._files(before, next_doc)
                for part in parts:
                    self._kept(without(part, removed, compacted))
                if parts and self._current() is None:
                    self._discard()
            except UnusableError as error:
                logger.debug("%s; making all columns again", error)
                self._discard()
            except OSError as error:  # a full disk
                logger.debug("%s: %s", self._folder, error)

    def _covered(self) -> int:
        number = self._database.number
        parts = self._files(number("compacted"), number("next_doc"))
        return parts[-1].stop if parts else 0

    def _discard(self) -> None:
        self._opened = {}
        for entry in self._folder.glob("*"):
            with suppress(OSError):
                entry.unlink()

    def _extend(self) -> None:
        compacted, next_doc = self._database.number("compacted"), self._database.number("next_doc")
        named = _named(self._folder)
        parts = self._files(compacted, next_doc)
        start = parts[-1].stop if parts else 0
        if next_doc - start < PART and all(made == compacted for made, _, _ in named):
            return
        self._folder.mkdir(exist_ok=True)
        self._state, self._values = None, {}
        while next_doc - start >= PART:
            stop = start + min(LEVEL, (next_doc - start) // PART) * PART
            part = self._derived(start, stop, compacted)
            parts = [*parts, self._kept(part)]
            while group := _to_merge(parts):
                parts = [*parts[: -len(group)], self._kept(merged(group))]
            start = stop
        names = {_name(compacted, part.start, part.stop) for part in parts}
        for entry in self._folder.iterdir():
            if entry.name not in names:
                with suppress(OSError):
                    entry.unlink()

    def _kept(self, part: Part) -> Part:
        """The same part, read from its file."""
        file = self._folder / _name(part.header["compacted"], part.start, part.stop)
        part.write(file)
        return Part.open(file)


def _counted(part: Part, dead: np.ndarray, without: set[str]) -> list[tuple[str, int]]:
    living = ~np.isin(part.docs(np.arange(part.count)), dead) if len(dead) else slice(None)
    pairs: dict[tuple[int, str], list[tuple[str, int]]] = {}
    for key in part.keys.keys() - without:
        codes = part.codes(key)[living]
        counts = np.bincount(codes, minlength=1 + part.keys[key]["distinct"])
        first = np.full(len(counts), len(codes))
        first[codes[::-1]] = np.arange(len(codes))[::-1]
        held, texts = 1 + np.flatnonzero(counts[1:]), part.texts(key)
        if len(held):
            order = held[np.argsort(first[held])].tolist()
            pairs[int(first[order[0]]), key] = [(texts[code - 1], int(counts[code])) for code in order]
    return [pair for place in sorted(pairs) for pair in pairs[place]]


def _name(compacted: int, start: int, stop: int) -> str:
    return f"{compacted}-{start}-{stop}"


def _named(folder: Path) -> list[tuple[int, int, int]]:
    """(compacted, start, stop) of all files."""
    found = []
    for file in folder.glob("*-*-*"):
        with suppress(ValueError):
            compacted, start, stop = map(int, file.name.split("-"))
            found.append((compacted, start, stop))
    return found


def _to_merge(parts: Sequence[Part]) -> list[Part]:
    """The last parts that are due to be merged: LEVEL or more of one level, and smaller ones among them."""
    levels = [_level(part.stop - part.start) for part in parts]
    for level in range(1 + max(levels, default=-1)):
        tail = list(takewhile(level.__ge__, reversed(levels)))
        if tail.count(level) >= LEVEL:
            return list(parts[-len(tail) :])
    return []


def _level(size: int) -> int:
    level = 0
    while size >= PART * LEVEL ** (level + 1):
        level += 1
    return level


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, np.int64)
