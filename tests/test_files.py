from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from searchkit.indexer.files import exchange


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)
    return tmp_path / "a", tmp_path / "b"


def test_two_folders_change_places(folders: tuple[Path, Path]) -> None:
    exchange(*folders)
    assert [(folder / "who").read_text() for folder in folders] == ["b", "a"]


def test_they_do_so_where_the_system_has_no_call_for_it(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    exchange(*folders)
    assert [(folder / "who").read_text() for folder in folders] == ["b", "a"]
    assert {entry.name for entry in folders[0].parent.iterdir()} == {"a", "b"}


def test_one_that_is_not_there_is_named_and_the_other_stays(folders: tuple[Path, Path]) -> None:
    with pytest.raises(OSError, match="missing"):
        exchange(folders[0], folders[0].parent / "missing")
    assert (folders[0] / "who").read_text() == "a"
