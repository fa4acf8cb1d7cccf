from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from filtered import Found, connect, select
from stored import document

from searchkit.indexer.store import Store


@pytest.fixture
def folder(tmp_path: Path, vectors: np.ndarray) -> Path:
    """An index of three commits: documents "0" to "5" with the first twelve vectors."""
    with Store.create(tmp_path / "an.index", {"language": "none"}, dim=16) as made:
        for n in range(3):
            made.commit([document(str(2 * n)), document(str(2 * n + 1))], vectors[4 * n : 4 * n + 4])
    return tmp_path / "an.index"


@pytest.fixture
def found() -> Iterator[Found]:
    db = connect()
    yield lambda where, *metadata: select(db, where, *metadata)
    db.close()
