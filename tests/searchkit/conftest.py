from __future__ import annotations

from collections.abc import Iterator

import pytest
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.records import Document


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Iterator[SearchEngine]:
    """The thirty documents, each in one passage. No test changes what it holds."""
    documents = [Document(str(n), text, title=f"Note {n}", metadata={"n": n}) for n, text in enumerate(TEXTS)]
    with SearchEngine.create(tmp_path_factory.mktemp("engine") / "notes.index", model=embedder) as made:
        made.add(documents)
        yield made
