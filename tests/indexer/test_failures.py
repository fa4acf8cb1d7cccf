"""A store that fails: writing, merging, a read-only folder, and what a damaged one says."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored import compact, document, merge_all, segment_files, vectors_in

from searchkit.errors import DamagedError, StoreError
from searchkit.indexer.documents import NewDocument
from searchkit.indexer.store import Store
from searchkit.indexer.vectors import faiss_index


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
