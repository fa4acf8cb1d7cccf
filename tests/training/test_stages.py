from __future__ import annotations

from pathlib import Path

import pytest

from searchkit.training.files import digest, write_whole
from searchkit.training.stages import Stages


def stage(folder: Path, inputs: dict[str, int], *, fails: bool = False) -> bool:
    """Run one stage that counts its goes in a file; returns whether it did anything."""
    with Stages(folder).stage("one", inputs, ["out.txt"]) as needed:
        if needed:
            file = folder / "out.txt"
            file.write_text((file.read_text() if file.is_file() else "") + "x")
            if fails:
                raise KeyboardInterrupt
    return needed


def test_a_stage_is_done_once_for_the_same_inputs(tmp_path: Path) -> None:
    assert [stage(tmp_path, {"a": 1}) for _ in range(3)] == [True, False, False]


def test_other_inputs_start_again_without_the_old_output(tmp_path: Path) -> None:
    stage(tmp_path, {"a": 1})
    assert stage(tmp_path, {"a": 2})
    assert (tmp_path / "out.txt").read_text() == "x"
    assert stage(tmp_path, {"a": 1})  # one set of outputs is kept, not one for each


def test_a_stopped_stage_resumes_from_what_it_wrote(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, {"a": 1}, fails=True)
    assert stage(tmp_path, {"a": 1})
    assert (tmp_path / "out.txt").read_text() == "xx"


def test_a_stage_whose_output_is_gone_is_done_again(tmp_path: Path) -> None:
    stage(tmp_path, {"a": 1})
    (tmp_path / "out.txt").unlink()
    assert stage(tmp_path, {"a": 1})


@pytest.mark.parametrize("left", ["", "{", "[1]", '{"one": 1}', "\x80"])
def test_what_is_done_is_done_again_when_the_list_of_it_is_damaged(tmp_path: Path, left: str) -> None:
    stage(tmp_path, {"a": 1})
    (tmp_path / "stages.json").write_text(left, encoding="latin-1")
    assert stage(tmp_path, {"a": 1})
    assert (tmp_path / "out.txt").read_text() == "x"
    assert not stage(tmp_path, {"a": 1})


def test_a_file_is_written_whole_or_left_as_it_was(tmp_path: Path) -> None:
    write_whole(tmp_path / "x.json", "before")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "x.json", "much text, and then what cannot be written: \ud800")
    assert (tmp_path / "x.json").read_text() == "before"


def test_a_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder, name, text in zip(folders, ["x", "x", "y"], ["1", "1", "1"], strict=True):
        folder.mkdir()
        (folder / name).write_text(text)
    first, second, third = map(digest, folders)
    assert first == second != third
    (folders[1] / "x").write_text("2")
    assert digest(folders[1]) != first
