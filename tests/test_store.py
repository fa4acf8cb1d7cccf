from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from searchkit.indexer import dense, store
from searchkit.indexer.store import NewDocument, Store, StoreError

TWO_PASSAGES = "Bread rises. Yeast makes gas."


def document(name: str, text: str = TWO_PASSAGES, spans: tuple[tuple[int, int], ...] = ((0, 12), (13, 29))) -> Any:
    return NewDocument(name, f"Title {name}", text, json.dumps({"n": name}), f"sum of {name}", list(spans))


def vectors_in(opened: Store) -> np.ndarray:
    return np.concatenate([dense.vectors_of(segment.index) for segment in opened.segments()])


@pytest.fixture
def folder(tmp_path: Path, vectors: np.ndarray) -> Path:
    """An index of three commits: documents "0" to "5" with the first twelve vectors."""
    with Store.create(tmp_path / "an.index", {"language": "none"}) as made:
        for n in range(3):
            made.commit([document(str(2 * n)), document(str(2 * n + 1))], vectors[4 * n : 4 * n + 4])
    return tmp_path / "an.index"


def segment_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("segments/*/dense.faiss"))


def test_what_was_committed_comes_back(folder: Path, vectors: np.ndarray) -> None:
    with Store(folder) as opened:
        assert opened.settings() == {"format": 1, "generation": 3, "language": "none"}
        assert opened.counts() == (6, 12)
        np.testing.assert_array_equal(vectors_in(opened), vectors[:12])
        assert [segment.first_row for segment in opened.segments()] == [0, 4, 8]
        assert list(opened.documents())[5] == ("5", "Title 5", TWO_PASSAGES)
        found = opened.passages([11, 0])
        assert found[11] == (11, 5, "5", "Title 5", "Yeast makes gas.", 13, 29, {"n": "5"})
        assert found[0].text == "Bread rises."
        assert list(opened.texts(11)) == [(11, "Title 5", "Yeast makes gas.")]
        assert (opened.checksum_of("4"), opened.checksum_of("none")) == ("sum of 4", None)


