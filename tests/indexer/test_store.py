from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored import flat

from searchkit.errors import DamagedError, StoreError
from searchkit.indexer import repair as mending
from searchkit.indexer import rewriting
from searchkit.indexer.database import LAST, settings_checksum
from searchkit.indexer.documents import NewDocument
from searchkit.indexer.filters import compile_filter
from searchkit.indexer.rewriting import rewrite
from searchkit.indexer.store import Snapshot, Store
from searchkit.indexer.vectors import faiss_index, segments
from searchkit.indexer.vectors.faiss_index import train
from searchkit.indexer.vectors.recipes import Plan
from searchkit.indexer.vectors.search import search as search_segments

TWO_PASSAGES = "Bread rises. Yeast makes gas."


def document(name: str, text: str = TWO_PASSAGES, spans: tuple[tuple[int, int], ...] = ((0, 12), (13, 29))) -> Any:
    return NewDocument(name, f"Title {name}", text, json.dumps({"n": name}), f"sum of {name}", list(spans))


def vectors_in(opened: Store) -> np.ndarray:
    found = opened.snapshot().segments
    return np.concatenate([segment.vectors(np.arange(segment.count)) for segment in found])


def search(snapshot: Snapshot, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    return search_segments(snapshot.segments, vectors, k)


def documents_of(opened: Store, rows: np.ndarray) -> np.ndarray:
    return segments.documents_of(opened.snapshot().segments, rows)


def compact(opened: Store, **options: Any) -> None:
    rewrite(opened, opened.template(), purge=True, **options)


def merge_all(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(segments, "LEVEL", 2)
        opened.merge_small_segments()


@pytest.fixture
def folder(tmp_path: Path, vectors: np.ndarray) -> Path:
    """An index of three commits: documents "0" to "5" with the first twelve vectors."""
    with Store.create(tmp_path / "an.index", {"language": "none"}, dim=16) as made:
        for n in range(3):
            made.commit([document(str(2 * n)), document(str(2 * n + 1))], vectors[4 * n : 4 * n + 4])
    return tmp_path / "an.index"


def segment_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("segments/*/dense.faiss"))


def test_what_was_committed_comes_back(folder: Path, vectors: np.ndarray) -> None:
    with Store(folder) as opened:
        settings = opened.database.settings()
        assert (settings["format"], settings["generation"], settings["language"]) == (3, 3, "none")
        assert opened.documents.counts() == (6, 12)
        np.testing.assert_array_equal(vectors_in(opened), vectors[:12])
        assert [segment.first_row for segment in opened.snapshot().segments] == [0, 4, 8]
        assert list(opened.documents.living())[5] == ("5", "Title 5", TWO_PASSAGES, '{"n": "5"}')
        found = opened.documents.passages([11, 0])
        assert found[11] == (11, 5, "5", "Title 5", "Yeast makes gas.", 13, 29, {"n": "5"})
        assert found[0].text == "Bread rises."
        assert list(opened.documents.texts(11)) == [(11, "Title 5", "Yeast makes gas.")]
        assert (opened.documents.checksum_of("4"), opened.documents.checksum_of("none")) == ("sum of 4", None)


def test_rows_lead_to_their_documents(folder: Path) -> None:
    rows = np.tile([[11, 0, 1], [5, 5, 2]], (3, 4))
    with Store(folder) as opened:
        np.testing.assert_array_equal(documents_of(opened, rows), rows // 2)
        assert opened.documents.ids_of({5, 0}) == {5: "5", 0: "0"}
        assert opened.documents.known_ids(["0", "9", "x"]) == {"0"}


def test_offsets_count_characters_and_not_bytes(tmp_path: Path, vectors: np.ndarray) -> None:
    with Store.create(tmp_path / "i", {}, dim=16) as made:
        made.commit([document("1", "日本語 😀 Ünï end", ((0, 3), (4, 5), (6, 9)))], vectors[:3])
        assert [text for _, _, text in made.documents.texts()] == ["日本語", "😀", "Ünï"]


def test_an_empty_folder_can_become_an_index_and_a_full_one_cannot(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    Store.create(tmp_path / "empty", {}, dim=16).close()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="exists and is not an index"):
        Store.create(tmp_path / "full", {}, dim=16)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "full"]
    assert [entry.name for entry in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_an_empty_index_answers(tmp_path: Path) -> None:
    Store.create(tmp_path / "i", {}, dim=16).close()
    with Store(tmp_path / "i") as opened:
        assert (opened.documents.counts(), opened.snapshot().segments, list(opened.documents.texts())) == (
            (0, 0),
            [],
            [],
        )


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StoreError, match=r"is not an index .*make one with: searchkit index"):
            Store(place)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("content", [b"", b"no database at all, but long enough " * 100, "cut", "another"])
def test_a_file_that_is_no_database_is_reported(folder: Path, content: bytes | str, writable: bool) -> None:
    file = folder / "index.db"
    if content == "another":
        file.unlink()
        with closing(sqlite3.connect(file)) as db:
            db.execute("CREATE TABLE settings (colour TEXT)")
    else:
        file.write_bytes(file.read_bytes()[:3000] if isinstance(content, str) else content)
    with pytest.raises(StoreError, match=r"index\.db cannot be read .*build the index again"):
        Store(folder, writable=writable)


def test_a_newer_format_is_refused(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "index.db")) as db, db:
        db.execute("UPDATE settings SET value = '5' WHERE key = 'format'")
    with pytest.raises(
        StoreError, match="has format 5, this version reads 3 and 4; use the version of searchkit that made"
    ):
        Store(folder)
    with pytest.raises(StoreError, match="has format 5"):
        Store(folder, writable=True)


