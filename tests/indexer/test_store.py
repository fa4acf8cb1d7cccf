from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored import TWO_PASSAGES, compact, document, flat, merge_all, segment_files, vectors_in

from searchkit.errors import DamagedError, StoreError
from searchkit.indexer import rewriting
from searchkit.indexer.database import settings_checksum
from searchkit.indexer.filters import compile_filter
from searchkit.indexer.rewriting import rewrite
from searchkit.indexer.store import Snapshot, Store
from searchkit.indexer.vectors import segments
from searchkit.indexer.vectors.faiss_index import train
from searchkit.indexer.vectors.recipes import Plan
from searchkit.indexer.vectors.search import search as search_segments


def search(snapshot: Snapshot, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    return search_segments(snapshot.segments, vectors, k)


def documents_of(opened: Store, rows: np.ndarray) -> np.ndarray:
    return segments.documents_of(opened.snapshot().segments, rows)


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


def test_an_empty_folder_stays_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A volume cannot be removed, and nobody can work in a folder that was.
    (tmp_path / ".unmade" / "lexical").mkdir(parents=True)  # of a process that was killed
    monkeypatch.chdir(tmp_path)
    Store.create(Path(), {}, dim=16).close()
    assert {entry.name for entry in Path().iterdir()} >= {"index.db", "segments", "lexical", "codebooks"}
    assert not Path(".unmade").exists()
    with Store(Path()) as opened:
        assert opened.snapshot().documents == 0


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