@pytest.mark.parametrize("many", [1, 300])  # few rows are asked of the database, many of a table in memory
def test_rows_lead_to_their_documents(folder: Path, many: int) -> None:
    rows = np.tile([[11, 0, 1], [5, 5, 2]], (many, 4))
    with Store(folder) as opened:
        np.testing.assert_array_equal(opened.documents_of(rows), rows // 2)
        assert opened.ids_of({5, 0}) == {5: "5", 0: "0"}
        assert opened.known_ids(["0", "9", "x"]) == {"0"}


def test_offsets_count_characters_and_not_bytes(tmp_path: Path, vectors: np.ndarray) -> None:
    with Store.create(tmp_path / "i", {}) as made:
        made.commit([document("1", "日本語 😀 Ünï end", ((0, 3), (4, 5), (6, 9)))], vectors[:3])
        assert [text for _, _, text in made.texts()] == ["日本語", "😀", "Ünï"]


def test_an_empty_folder_can_become_an_index_and_a_full_one_cannot(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    Store.create(tmp_path / "empty", {}).close()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="exists and is not an index"):
        Store.create(tmp_path / "full", {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "full"]
    assert [entry.name for entry in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_an_empty_index_answers(tmp_path: Path) -> None:
    Store.create(tmp_path / "i", {}).close()
    with Store(tmp_path / "i") as opened:
        assert (opened.counts(), opened.segments(), list(opened.texts())) == ((0, 0), [], [])


def test_what_is_not_an_index_is_said(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StoreError, match=r"is not an index .*make one with: searchkit index"):
            Store(place)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("content", [b"", b"no database at all, but long enough " * 100, "cut", "another"])
def test_an_index_db_that_is_none_is_said(folder: Path, content: bytes | str, writable: bool) -> None:
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
        db.execute("UPDATE settings SET value = '2' WHERE key = 'format'")
    with pytest.raises(StoreError, match="has format 2, this version reads 1; use the version of searchkit that made"):
        Store(folder)
    with pytest.raises(StoreError, match="has format 2"):
        Store(folder, writable=True)


def test_a_second_writer_is_refused_and_told_of_the_first(folder: Path) -> None:
    with Store(folder, writable=True):
        with pytest.raises(StoreError, match=f"is being written by process {os.getpid()}; wait until it is done"):
            Store(folder, writable=True)
        Store(folder).close()  # readers may
    Store(folder, writable=True).close()


def test_the_lock_goes_with_a_killed_holder(folder: Path) -> None:
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


def test_what_a_killed_writer_left_is_swept_by_the_next_one(folder: Path, vectors: np.ndarray) -> None:
    kept = segment_files(folder)
    for orphan in ("000004", "000005.tmp"):
        shutil.copytree(kept[0].parent, folder / "segments" / orphan)
    with Store(folder) as reader:
        assert len(segment_files(folder)) == 5  # a reader sweeps nothing: it may be a writer's commit under way
        with Store(folder, writable=True):
            assert segment_files(folder) == kept
        np.testing.assert_array_equal(vectors_in(reader), vectors[:12])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.unlink(), "is missing; build the index again"),
        (lambda file: shutil.rmtree(file.parents[1]), "is missing; build the index again"),
        (lambda file: file.write_bytes(file.read_bytes()[:-7]), r"has \d+ bytes, expected \d+; build the index again"),
        (lambda file: file.write_bytes(b""), "has 0 bytes, expected"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\0"), "is damaged .its checksum differs"),
        (lambda file: shutil.copy(file.parents[1] / "000001" / "dense.faiss", file), "is damaged"),
    ],
    ids=["missing", "no segments", "truncated", "emptied", "one byte", "another's"],
)
def test_a_damaged_segment_is_named(folder: Path, damage: Any, said: str) -> None:
    damage(segment_files(folder)[1])
    for writable in (False, True):
        with Store(folder, writable=writable) as opened, pytest.raises(StoreError, match=rf"dense\.faiss {said}"):
            opened.segments()
    with Store(folder, writable=True) as opened, pytest.raises(StoreError, match=rf"dense\.faiss {said}"):
        opened.merge_small_segments()


def test_as_many_vectors_as_passages_or_nothing(folder: Path, vectors: np.ndarray) -> None:
    with Store(folder, writable=True) as opened:
        with pytest.raises(ValueError, match="3 vectors came for 2 passages; expected one each"):
            opened.commit([document("6")], vectors[:3])
        assert opened.counts() == (6, 12)
        assert len(segment_files(folder)) == 3


def test_documents_without_passages_and_commits_of_nothing(folder: Path, vectors: np.ndarray) -> None:
    with Store(folder, writable=True) as opened:
        opened.commit([document("empty", "", ())], vectors[:0])
        opened.commit([], vectors[:0])
        opened.commit([document("6")], vectors[:2])
        assert opened.counts() == (8, 14)
        np.testing.assert_array_equal(opened.documents_of(np.arange(11, 14)), [5, 7, 7])


def test_a_reader_cannot_change_the_index(folder: Path, vectors: np.ndarray) -> None:
    with Store(folder) as reader:
        assert not reader.writable
        for change in (lambda: reader.commit([document("6")], vectors[:2]), reader.merge_small_segments):
            with pytest.raises(StoreError, match="is open for reading; open it for writing to change it"):
                change()
    assert len(list((folder / "segments").iterdir())) == 3


def test_merging_keeps_every_row(folder: Path, vectors: np.ndarray) -> None:
    with Store(folder, writable=True) as opened:
        before = dense.search(opened.segments(), vectors, 12)
        opened.merge_small_segments()
        assert [(segment.first_row, segment.index.ntotal) for segment in opened.segments()] == [(0, 12)]
        np.testing.assert_array_equal(vectors_in(opened), vectors[:12])
        np.testing.assert_array_equal(dense.search(opened.segments(), vectors, 12), before)
        assert len(list((folder / "segments").iterdir())) == 1
        opened.commit([document("6")], vectors[12:14])
        np.testing.assert_array_equal(vectors_in(opened), vectors[:14])


def test_merging_stops_at_its_size(folder: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MERGED_BYTES", 2 * segment_files(folder)[0].stat().st_size)
    with Store(folder, writable=True) as opened:
        opened.merge_small_segments()
        assert [(segment.first_row, segment.index.ntotal) for segment in opened.segments()] == [(0, 8), (8, 4)]
        np.testing.assert_array_equal(vectors_in(opened), vectors[:12])


def test_a_reader_answers_on_through_commits_and_merges(folder: Path, vectors: np.ndarray) -> None:
    with Store(folder) as reader, Store(folder, writable=True) as writer:
        segments = reader.segments()
        before = dense.search(segments, vectors, 12)
        writer.commit([document("6")], vectors[12:14])
        writer.merge_small_segments()
        assert len(segment_files(folder)) == 1  # the reader's files are gone from the folder
        np.testing.assert_array_equal(dense.search(segments, vectors, 12), before)
        assert reader.passages(before[0][0])[0].text == "Bread rises."
        assert reader.counts() == (7, 14)
        np.testing.assert_array_equal(vectors_in(reader), vectors[:14])


def test_a_snapshot_is_of_one_commit(folder: Path, vectors: np.ndarray) -> None:
    with Store(folder) as reader, Store(folder, writable=True) as writer:
        with reader.snapshot():
            assert reader.counts() == (6, 12)
            writer.commit([document("6")], vectors[12:14])
            assert reader.counts() == (6, 12)
            assert sum(segment.index.ntotal for segment in reader.segments()) == 12
        assert reader.counts() == (7, 14)


@pytest.fixture(params=["writing the vectors", "syncing", "renaming", "in the transaction"])
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[NewDocument]:
    """A document whose commit fails at that step; the last one by its id, which is taken."""
    steps = {"writing the vectors": (dense, "write"), "syncing": (os, "fsync"), "renaming": (Path, "rename")}

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if request.param in steps:
            patch.setattr(*steps[request.param], disk_full)
        yield document("new" if request.param in steps else "0")


def test_a_commit_that_fails_leaves_the_last_one_whole(folder: Path, vectors: np.ndarray, failing: NewDocument) -> None:
    with Store(folder, writable=True) as opened, Store(folder) as reader:
        with pytest.raises((OSError, sqlite3.IntegrityError)):
            opened.commit([document("6"), failing], vectors[12:16])
        for now in (opened, reader):
            assert now.counts() == (6, 12)
            assert now.settings()["generation"] == 3
            np.testing.assert_array_equal(vectors_in(now), vectors[:12])


def test_a_writer_can_try_again_after_a_commit_that_failed(
    folder: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(folder, writable=True) as opened:
        for step in ((dense, "write"), (os, "fsync"), (Path, "rename")):
            with monkeypatch.context() as patch:
                patch.setattr(*step, lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    opened.commit([document("6")], vectors[12:14])
        opened.commit([document("6")], vectors[12:14])
        np.testing.assert_array_equal(vectors_in(opened), vectors[:14])
    with Store(folder, writable=True):
        assert len(list((folder / "segments").iterdir())) == 4  # nothing of the failures is left


def test_a_merge_that_fails_leaves_the_segments(
    folder: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(folder, writable=True) as opened:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                opened.merge_small_segments()
        assert len(opened.segments()) == 3
        opened.merge_small_segments()
        np.testing.assert_array_equal(vectors_in(opened), vectors[:12])


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


def test_an_index_in_a_read_only_place_can_be_read(read_only: Path, vectors: np.ndarray) -> None:
    with Store(read_only) as opened:
        assert opened.counts() == (6, 12)
        np.testing.assert_array_equal(vectors_in(opened), vectors[:12])
        assert opened.passages([0])[0].text == "Bread rises."


def test_sizes_add_up_to_the_folder(folder: Path) -> None:
    with Store(folder) as opened:
        sizes = opened.sizes()
    assert sizes["segments"] == sum(file.stat().st_size for file in segment_files(folder)) > 12 * 16 * 4
    assert sizes["index.db"] >= (folder / "index.db").stat().st_size
    assert sizes["lexical"] == 0
