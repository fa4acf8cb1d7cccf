"""The indexes of a service, by name: open for reading, as new as the last commit, several sharing one model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeVar

from searchkit.binding import FREE, ModelChoice
from searchkit.errors import BusyError, InputError, SearchkitError
from searchkit.indexer.keys import MetadataKey
from searchkit.models.embedder import Embedder
from searchkit.records import Document
from searchkit.remote.address import MilvusAddress
from searchkit.remote.places import open_place, stored_model
from searchkit.server.errors import not_found
from searchkit.server.metrics import Metrics
from searchkit.server.settings import Settings
from searchkit.writer import Writer

logger = logging.getLogger(__name__)

T = TypeVar("T")

_WAIT_FOR_WRITER = 10.0


class Found(NamedTuple):
    """A document, and the commit that it was read from."""

    commit: int
    document: Document | None


class ServedIndex:
    """One index of a service.

    Args:
        name: Its name in requests.
        folder: Where it is: a folder, or a collection in Milvus.
        engine: Open for reading.
        model: Name of its model in the service; None where its users made its vectors.
        metrics: Where its commits are shown.
        device: Where vectors are searched.

    Attributes:
        stale: Why what is in the folder now is not served; empty while it is.
    """

    def __init__(
        self,
        name: str,
        folder: Path | MilvusAddress,
        engine: Writer,
        model: str | None,
        metrics: Metrics,
        device: str | None = None,
    ) -> None:
        self.name, self.folder, self.model = name, folder, model
        self.stale = ""
        self._engine, self._metrics, self._device = engine, metrics, device
        self._replaced: list[Writer] = []  # requests may still be using them
        self._refused: object = None
        self._writing, self._reopening = Lock(), Lock()
        self._keys: tuple[int, dict[str, MetadataKey]] | None = None
        self._show()

    def current(self) -> Writer:
        """The engine, once it has seen the last commit, whichever process made it.

        Comparing commits is one look-up in the database, or one request.
        """
        engine = self._engine
        found = engine.replacement()
        if found is None:
            self._refused, self.stale = None, ""
        elif found != self._refused:
            engine = self._reopened(engine, found)
        if not engine.is_current():
            engine.reload()
            self._metrics.reloads.labels(self.name).inc()
            self._show()
        return engine

    def _reopened(self, engine: Writer, found: object) -> Writer:
        """What has taken the place of an index since it was opened; the index itself where that cannot be served."""
        with self._reopening:
            if self._engine is not engine:  # another request was first
                return self._engine
            try:
                model = None if self.model is None else engine.embedder
                opened = open_place(self.folder, model=model, device=self._device)
                if opened.has_model != engine.has_model:
                    opened.close()
                    raise InputError("it is bound to a model, and the one before was not")
            except (SearchkitError, OSError) as error:
                self._refused = found
                self.stale = f"{self.name} has been replaced, and the service has to be restarted: {error}"
                logger.warning("%s", self.stale)
                return engine
            self._replaced.append(engine)
            self._engine, self._keys, self.stale = opened, None, ""
            self._metrics.reloads.labels(self.name).inc()
            self._show()
            return opened

    def _show(self) -> None:
        self._metrics.commit.labels(self.name).set(self._engine.commit)
        self._metrics.documents.labels(self.name).set(len(self._engine))

    def close(self) -> None:
        """Close the index."""
        for engine in (*self._replaced, self._engine):
            engine.close()

    def keys(self) -> dict[str, MetadataKey]:
        """The metadata keys of the last commit; read once a commit."""
        engine = self.current()
        commit = engine.commit
        if self._keys is None or self._keys[0] != commit:
            self._keys = commit, engine.metadata_keys()
        return self._keys[1]

    def get(self, id: str) -> Found:
        """A document of the last commit."""
        return Found(*self.current().latest(id))

    def write(self, change: Callable[[Writer], T]) -> tuple[int, T]:
        """Make a change as the index's writer; returns the commit after it and what the change returned.

        The writer's lock is held for this change only, so that other processes can write too.

        Raises:
            BusyError: Another process, or another request for too long, is writing.
        """
        if not self._writing.acquire(timeout=_WAIT_FOR_WRITER):
            raise BusyError(f"other requests are writing to {self.name}; try again when they are done")
        try:
            model = None if self.model is None else self._engine.embedder
            with open_place(self.folder, model=model, writable=True) as writer:
                result = change(writer)
                return writer.commit, result
        finally:
            self._writing.release()


class Indexes:
    """All indexes of a service, and their models by name.

    Args:
        settings: Names the folders.
        metrics: Where commits are shown.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.models: dict[str, Embedder] = {}
        self._indexes: dict[str, ServedIndex] = {}
        self._identities: dict[str, str] = {}
        with ExitStack() as undo:
            undo.callback(self.close)
            for folder in settings.indexes:
                name = index_name(folder)
                if name in self._indexes:
                    raise InputError(
                        f"{folder} and {self._indexes[name].folder} are both called {name!r}; rename one of them"
                    )
                model = self._model(folder, settings)
                embedder = None if model is None else self.models[model]
                engine = open_place(folder, model=embedder, device=settings.device)
                self._indexes[name] = ServedIndex(name, folder, engine, model, metrics, settings.device)
            undo.pop_all()

    def __iter__(self) -> Any:
        return iter(self._indexes.values())

    def __getitem__(self, name: str) -> ServedIndex:
        """The index of that name; 404 if none is served."""
        if name not in self._indexes:
            raise not_found("index_not_found", f"no such index; this service has {', '.join(self._indexes)}")
        return self._indexes[name]

    def close(self) -> None:
        """Close all of them."""
        for index in self._indexes.values():
            index.close()

    def _model(self, folder: Path | MilvusAddress, settings: Settings) -> str | None:
        """The name of an index's model, loaded unless another index has the same one; None where it has none."""
        identity = stored_model(folder)
        if identity is None:
            return None
        # Vectors of probe texts differ in the last digits; opening the index compares them.
        apart = FREE if "probes" not in identity else FREE - {"model"} | {"probes"}
        key = json.dumps({name: value for name, value in identity.items() if name not in apart})
        if key not in self._identities:
            embedder = ModelChoice(None, None, settings.device, "auto", settings.threads).load(identity)
            name = base = _served_name(embedder)
            number = 1
            while name in self.models:
                number += 1
                name = f"{base}-{number}"
            self.models[name], self._identities[key] = embedder, name
        return self._identities[key]


def _served_name(embedder: Embedder) -> str:
    """A model's name in requests, which need not know where it lies: its folder's, or that of the run that made it."""
    name = embedder.short_name
    run = Path(embedder.name).parent.name
    return run if name == "model" and run else name  # all runs of `searchkit adapt` call their models so


def index_name(folder: Path | MilvusAddress) -> str:
    """An index's name in requests: its folder's name, without ".index", or its collection's."""
    if isinstance(folder, MilvusAddress):
        return folder.collection
    name = folder.resolve().name.removesuffix(".index")
    if not name or name.startswith(".") or any(c in name for c in "/\\?#%") or not name.isprintable():
        raise InputError(f"{folder} has a name that cannot be part of an address; rename the folder")
    return name
