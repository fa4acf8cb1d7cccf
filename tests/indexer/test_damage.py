"""Damage to a store is reported, and never shown or overwritten."""

from __future__ import annotations

import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from stored import change, document, segment_files

from searchkit.errors import StoreError
from searchkit.indexer import repair as mending
from searchkit.indexer.database import LAST
from searchkit.indexer.filters import compile_filter
from searchkit.indexer.store import Store


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE settings SET value = '7' WHERE key = 'documents'",
        "UPDATE settings SET value = x'00ff' WHERE key = 'next_row'",
        "DELETE FROM settings WHERE key = 'storage'",
        "DELETE FROM settings WHERE key = 'seal'",
        "DELETE FROM segments WHERE first_row = 4",
        "UPDATE segments SET name = '000002' WHERE first_row = 8",
        "UPDATE documents SET deleted = 1 WHERE doc = 2",
        "UPDATE documents SET deleted = 0 WHERE doc = 3",
        "UPDATE documents SET first_row = 0 WHERE doc = 3",
    ],
)
def test_damaged_settings_segments_and_deletions_are_reported_and_never_overwritten(
    folder: Path, vectors: np.ndarray, statement: str
) -> None:
    with Store(folder, writable=True) as opened:
        opened.delete([3])
    change(folder, statement)
    for writable in (False, True):
        with pytest.raises(StoreError, match=r"index\.db (is damaged|cannot be read)"), Store(
            folder, writable=writable
        ) as opened:  # fmt: skip
            opened.snapshot()
    if "documents SET" not in statement:
        with pytest.raises(StoreError, match=r"index\.db (is damaged|cannot be read)"), Store(
            folder, writable=True
        ) as opened:  # fmt: skip
            opened.commit([document("6")], vectors[12:14])
    assert [file.parent.name for file in segment_files(folder)][:3] == ["000001", "000002", "000003"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE documents SET text = 'Bread falls. Yeast makes gas.' WHERE doc = 2",
        "UPDATE documents SET title = x'ff' WHERE doc = 2",
        "UPDATE documents SET id = '9' WHERE doc = 2",
        'UPDATE documents SET metadata = \'{"n": "1"}\' WHERE doc = 2',
        "UPDATE documents SET passages = 1 WHERE doc = 2",
        "UPDATE passages SET stop = 9 WHERE row = 5",
        "UPDATE passages SET doc = 1 WHERE row = 5",
        "DELETE FROM passages WHERE row = 4",
        "DELETE FROM documents WHERE doc = 2",
    ],
)
def test_a_damaged_document_is_never_shown(folder: Path, statement: str) -> None:
    change(folder, statement)
    with Store(folder) as opened:
        try:
            found = opened.documents.passages([4, 5, 6])
        except StoreError as error:
            assert "index.db is damaged: document" in str(error) or "cannot be read" in str(error)  # noqa: PT017
        else:
            assert 5 not in found
        assert opened.documents.passages([6])[6].id == "3"


@pytest.mark.parametrize("column", ["id", "title", "metadata", "first_row", "doc"])
def test_a_document_hidden_by_damage_is_not_taken_for_absent(folder: Path, column: str) -> None:
    change(folder, f"UPDATE documents SET {column} = 70 WHERE doc = 2")
    with Store(folder) as opened:
        for work in (
            lambda: opened.matching(compile_filter({"n": "2"}), opened.snapshot()),
            lambda: opened.documents.ids_of([2]),
            lambda: opened.documents.known_ids(["0", "9"]),
        ):
            with pytest.raises(StoreError, match=r"index\.db is damaged: (its documents|document .*) differ"):
                work()
        assert opened.documents.ids_of([1]) == {1: "1"}  # compared with its own checksum


def change_without_trees(folder: Path, statement: str) -> None:
    """Change the table of documents and not the search trees over it, as damage does."""
    with closing(sqlite3.connect(folder / "index.db")) as db, db:
        db.execute("PRAGMA writable_schema=ON")
        trees = db.execute("SELECT * FROM sqlite_master WHERE name IN ('living', 'dead')").fetchall()
        db.execute("DELETE FROM sqlite_master WHERE name IN ('living', 'dead')")
    change(folder, statement)
    with closing(sqlite3.connect(folder / "index.db")) as db, db:
        db.execute("PRAGMA writable_schema=ON")
        db.executemany("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", trees)


