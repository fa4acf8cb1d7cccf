from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from xxhash import xxh3_128_hexdigest

from searchkit.errors import StoreError
from searchkit.indexer.files import NewFile, Stamp, exchange, stamp, verify


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)
    return tmp_path / "a", tmp_path / "b"


def test_two_folders_are_swapped(folders: tuple[Path, Path]) -> None:
    exchange(*folders)
    assert [(folder / "who").read_text() for folder in folders] == ["b", "a"]


def test_folders_are_swapped_without_a_system_call_for_it(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    exchange(*folders)
    assert [(folder / "who").read_text() for folder in folders] == ["b", "a"]
    assert {entry.name for entry in folders[0].parent.iterdir()} == {"a", "b"}


def test_a_missing_folder_is_named_and_the_other_stays(folders: tuple[Path, Path]) -> None:
    with pytest.raises(OSError, match="missing"):
        exchange(folders[0], folders[0].parent / "missing")
    assert (folders[0] / "who").read_text() == "a"


def test_a_new_file_is_hashed_while_it_is_written(tmp_path: Path) -> None:
    parts = [b"head", np.arange(300_000, dtype="<i8").data, np.ones((3, 5), "<f4").data]  # more than a block
    with NewFile(tmp_path / "new") as new:
        for part in parts:
            new.write(part)
    content = (tmp_path / "new").read_bytes()
    assert content == b"".join(map(bytes, parts))
    assert new.stamp == Stamp(len(content), xxh3_128_hexdigest(content)) == stamp(tmp_path / "new")
    verify(tmp_path / "new", new.stamp)
    (tmp_path / "new").write_bytes(content[:2_000_000] + b"x" + content[2_000_001:])
    with pytest.raises(StoreError, match="its checksum differs"):
        verify(tmp_path / "new", new.stamp)
    with pytest.raises(FileExistsError, match="is written once"):
        NewFile(tmp_path / "new")
