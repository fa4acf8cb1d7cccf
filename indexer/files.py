"""Files that a commit names: written once, synced, and checked before anything parses them."""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class StoreError(ValueError):
    """The index folder is missing, of another kind, damaged, or held by another writer."""


class BusyError(StoreError):
    """Another writer is at work on the index."""


class Stamp(NamedTuple):
    """What a commit says of a file: its bytes and its SHA-256."""

    bytes: int
    sha256: str


def stamp(file: Path) -> Stamp:
    """Force a file to the disk and say what is in it."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
        return Stamp(file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def verify(file: Path, expected: Stamp) -> None:
    """Raise StoreError unless the file is as it was committed."""
    repair = "mend the index with: searchkit check INDEX --repair"
    if not file.is_file():
        raise StoreError(f"{file} is missing; {repair}")
    if file.stat().st_size != expected.bytes:
        raise StoreError(f"{file} has {file.stat().st_size} bytes, expected {expected.bytes}; {repair}")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected.sha256:
        raise StoreError(f"{file} is damaged (its checksum differs); {repair}")


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a writer may be merging
            total += file.stat().st_size if file.is_file() else 0
    return total


def next_number(folder: Path, above: str = "0") -> str:
    """A name for a new entry, above all that are there and above one that may be."""
    there = (int(entry.name) for entry in folder.glob("*") if entry.name.isdigit())
    return f"{1 + max(int(above), *there, 0):06d}"


def take_lock(folder: Path) -> int:
    """One writer at a time; the kernel lets go of the lock when its holder ends, however it ends."""
    lock = os.open(folder / "write.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(lock, 64).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise BusyError(f"{folder} is being written by process {holder}; wait until it is done") from None
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    return lock
