"""Files that training writes: whole or not at all, JSON in one form, JSON lines from a stream."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from searchkit.errors import InputError

_TMP = ".tmp"


def write_whole(file: Path, text: str) -> None:
    """Write a file that is never seen half-written, even if the process is killed or the disk is full."""
    staging = file.with_name(file.name + _TMP)
    staging.write_text(text, encoding="utf-8")
    os.replace(staging, file)


def write_json(file: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_whole(file, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: It is not JSON.
        OSError: It cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON ({error}); it is damaged, or of another kind") from error


def write_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines, one row at a time."""
    with file.open("w", encoding="utf-8") as stream:
        stream.writelines(map(json_line, rows))


def json_line(row: dict[str, Any]) -> str:
    """A row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False) + "\n"


@contextmanager
def replacing(file: Path, *, always: bool = False) -> Iterator[TextIO]:
    """A text file that gets its name once complete; after an error the old one stays, unless `always`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            yield stream
    except BaseException:
        if always:
            part.replace(file)
        else:
            part.unlink(missing_ok=True)
        raise
    part.replace(file)


def digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names, as hex."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    parts = [(str(file.relative_to(path)), digest(file)) for file in sorted(path.rglob("*")) if file.is_file()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def entries(folder: Path) -> set[str]:
    """What a folder holds, without what `write_whole` leaves where a process was killed; empty if it does not exist."""
    return {entry.name for entry in folder.iterdir() if not entry.name.endswith(_TMP)} if folder.is_dir() else set()


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link(source: Path | str, target: Path | str) -> None:
    """A hard link to a file, or a copy where links are not supported."""
    source = os.path.realpath(source)  # a link to a link may lead nowhere from its new folder
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
