"""A service over two small indexes of one tiny model, behind a real socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.records import Document
from searchkit.server.app import create_app
from searchkit.server.process import Server
from searchkit.server.settings import Keys, Settings

KEYS = Keys(("reading-key",), ("writing-key",))


@contextmanager
def running(settings: Settings) -> Iterator[Server]:
    """A service in a thread."""
    server = Server(create_app(settings), settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        assert server.started
        yield server
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with the built-in model."""
    folder = tmp_path_factory.mktemp("served") / "notes.index"
    with SearchEngine.create(folder, model=Embedder("builtin")) as engine:
        engine.add(
            Document(str(n), text, title=f"Note {n}", metadata={"n": n, "even": n % 2 == 0, "tags": ["a", f"t{n % 3}"]})
            for n, text in enumerate(TEXTS)
        )
    return folder


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another index with the built-in model."""
    folder = tmp_path_factory.mktemp("served") / "others.index"
    with SearchEngine.create(folder, model="builtin") as engine:
        engine.add([Document("a/b", "A document whose id has a slash."), Document("../c", "And one with dots.")])
    return folder


@pytest.fixture(scope="session")
def server(notes: Path, others: Path) -> Iterator[Server]:
    """A service that only reads."""
    with running(Settings((notes, others), port=0)) as server:
        yield server


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address, timeout=30) as client:
        yield client


@pytest.fixture
def serve(notes: Path) -> Iterator[Callable[..., Server]]:
    """Starts a service with settings of its own."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda *indexes, **settings: stack.enter_context(
            running(Settings(indexes or (notes,), port=0, **settings))
        )
