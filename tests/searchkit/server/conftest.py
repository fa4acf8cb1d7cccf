"""A service over two small indexes of one tiny model, behind a real socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from serving import running
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.records import Document
from searchkit.server.process import Server
from searchkit.server.settings import Settings


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
    with ExitStack() as stack:
        yield lambda *indexes, **settings: stack.enter_context(
            running(Settings(indexes or (notes,), port=0, **settings))
        )
