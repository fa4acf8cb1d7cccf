"""Folders that are written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from searchkit.errors import InputError

PART = ".part"
"""At the end of the name of a folder that is not complete."""


def check_new(out: Path) -> None:
    """Raise InputError if there is something at `out` already; an empty folder may be there."""
    if out.exists() and (not out.is_dir() or any(entry.name != PART for entry in out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder; name a new one")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which gets the name `out` when the block ends; after an error nothing is left.

    An empty folder at `out` stays and is filled at the end: it may be a volume, or where the process works. A process
    that is killed leaves `out` with :data:`PART` at the end of its name, or :data:`PART` in it, which the next attempt
    replaces.

    Raises:
        InputError: There is something at `out` already.
    """
    check_new(out)
    out = out.resolve()
    there = out.is_dir()
    staging = out / PART if there else out.with_name(out.name + PART)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        check_new(out)
        if there:
            for entry in [*staging.iterdir()]:
                entry.rename(out / entry.name)
            staging.rmdir()
        else:
            staging.rename(out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
