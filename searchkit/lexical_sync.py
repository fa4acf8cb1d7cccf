"""The lexical index of an index folder: kept in step with the documents, verified, and rebuilt where it is damaged."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from threading import RLock

from searchkit.errors import BusyError, DamagedError, StoreError
from searchkit.indexer.lexical import LexicalIndex, has_current_terms
from searchkit.indexer.store import Snapshot, Store
from searchkit.records import join_title

logger = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Seconds that a reader waits for a writer to finish the lexical index of a commit."""


_GONE = 0.1
"""Deleted passages for each living one up to which the lexical index is changed instead of built anew."""


class LexicalSync:
    """The lexical index behind a store. It follows the documents: where the two differ, the documents are right.

    Args:
        store: The index folder.
        language: Language of the lexical side.
    """

    def __init__(self, store: Store, language: str) -> None:
        self._store, self._language = store, language
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._mutex = RLock()  # threads may share an engine: they open and reload in turn
        self._index: LexicalIndex | None = None
        self._name = ""

    def close(self) -> None:
        """Release the files."""
        self._index = None
        if self._copy is not None:
            self._copy.cleanup()

    def index_of(self, snapshot: Snapshot) -> LexicalIndex:
        """The lexical index of a commit, possibly with passages of later ones; opened when it is first needed."""
        with self._mutex:
            if self._index is None or self._name != snapshot.lexical:
                self._index = self._open(snapshot)
                self._name = snapshot.lexical
            if len(self._index) < snapshot.passages + len(snapshot.dead):
                self._complete(self._index, snapshot)
            return self._index

    def follow(self, snapshot: Snapshot) -> None:
        """See what has been written up to a commit; call this when the engine moves to it."""
        with self._mutex:
            if snapshot.lexical != self._name or self._copy is not None:
                self._index = None
            if self._index is not None:
                try:
                    self._index.reload()
                except (ValueError, OSError):  # a writer has just removed it
                    self._index = None

    def catch_up(self, index: LexicalIndex, store: Store, last: Sequence[tuple[int, str, str]] | None = None) -> None:
        """Add the committed passages that an index lacks.

        Args:
            index: The lexical index.
            store: Holds the writer's lock.
            last: (row, title, text) of the passages that were committed last, so that they need not be read again.
        """
        indexed, stored = len(index), store.documents.stored_passages()
        if indexed < stored:
            store.lexical.keep()
            if last is not None and indexed == stored - len(last):
                index.add((row, join_title(title, text)) for row, title, text in last)
                store.lexical.commit()
                return
            index.add((row, join_title(title, text)) for row, title, text in store.documents.texts(indexed))
        store.lexical.commit()

    def current(self, snapshot: Snapshot) -> bool:
        """Whether a lexical index built now would have the same terms."""
        return has_current_terms(self._store.folder / "lexical" / snapshot.lexical)

    def write_living(self, snapshot: Snapshot, folder: Path, *, anew: bool = False) -> None:
        """Make an index of the living passages of a commit, in a folder of its own.

        It has the files of the commit's index, less the deleted passages. Where these are many, or terms have changed,
        it is built anew; or where `anew` asks for it.
        """
        index = self.index_of(snapshot)
        gone, living = index.deleted + len(snapshot.dead), len(index) - len(snapshot.dead)
        if not anew and self.current(snapshot) and gone <= _GONE * living:
            self._store.lexical.share(folder)
            LexicalIndex(folder, self._language).delete(snapshot.dead.tolist())
            return
        index = LexicalIndex(folder, self._language)
        index.add((row, join_title(title, text)) for row, title, text in self._store.documents.texts(living=True))

    def _open(self, snapshot: Snapshot) -> LexicalIndex:
        """Verify and open the index of a commit; where it is damaged, rebuild it from the documents."""
        folder = self._store.folder / "lexical" / snapshot.lexical
        writable = self._can_write(folder)
        for pause in _pauses(_PATIENCE if writable else 1):
            self._check_current(snapshot)
            try:
                return self._open_verified(self._store, folder) if writable else self._open_copy(folder)
            except (ValueError, OSError) as error:  # ValueError is tantivy's, too
                # A writer at work records its files right after it has written them.
                try:
                    if writable:
                        return self._rebuild(snapshot, folder, error)
                    if pause is None:
                        raise
                except BusyError:
                    if pause is None:
                        raise
            time.sleep(pause or 0)
        raise AssertionError("unreachable")

    def _open_verified(self, store: Store, folder: Path) -> LexicalIndex:
        store.lexical.check()
        return LexicalIndex(folder, self._language)

    def _rebuild(self, snapshot: Snapshot, folder: Path, error: Exception) -> LexicalIndex:
        with self._writer() as store:
            self._check_current(snapshot)
            with suppress(ValueError, OSError):  # a writer has just repaired it
                return self._open_verified(store, folder)
            damage = f"{error.path} {error.damage}" if isinstance(error, DamagedError) else f"{folder}: {error}"
            logger.warning("%s; rebuilding the lexical index", damage)
            shutil.rmtree(folder, ignore_errors=True)
            index = LexicalIndex(folder, self._language)
            self.catch_up(index, store)
            return index

    def _complete(self, index: LexicalIndex, snapshot: Snapshot) -> None:
        """Wait for the writer that is indexing the passages of a commit; if it was killed, index them here."""
        for pause in _pauses(_PATIENCE):
            self._check_current(snapshot)
            try:
                index.reload()
                if len(index) >= snapshot.passages + len(snapshot.dead):
                    return
                with self._writer() as store:
                    self._check_current(snapshot)
                    index.reload()
                    self.catch_up(index, store)
                return
            except BusyError:
                if pause is None:
                    raise
                time.sleep(pause)
            except OSError as error:
                logger.warning("lexical search does not find the latest documents: %s", error)
                return

    def _check_current(self, snapshot: Snapshot) -> None:
        if self._store.database.setting("lexical") != snapshot.lexical:
            raise StoreError(f"{self._store.folder} has been compacted since it was opened; open it again")

    def _can_write(self, folder: Path) -> bool:
        paths = (self._store.folder, *(path for path in (folder.parent, folder) if path.exists()))
        return all(os.access(path, os.W_OK, effective_ids=True) for path in paths)

    def _open_copy(self, folder: Path) -> LexicalIndex:
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

    def _writer(self) -> AbstractContextManager[Store]:
        return nullcontext(self._store) if self._store.writable else Store(self._store.folder, writable=True)


def _pauses(seconds: float) -> Iterator[float | None]:
    """Pauses between attempts until the time is up; None for the last attempt."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield 0.02
    yield None