def as_format_2(folder: Path) -> None:
    """What the version before wrote: the same files, by their SHA-256."""

    def older(file: Path) -> list[Any]:
        return [file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()]

    with closing(sqlite3.connect(folder / "index.db")) as db, db:
        for row, name, files in db.execute("SELECT first_row, name, files FROM segments").fetchall():
            stamps = {file: older(folder / "segments" / name / file) for file in json.loads(files)}
            db.execute("UPDATE segments SET files = ? WHERE first_row = ?", (json.dumps(stamps), row))
        (storage,) = (json.loads(value) for (value,) in db.execute("SELECT value FROM settings WHERE key = 'storage'"))
        name = storage["codebook"]["name"]
        storage["codebook"] = dict(
            zip(("name", "bytes", "sha256"), [name, *older(folder / "codebooks" / name)], strict=True)
        )
        db.execute("UPDATE settings SET value = ? WHERE key = 'storage'", (json.dumps(storage),))
        db.execute("UPDATE settings SET value = '2' WHERE key = 'format'")
        db.execute("UPDATE settings SET value = ? WHERE key = 'seal'", (json.dumps(settings_checksum(db)),))


def test_an_index_of_format_2_is_read_checked_and_extended(folder: Path, vectors: np.ndarray) -> None:
    with Store(folder, writable=True) as store:
        rewrite(store, train(Plan("fp16", 16), vectors[:0]))
    as_format_2(folder)
    with Store(folder, writable=True) as store:
        np.testing.assert_allclose(vectors_in(store), vectors[:12], atol=1e-3)
        store.commit([document("new")], vectors[12:14])
        assert store.database.setting("format") == 3
        store.merge_small_segments()
        np.testing.assert_allclose(vectors_in(store), vectors[:14], atol=1e-3)
    as_format_2(folder)
    file = segment_files(folder)[0]
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with Store(folder) as store, pytest.raises(StoreError, match="its checksum differs"):
        vectors_in(store)


def test_a_second_writer_is_refused_and_told_of_the_first(folder: Path) -> None:
    with Store(folder, writable=True):
        with pytest.raises(StoreError, match=f"is being written by process {os.getpid()}; wait until it is done"):
            Store(folder, writable=True)
        Store(folder).close()  # readers may
    Store(folder, writable=True).close()