@pytest.mark.parametrize("mark", ["deleted = 0 WHERE doc = 1", "deleted = 1 WHERE doc = 0"])
def test_a_deletion_mark_that_contradicts_the_search_tree_changes_no_result(folder: Path, mark: str) -> None:
    with Store(folder, writable=True) as opened:
        opened.delete([1])
    change_without_trees(folder, f"UPDATE documents SET {mark}")
    low = compile_filter({"n": {"$in": ["0", "1", "5"]}})
    with Store(folder) as opened:
        np.testing.assert_array_equal(opened.matching(low, opened.snapshot())[0], [0, 5])
        with pytest.raises(StoreError, match=r"index\.db is damaged: its documents differ from their checksum"):
            list(opened.documents.living())


def test_reading_all_documents_compares_each_with_its_checksum(folder: Path) -> None:
    change(folder, "UPDATE documents SET text = 'Bread falls. Yeast makes gas.' WHERE doc = 2")
    with Store(folder) as opened, pytest.raises(StoreError, match="document '2' differs from its checksum"):
        list(opened.documents.living())


@pytest.mark.parametrize("read", ["living", "metadata", "texts", "examine"])
def test_an_iterator_left_halfway_holds_nobody_up(folder: Path, vectors: np.ndarray, read: str) -> None:
    with Store(folder, writable=True) as opened, ThreadPoolExecutor(1) as other:
        ways = {"examine": lambda: mending.examine(opened)}
        half, whole = (ways.get(read) or getattr(opened.documents, read) for _ in range(2))
        abandoned, rows = half(), list(whole())
        first = next(abandoned)
        try:
            other.submit(opened.commit, [document("6")], vectors[12:14]).result(timeout=20)
            other.submit(opened.delete, [0]).result(timeout=20)
            assert [first, *abandoned] == rows, "an iteration is of one commit"
        finally:
            abandoned.close()
        another = half()
        next(another)
        other.submit(another.close).result(timeout=20)  # as the garbage collector does, in whatever thread it runs


@pytest.mark.parametrize("damage", ["gone", "cut", "bit"])
def test_a_log_that_lost_commits_is_not_taken_for_an_older_index(folder: Path, damage: str) -> None:
    copy = folder.with_name("killed.index")
    with Store(folder, writable=True) as opened:
        opened.delete([1])
        opened.delete([2])
        shutil.copytree(folder, copy)  # as a killed writer leaves it
    log = copy / "index.db-wal"
    content = bytearray(log.read_bytes())
    content[-100] ^= 1
    log.write_bytes({"gone": b"", "cut": content[:-5000], "bit": content}[damage])
    for writable in (False, True):
        with Store(copy, writable=writable) as opened:
            assert opened.database.lost_commits() in (1, 2)
            with pytest.raises(
                StoreError, match=r"but commit 5 was made: its log, index\.db-wal, is damaged or missing"
            ):
                opened.snapshot()
    with Store(copy, writable=True) as opened:
        mending.forget_lost_commits(opened)
        assert opened.snapshot().documents in (5, 6)


@pytest.mark.parametrize("content", [None, b"", b"9" * 20, b"99999999999999999999 00000000\n", b"more" * 20])
def test_the_number_of_the_last_commit_may_be_missing_or_damaged(folder: Path, content: bytes | None) -> None:
    (folder / LAST).unlink()
    if content is not None:
        (folder / LAST).write_bytes(content)
    with Store(folder, writable=True) as opened:
        assert opened.snapshot().generation == 3
        assert opened.database.note_is_gone()
        opened.delete([1])
        assert opened.database.lost_commits() == 0
        assert not opened.database.note_is_gone()
    assert (folder / LAST).read_bytes().startswith(b"%020d " % 4)


def test_an_id_missing_from_the_search_tree_is_not_taken_for_unknown(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "index.db")) as db:
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_master SET sql = replace(sql, 'deleted = 0', 'deleted = 7') WHERE name = 'living'")
        db.commit()
        db.execute("PRAGMA writable_schema=RESET")
        db.execute("REINDEX")
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_master SET sql = replace(sql, 'deleted = 7', 'deleted = 0') WHERE name = 'living'")
        db.commit()
    with Store(folder) as opened, pytest.raises(StoreError, match="search tree of the ids differs from the documents"):
        opened.documents.known_ids(["0"])


def test_a_store_can_be_read_by_many_threads(folder: Path) -> None:
    low = compile_filter({"n": {"$in": ["0", "1", "5"]}})
    with Store(folder) as reader, ThreadPoolExecutor(8) as threads:

        def work(n: int) -> int:
            snapshot = reader.snapshot()
            return (
                len(reader.documents.passages([n % 12])) + len(reader.matching(low, snapshot)[0]) + snapshot.documents
            )

        assert set(threads.map(work, range(200))) == {1 + 3 + 6}
