"""The lexical index of an index folder: brought up to the documents, checked, and made anew where it is damaged."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from threading import RLock

from searchkit.errors import BusyError, StoreError
from searchkit.indexer.lexical import LexicalIndex
from searchkit.indexer.store import Snapshot, Store
from searchkit.records import join_title

logger = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Seconds that a reader waits for a writer to be done with the words of a commit."""


class Words:
    """The words behind a store. It follows the documents: whenever the two differ, the documents are right.

    Args:
        store: The index folder.
        language: Of its lexical side.
    """

    def __init__(self, store: Store, language: str) -> None:
        self._store, self._language = store, language
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._mutex = RLock()  # threads may share an engine: they open and reload in turn
        self._index: LexicalIndex | None = None
        self._name = ""

    def close(self) -> None:
        """Let go of the files."""
        self._index = None
        if self._copy is not None:
            self._copy.cleanup()

    def of(self, snapshot: Snapshot) -> LexicalIndex:
        """The words of a commit, maybe of later ones too; opened when they are first needed."""
        with self._mutex:
            if self._index is None or self._name != snapshot.lexical:
                self._index = self._opened(snapshot)
                self._name = snapshot.lexical
            if len(self._index) < snapshot.passages + len(snapshot.dead):
                self._complete(self._index, snapshot)
            return self._index

    def follow(self, snapshot: Snapshot) -> None:
        """See what has been written up to a commit; to be called when it takes the place of another."""
        with self._mutex:
            if snapshot.lexical != self._name or self._copy is not None:
                self._index = None
            if self._index is not None:
                try:
                    self._index.reload()
                except (ValueError, OSError):  # a writer has just taken it away
                    self._index = None

    def catch_up(self, index: LexicalIndex, store: Store) -> None:
        """Bring an index up to the committed passages; `store` holds the writer's lock."""
        indexed = len(index)
        if indexed < store.documents.stored_passages():
            store.lexical.keep()
            index.add((row, join_title(title, text)) for row, title, text in store.documents.texts(indexed))
        store.lexical.commit()

    def make(self, folder: Path) -> None:
        """An index of the living passages alone, in a folder of its own."""
        index = LexicalIndex(folder, self._language)
        index.add((row, join_title(title, text)) for row, title, text in self._store.documents.texts(living=True))

    def _opened(self, snapshot: Snapshot) -> LexicalIndex:
        """The index of a commit, its files checked; made anew, from the documents, where it is damaged."""
        folder = self._store.folder / "lexical" / snapshot.lexical
        own = self._can_write(folder)
        for wait in _waits(_PATIENCE if own else 1):
            self._check_current(snapshot)
            try:
                return self._checked(self._store, folder) if own else self._copied(folder)
            except (ValueError, OSError) as error:
                # A writer that is at work names its files right after it has written them.
                try:
                    if own:
                        return self._remade(snapshot, folder, error)
                    if wait is None:
                        raise
                except BusyError:
                    if wait is None:
                        raise
            time.sleep(wait or 0)
        raise AssertionError("unreachable")

    def _checked(self, store: Store, folder: Path) -> LexicalIndex:
        store.lexical.check()
        return LexicalIndex(folder, self._language)

    def _remade(self, snapshot: Snapshot, folder: Path, error: Exception) -> LexicalIndex:
        with self._writing() as store:
            self._check_current(snapshot)
            with suppress(ValueError, OSError):  # a writer has just put it right
                return self._checked(store, folder)
            logger.warning("%s cannot be read (%s) and is made anew", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
            index = LexicalIndex(folder, self._language)
            self.catch_up(index, store)
            return index

    def _complete(self, index: LexicalIndex, snapshot: Snapshot) -> None:
        """Wait for the writer that is indexing the words of a commit; if it was killed, index them."""
        for wait in _waits(_PATIENCE):
            self._check_current(snapshot)
            try:
                index.reload()
                if len(index) >= snapshot.passages + len(snapshot.dead):
                    return
                with self._writing() as store:
                    self._check_current(snapshot)
                    index.reload()
                    self.catch_up(index, store)
                return
            except BusyError:
                if wait is None:
                    raise
                time.sleep(wait)
            except OSError as error:
                logger.warning("the last documents are not found by their words: %s", error)
                return

    def _check_current(self, snapshot: Snapshot) -> None:
        if self._store.database.setting("lexical") != snapshot.lexical:
            raise StoreError(f"{self._store.folder} has been compacted since it was opened; open it again")

    def _can_write(self, folder: Path) -> bool:
        places = (self._store.folder, *(place for place in (folder.parent, folder) if place.exists()))
        return all(os.access(place, os.W_OK, effective_ids=True) for place in places)

    def _copied(self, folder: Path) -> LexicalIndex:
        """tantivy needs its lock file even to read: where nothing can be written, read a copy."""
        self._store.lexical.check()
        if self._copy is not None:
            self._copy.cleanup()
        self._copy = tempfile.TemporaryDirectory(prefix="searchkit-")
        copy = Path(self._copy.name) / "lexical"
        copy.mkdir()
        if folder.is_dir():
            for file in folder.iterdir():
                shutil.copyfile(file, copy / file.name)
        return LexicalIndex(copy, self._language)

    def _writing(self) -> AbstractContextManager[Store]:
        return nullcontext(self._store) if self._store.writable else Store(self._store.folder, writable=True)


def _waits(seconds: float) -> Iterator[float | None]:
    """Pauses between attempts until the time is up; None with the last attempt."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield 0.02
    yield None
