"""An index for frameworks that say how wide their vectors are only when the first ones come."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from threading import RLock
from typing import Any, Self

from searchkit.engine import SearchEngine
from searchkit.errors import InputError


class LazyIndex:
    """An index folder, open for writing; the index is made when its first vectors come.

    Args:
        path: The folder, with an index or without; None for a temporary one that is deleted with this object.
        model: What embeds texts; None where vectors come with them.
        settings: Further arguments of `SearchEngine.create`.
    """

    def __init__(self, path: str | Path | None, *, model: Any = None, **settings: Any) -> None:
        self._temporary = TemporaryDirectory(prefix="searchkit-") if path is None else None
        self.path = Path(self._temporary.name) / "store.index" if self._temporary else Path(str(path))
        self._settings = settings
        self._lock = RLock()
        self._engine: SearchEngine | None = None
        if model is not None:
            self._engine = SearchEngine.create(self.path, model=model, exist_ok=True, chunk_tokens=0, **settings)
        elif (self.path / "index.db").is_file():
            self._engine = SearchEngine.open(self.path, writable=True)

    @property
    def engine(self) -> SearchEngine | None:
        """The index; None while no vector has come."""
        return self._engine

    def made(self, dim: int) -> SearchEngine:
        """The index, made for vectors of that width if there is none.

        Raises:
            InputError: It holds vectors of another width.
        """
        with self._lock:
            if self._engine is None:
                self._engine = SearchEngine.create(self.path, dim=dim, **self._settings)
            if self._engine.dim != dim:
                raise InputError(
                    f"{self.path} holds vectors of {self._engine.dim} numbers, and {dim} came; "
                    "use the embedding that it was made with, or another folder"
                )
            return self._engine

    def close(self) -> None:
        """Release the folder; a temporary one is deleted."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
            if self._temporary is not None:
                self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
