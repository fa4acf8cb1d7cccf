"""The stages of a long job in one folder: each is done once, and again when what it depends on has changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "stages.json"


class Stages:
    """What is done in a folder, and from which inputs.

    Args:
        folder: Where the stages write; made if it is not there.
        on_stage: Told the name of every stage and whether there is something to do.
    """

    def __init__(self, folder: Path, on_stage: Callable[[str, bool], None] | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / FILE
        self._tell = on_stage or (lambda name, needed: None)
        self._done = _read(self._file)

    def run(self, name: str, inputs: Mapping[str, Any], outputs: Sequence[str], work: Callable[[], None]) -> None:
        """Do a stage, unless it was done from the same inputs and its outputs are there.

        What a stage wrote from other inputs is removed before it begins. What it wrote from these, before it was
        stopped, stays: the work may go on from there.

        Args:
            name: Of the stage.
            inputs: Everything that it depends on, as JSON; of files and folders their `digest`.
            outputs: Names in the folder of the files and folders that it writes.
            work: Writes them.
        """
        key = hashlib.sha256(json.dumps([name, inputs], sort_keys=True).encode()).hexdigest()
        entry = self._done.get(name, {})
        same = entry.get("inputs") == key
        needed = not (same and entry.get("done") and all((self.folder / output).exists() for output in outputs))
        self._tell(name, needed)
        if not needed:
            return
        if not same:
            for output in outputs:
                remove(self.folder / output)
        self._note(name, key, done=False)
        work()
        self._note(name, key, done=True)

    def _note(self, name: str, key: str, *, done: bool) -> None:
        self._done[name] = {"inputs": key, "done": done}
        write_whole(self._file, json.dumps(self._done, indent=1) + "\n")


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """What is done; nothing, when the file is not there or damaged: then all is done again."""
    try:
        done = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return done if isinstance(done, dict) and all(isinstance(entry, dict) for entry in done.values()) else {}


def write_whole(file: Path, text: str) -> None:
    """Write a file that others never see half of, also when this is killed or the disk is full."""
    staging = file.with_name(file.name + ".tmp")
    staging.write_text(text, encoding="utf-8")
    os.replace(staging, file)


def digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names, as hex."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    parts = [(str(file.relative_to(path)), digest(file)) for file in sorted(path.rglob("*")) if file.is_file()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
