from __future__ import annotations

from pathlib import Path

import pytest

from searchkit.errors import InputError
from searchkit.new_folder import new_folder


def test_a_folder_gets_its_name_when_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_folder(out) as folder:
        (folder / "file").write_text("whole")
        assert not out.exists()
    assert (out / "file").read_text() == "whole"
    assert [*out.parent.iterdir()] == [out]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_what_was_interrupted_leaves_nothing_and_can_be_tried_again(tmp_path: Path, error: BaseException) -> None:
    def write() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "file").write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert [*tmp_path.iterdir()] == []
    with new_folder(tmp_path / "out"):
        pass


@pytest.mark.parametrize("left", ["out.part", "out/.part"])
def test_what_a_killed_process_left_is_replaced(tmp_path: Path, left: str) -> None:
    (tmp_path / left).mkdir(parents=True)
    (tmp_path / left / "stale").write_text("half")
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("whole")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "out"]


@pytest.mark.parametrize("name", ["full", "file"])
def test_what_is_there_is_not_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / "full").mkdir()
    for path in (tmp_path / "full" / "mine", tmp_path / "file"):
        path.write_text("mine")
    with pytest.raises(InputError, match=f"{name} exists and is not an empty folder; name a new one"):
        new_folder(tmp_path / name).__enter__()
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with new_folder(tmp_path / "link") as folder:
        (folder / "file").write_text("whole")
    assert (tmp_path / "out" / "file").read_text() == "whole"
    assert (tmp_path / "link").is_symlink()


def test_an_empty_folder_stays_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A volume cannot be removed, and nobody can work in a folder that was.
    monkeypatch.chdir(tmp_path)
    with new_folder(Path()) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("whole")
        assert folder.parent == tmp_path
    assert Path("inner/file").read_text() == "whole"
    assert [*tmp_path.iterdir()] == [tmp_path / "inner"]


def test_what_came_in_the_meantime_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    def write() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "file").write_text("whole")
            (tmp_path / "out" / "file").write_text("mine")

    with pytest.raises(InputError, match="is not an empty folder"):
        write()
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["mine"]
