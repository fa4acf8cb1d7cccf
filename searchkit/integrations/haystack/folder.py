"""An index folder that several document stores share: open for reading, and locked only while something is written."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, RLock
from typing import Any

from searchkit.engine import SearchEngine
from searchkit.errors import BusyError
from searchkit.models.embedder import Embedder
from searchkit.records import Document

DEFAULT_DIM = 768
"""Width of an index whose first documents have no vector."""

WAIT = 30.0
"""Seconds to wait while another store, in this process or another, writes to the same folder."""

_MAKING = Lock()  # two stores of one process must not make the same folder at the same time


@dataclass(frozen=True)
class FolderSettings:
    """What an index is made with, and compared with when it is opened; None takes what suits, or is not compared."""

    dim: int | None = None
    similarity: str | None = None
    vectors_from: str | None = None
    model: str | None = None
    language: str | None = None
    device: str | None = None


class IndexFolder:
    """An index folder, made by the first write.

    Args:
        path: The folder.
        settings: What it is made with.
    """

    def __init__(self, path: Path, settings: FolderSettings) -> None:
        self.path, self.settings = path, settings
        self._opening, self._writing = RLock(), RLock()
        self._reader: SearchEngine | None = None
        self._closing: Callable[[], Any] = lambda: None
        self._embedder: Embedder | None = None

    def close(self) -> None:
        """Close the files, which the next use opens again."""
        with self._opening:
            self._closing()
            self._reader = None

    def reader(self) -> SearchEngine | None:
        """The index as it was last committed, by whomever; None while there is none."""
        with self._opening:
            if self._reader is not None:
                self._reader.reload()
            elif self._exists():
                self._reader = self._open(writable=False)
                self._closing = weakref.finalize(self, self._reader.close)
            return self._reader

    @contextmanager
    def writer(self, first: Sequence[Document] = ()) -> Iterator[SearchEngine]:
        """The index for writing; it is made, as wide as the first vector, if there is none.

        Raises:
            BusyError: Somebody else has been writing to it for `WAIT` seconds.
        """
        until = time.monotonic() + WAIT
        with self._writing:
            while True:
                try:
                    with _MAKING:
                        engine = self._open(writable=True) if self._exists() else self._make(first)
                    break
                except BusyError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.02)
            with engine:
                yield engine

    def _exists(self) -> bool:
        return (self.path / "index.db").is_file()

    def _open(self, *, writable: bool) -> SearchEngine:
        settings = self.settings
        engine = SearchEngine.open(
            self.path,
            model=self._embedder or settings.model,
            vectors_from=settings.vectors_from,
            device=settings.device,
            writable=writable,
        )
        try:
            engine.check_vectors(dim=settings.dim, similarity=settings.similarity)
            engine.check_settings(language=settings.language)
            if writable and engine.has_model:
                self._embedder = engine.embedder  # loaded once, for all later writers
        except BaseException:
            engine.close()
            raise
        return engine

    def _make(self, first: Sequence[Document]) -> SearchEngine:
        settings = self.settings
        if settings.model is not None:
            engine = SearchEngine.create(
                self.path, model=settings.model, language=settings.language, device=settings.device, exist_ok=True
            )
            self._embedder = engine.embedder
            return engine
        widths = (len(document.vector) for document in first if document.vector is not None)
        return SearchEngine.create(
            self.path,
            dim=settings.dim or next(widths, DEFAULT_DIM),
            similarity=settings.similarity,
            vectors_from=settings.vectors_from,
            language=settings.language,
            device=settings.device,
            exist_ok=True,
        )