def test_a_killed_holder_releases_the_lock(folder: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from searchkit.indexer.store import Store;"
        "held = Store(Path(sys.argv[1]), writable=True); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(folder)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreError, match=f"being written by process {holder.pid};"):
            Store(folder, writable=True)
        holder.kill()
    Store(folder, writable=True).close()


def test_leftovers_of_a_killed_writer_are_removed_by_the_next(folder: Path, vectors: np.ndarray) -> None:
    kept = segment_files(folder)
    for orphan in ("000004", "000005.tmp"):
        shutil.copytree(kept[0].parent, folder / "segments" / orphan)
    with Store(folder) as reader:
        assert len(segment_files(folder)) == 5  # a reader sweeps nothing: it may be a writer's commit under way
        with Store(folder, writable=True):
            assert segment_files(folder) == kept
        np.testing.assert_array_equal(vectors_in(reader), vectors[:12])


def test_a_damaged_segment_is_left_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = segment_files(folder)[1]
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    for writable in (False, True):
        with Store(folder, writable=writable) as opened, pytest.raises(StoreError, match=r"dense\.faiss is damaged"):
            vectors_in(opened)
    with Store(folder, writable=True) as opened, pytest.raises(StoreError, match=r"dense\.faiss is damaged"):
        merge_all(opened, monkeypatch)
    assert [file.parent.name for file in segment_files(folder)][:3] == ["000001", "000002", "000003"]


def test_as_many_vectors_as_passages_or_nothing(folder: Path, vectors: np.ndarray) -> None:
    with Store(folder, writable=True) as opened:
        with pytest.raises(ValueError, match="3 vectors came for 2 passages; expected one each"):
            opened.commit([document("6")], vectors[:3])
        assert opened.documents.counts() == (6, 12)
        assert len(segment_files(folder)) == 3


def test_documents_without_passages_and_commits_of_nothing(folder: Path, vectors: np.ndarray) -> None:
    with Store(folder, writable=True) as opened:
        opened.commit([document("empty", "", ())], vectors[:0])
        opened.commit([], vectors[:0])
        opened.commit([document("6")], vectors[:2])
        assert opened.documents.counts() == (8, 14)
        np.testing.assert_array_equal(documents_of(opened, np.arange(11, 14)), [5, 7, 7])


def test_a_reader_cannot_change_the_index(folder: Path, vectors: np.ndarray) -> None:
    with Store(folder) as reader:
        assert not reader.writable
        for change in (
            lambda: reader.commit([document("6")], vectors[:2]),
            lambda: reader.delete([1]),
            lambda: rewrite(reader, flat(16)),
            reader.merge_small_segments,
        ):
            with pytest.raises(StoreError, match="is open for reading; open it for writing to change it"):
                change()
    assert len(list((folder / "segments").iterdir())) == 3


def test_merging_keeps_every_row(folder: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(folder, writable=True) as opened:
        before = search(opened.snapshot(), vectors, 12)
        merge_all(opened, monkeypatch)
        assert [(segment.first_row, segment.count) for segment in opened.snapshot().segments] == [(0, 12)]
        np.testing.assert_array_equal(vectors_in(opened), vectors[:12])
        np.testing.assert_array_equal(search(opened.snapshot(), vectors, 12), before)
        assert len(list((folder / "segments").iterdir())) == 1
        opened.commit([document("6")], vectors[12:14])
        np.testing.assert_array_equal(vectors_in(opened), vectors[:14])


def test_a_reader_keeps_answering_through_commits_and_merges(
    folder: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(folder) as reader, Store(folder, writable=True) as writer:
        snapshot = reader.snapshot()
        before = search(snapshot, vectors, 12)
        writer.commit([document("6")], vectors[12:14])
        merge_all(writer, monkeypatch)
        assert len(segment_files(folder)) == 1  # the reader's files are gone from the folder
        np.testing.assert_array_equal(search(snapshot, vectors, 12), before)
        assert reader.documents.passages(before[0][0])[0].text == "Bread rises."
        assert reader.documents.counts() == (7, 14)
        np.testing.assert_array_equal(vectors_in(reader), vectors[:14])


# Deleting


def test_deleted_documents_are_marked_and_the_others_stay(folder: Path, vectors: np.ndarray) -> None:
    with Store(folder, writable=True) as opened, Store(folder) as reader:
        before = reader.snapshot()
        assert opened.documents.positions_of(["1", "4", "x"]) == [1, 4]
        assert opened.delete([1, 4, 4]) == 2
        assert opened.delete([1, 77]) == 0
        for now in (opened, reader):
            snapshot = now.snapshot()
            assert (snapshot.documents, snapshot.passages, snapshot.next_row) == (4, 8, 12)
            np.testing.assert_array_equal(snapshot.dead, [2, 3, 8, 9])
            assert now.documents.known_ids([str(n) for n in range(6)]) == {"0", "2", "3", "5"}
            assert now.documents.checksum_of("1") is None
            assert [id for id, _, _, _ in now.documents.living()] == ["0", "2", "3", "5"]
            assert [row for row, _, _ in now.documents.texts(living=True)] == [0, 1, 4, 5, 6, 7, 10, 11]
        assert before.dead.size == 0
        assert reader.documents.passages([2])[2].id == "1"  # for those who look at an older commit


def test_an_id_can_be_added_again_after_its_deletion_and_in_the_same_commit(folder: Path, vectors: np.ndarray) -> None:
    with Store(folder, writable=True) as opened:
        opened.delete([1])
        opened.commit([document("1", "New text", ((0, 8),)), document("2", "Other", ((0, 5),))], vectors[12:14],
                      delete=["1", "2", "none"])  # fmt: skip
        assert opened.documents.counts() == (6, 10)
        assert opened.documents.positions_of(["1", "2"]) == [6, 7]
        np.testing.assert_array_equal(opened.snapshot().dead, [2, 3, 4, 5])
        assert [found.text for found in opened.documents.passages([12, 13]).values()] == ["New text", "Other"]


def test_compaction_removes_deleted_documents_only(folder: Path, vectors: np.ndarray) -> None:
    made: list[Path] = []
    with Store(folder, writable=True) as opened:
        opened.delete([0, 1, 4])
        compact(opened, make_lexical=lambda place: made.append(place) or place.mkdir())
        snapshot = opened.snapshot()
        assert (snapshot.documents, snapshot.passages, snapshot.next_row, snapshot.next_doc) == (3, 6, 12, 6)
        assert snapshot.dead.size == 0
        np.testing.assert_array_equal(vectors_in(opened), vectors[[4, 5, 6, 7, 10, 11]])
        assert opened.documents.passages(range(12)).keys() == {4, 5, 6, 7, 10, 11}
        assert [row for row, _, _ in opened.documents.texts()] == [4, 5, 6, 7, 10, 11]
        assert opened.documents.stored_passages() == 6
        opened.commit([document("new")], vectors[12:14])  # places are not given a second time
        assert opened.documents.positions_of(["new"]) == [6]
        assert set(opened.documents.passages([12])) == {12}
    assert [place.name for place in made] == ["000002"]
    assert [place.name for place in (folder / "lexical").iterdir()] == ["000002"]


def test_compaction_refuses_to_remove_a_document_that_is_damaged(folder: Path) -> None:
    with Store(folder, writable=True) as opened:
        opened.delete([0, 4])
        opened.database.db.execute("UPDATE documents SET title = 'Another' WHERE doc = 4")
        with pytest.raises(DamagedError, match="document '4' differs from its checksum"):
            compact(opened)
        assert opened.snapshot().dead_docs.tolist() == [0, 4]
        opened.database.db.execute("UPDATE documents SET title = 'Title 4' WHERE doc = 4")
        compact(opened)
        opened.documents.check_contents()


def test_segments_are_rewritten_together_as_far_as_memory_allows(
    folder: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(folder, writable=True) as opened:
        compact(opened)
        assert len(opened.entries()) == 1  # exact vectors are streamed
        opened.commit([document("6")], vectors[12:14])
        opened.commit([document("7")], vectors[14:16])
        monkeypatch.setattr(rewriting, "_HELD", 14 * (rewriting._BOOKKEEPING + 2 * 16))
        rewrite(opened, train(Plan("fp16", 16), vectors))
        assert [entry.count for entry in opened.entries()] == [14, 2]
        assert Plan("ivf-pq", 384, 48, 1000).held == 56
        assert Plan("pq", 384, 48).held == 56
        assert Plan("ivf-int8", 384, 0, 1000).held == 392


def test_everything_can_be_deleted_and_compacted(folder: Path, vectors: np.ndarray) -> None:
    with Store(folder, writable=True) as opened:
        opened.delete(range(6))
        assert search(opened.snapshot(), vectors, 3)[0].shape == (40, 3)
        compact(opened)
        assert opened.snapshot().segments == []
        assert list((folder / "segments").iterdir()) == []
        opened.commit([document("0")], vectors[:2])
        np.testing.assert_array_equal(vectors_in(opened), vectors[:2])
        np.testing.assert_array_equal(segments.all_rows(opened.snapshot().segments), [12, 13])


def test_a_filter_selects_from_what_a_commit_held(folder: Path) -> None:
    low = compile_filter({"n": {"$in": ["0", "1", "5"]}})
    with Store(folder, writable=True) as writer, Store(folder) as reader:
        old = reader.snapshot()
        writer.delete([1])
        new = reader.snapshot()
        for snapshot, docs in ((old, [0, 1, 5]), (new, [0, 5])):
            found, rows = reader.matching(low, snapshot)
            np.testing.assert_array_equal(found, docs)
            np.testing.assert_array_equal(rows, [row for doc in docs for row in (2 * doc, 2 * doc + 1)])
        compact(writer)
        with pytest.raises(StoreError, match="has been compacted since it was opened; open it again"):
            reader.matching(low, old)
        np.testing.assert_array_equal(reader.matching(low, reader.snapshot())[0], [0, 5])


# Damage


def change(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "index.db")) as db, db:
        assert db.execute(statement).rowcount > 0


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


# Failures


@pytest.fixture(params=["writing the vectors", "syncing", "renaming", "in the transaction"])
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[NewDocument]:
    """A document whose commit fails at that step; the last one by its id, which is taken."""
    steps = {"writing the vectors": (faiss_index, "write_flat"), "syncing": (os, "fsync"), "renaming": (Path, "rename")}

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if request.param in steps:
            patch.setattr(*steps[request.param], disk_full)
        yield document("new" if request.param in steps else "0")


def test_a_commit_that_fails_leaves_the_last_one_whole(folder: Path, vectors: np.ndarray, failing: NewDocument) -> None:
    with Store(folder, writable=True) as opened, Store(folder) as reader:
        with pytest.raises((OSError, StoreError), match=r"No space left|UNIQUE constraint failed"):
            opened.commit([document("6"), failing], vectors[12:16])
        for now in (opened, reader):
            assert now.documents.counts() == (6, 12)
            assert now.database.settings()["generation"] == 3
            np.testing.assert_array_equal(vectors_in(now), vectors[:12])


def test_a_writer_can_try_again_after_a_commit_that_failed(
    folder: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(folder, writable=True) as opened:
        for step in ((faiss_index, "write_flat"), (os, "fsync"), (Path, "rename")):
            with monkeypatch.context() as patch:
                patch.setattr(*step, lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    opened.commit([document("6")], vectors[12:14])
        opened.commit([document("6")], vectors[12:14])
        np.testing.assert_array_equal(vectors_in(opened), vectors[:14])
    with Store(folder, writable=True):
        assert len(list((folder / "segments").iterdir())) == 4  # nothing of the failures is left


@pytest.mark.parametrize("work", [merge_all, lambda opened, _: compact(opened)])
def test_merging_or_compacting_that_fails_leaves_the_segments(
    folder: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch, work: Any
) -> None:
    with Store(folder, writable=True) as opened:
        opened.delete([0])
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                work(opened, monkeypatch)
        assert len(opened.snapshot().segments) == 3
        np.testing.assert_array_equal(vectors_in(opened), vectors[:12])
        work(opened, monkeypatch)
        np.testing.assert_array_equal(vectors_in(opened)[-10:], vectors[2:12])


@pytest.fixture
def read_only(folder: Path) -> Iterator[Path]:
    """The index in a place that this process cannot write to, as root neither."""
    place = Path(tempfile.mkdtemp())  # not below tmp_path, where only its owner may look
    shutil.copytree(folder, place / "an.index")
    inside = [place, *place.rglob("*")]
    for entry in inside:
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        if os.access(place, os.W_OK, effective_ids=True):
            pytest.skip("this user can write everywhere")
        yield place / "an.index"
    finally:
        os.seteuid(user)
        for entry in inside:
            entry.chmod(0o755)
        shutil.rmtree(place)


def test_an_index_in_a_read_only_folder_can_be_read(read_only: Path, vectors: np.ndarray) -> None:
    with Store(read_only) as opened:
        assert opened.documents.counts() == (6, 12)
        np.testing.assert_array_equal(vectors_in(opened), vectors[:12])
        assert opened.documents.passages([0])[0].text == "Bread rises."


def test_a_closed_index_says_so(folder: Path) -> None:
    opened = Store(folder)
    opened.close()
    for work in (opened.snapshot, lambda: opened.documents.passages([0]), lambda: list(opened.documents.living())):
        with pytest.raises(StoreError, match=r"an\.index has been closed; open it again"):
            work()


def test_a_bug_is_not_taken_for_damage(folder: Path, vectors: np.ndarray) -> None:
    with Store(folder, writable=True) as opened:
        for wrong in (document("6")._replace(title=object()), document("\ud800")):
            with pytest.raises((TypeError, ValueError, sqlite3.ProgrammingError)) as caught:
                opened.commit([wrong], vectors[12:14])
            assert not isinstance(caught.value, StoreError)
        assert opened.documents.counts() == (6, 12)


def test_damage_says_where_it_is_and_whether_it_can_be_repaired(folder: Path) -> None:
    segment_files(folder)[0].unlink()
    with Store(folder) as opened, pytest.raises(DamagedError) as caught:
        vectors_in(opened)
    assert (caught.value.path, caught.value.damage, caught.value.repairable) == (
        folder / "segments" / "000001" / "dense.faiss",
        "is missing",
        True,
    )
    (folder / "index.db").write_bytes(b"no database at all, but long enough " * 100)
    with pytest.raises(DamagedError) as caught:
        Store(folder)
    assert (caught.value.path, caught.value.repairable) == (folder / "index.db", False)


def test_sizes_add_up_to_the_folder(folder: Path) -> None:
    with Store(folder) as opened:
        sizes = opened.sizes()
    assert sizes["segments"] == sum(file.stat().st_size for file in folder.glob("segments/*/*")) > 12 * 16 * 4
    assert sizes["index.db"] >= (folder / "index.db").stat().st_size
    assert sizes["lexical"] == 0
