"""What a small change or a look-up costs does not grow with the index: counted in steps of SQLite's machine."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from searchkit.indexer import database
from searchkit.indexer.columns import cache
from searchkit.indexer.documents import NewDocument
from searchkit.indexer.rewriting import rewrite
from searchkit.indexer.store import Store

SMALL, LARGE = 200, 4000


def documents(count: int, start: int = 0) -> list[NewDocument]:
    return [
        NewDocument(f"d{n}", "", "text", json.dumps({"year": 1990 + n % 30}), "0", [(0, 4)])
        for n in range(start, start + count)
    ]


@pytest.fixture(params=[SMALL, LARGE])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    count = request.param
    with Store.create(tmp_path / "an.index", {"language": "none"}, dim=2) as made:
        made.commit(documents(count), np.ones((count, 2), np.float32))
        yield made


@contextmanager
def steps(monkeypatch: pytest.MonkeyPatch, store: Store) -> Iterator[Callable[[], int]]:
    """Count the steps of all connections, those that are opened meanwhile too."""
    counted = 0

    def count() -> None:
        nonlocal counted
        counted += 1

    def watched(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.set_progress_handler(count, 10)
        return connection

    connect = database._connect
    with monkeypatch.context() as patch:
        patch.setattr(database, "_connect", watched)
        store.database.db.set_progress_handler(count, 10)
        yield lambda: 10 * counted
        store.database.db.set_progress_handler(None, 10)


def test_what_the_lexical_index_lacks_is_found_from_the_nearer_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = store.documents.stored_passages()
    assert count in (SMALL, LARGE)
    with steps(monkeypatch, store) as taken:
        assert [row for row, *_ in store.documents.texts(count - 3)] == [count - 3, count - 2, count - 1]
        assert store.documents.stored_passages() == count
        assert list(store.documents.texts(count)) == []
        assert 0 < taken() < 1000  # 9 steps a passage would be 1,800


def test_passages_are_found_by_their_place_where_rows_are_missing(store: Store) -> None:
    count = store.documents.stored_passages()
    store.delete([0, 5, 6, count - 1])
    assert store.documents.stored_passages() == count
    rewrite(store, store.template(), purge=True)
    left = [row for row in range(count) if row not in (0, 5, 6, count - 1)]
    assert store.documents.stored_passages() == len(left)
    for skip in (0, 1, 4, 5, len(left) // 2, len(left) - 1, len(left)):
        assert [row for row, *_ in store.documents.texts(skip)] == left[skip:]


def test_an_unknown_id_is_found_out_without_reading_documents(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PART", 64)
    store.merge_small_segments()
    store.delete([3])
    assert store.documents.known_ids(["d0"]) == {"d0"}
    with steps(monkeypatch, store) as taken:
        assert store.documents.known_ids(["d1", "nobody", "d3"]) == {"d1"}
        assert 0 < taken() < 2500  # those of up to 63 documents that have no file of columns yet
    with steps(monkeypatch, store) as taken:
        assert store.documents.known_ids(["d1", "nobody", "d3"]) == {"d1"}
        assert 0 < taken() < 300


def test_the_ids_of_a_few_documents_are_read_with_these_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with steps(monkeypatch, store) as taken:
        assert store.documents.ids_of([5, 7]) == {5: "d5", 7: "d7"}
        assert 0 < taken() < 300
