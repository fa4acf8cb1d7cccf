from __future__ import annotations

from collections.abc import Iterator

import pytest
from synthetic import add_topics

from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Iterator[SearchEngine]:
    with SearchEngine.create(tmp_path_factory.mktemp("grounded") / "x.index", model=embedder, chunk_tokens=0) as made:
        add_topics(made)
        yield made
