"""Files that a commit names: written once, synced, and checked before anything parses them."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from xxhash import xxh3_128

from searchkit.indexer.errors import BusyError, DamagedError

LOCK = "write.lock"
_HERE = -100  # AT_FDCWD; both paths are absolute
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_BLOCK = 1 << 20
_SHA256 = 64  # digits


class Stamp(NamedTuple):
    """Size and checksum of a file as a commit names it; the checksum is XXH3 of 128 bits in hex, SHA-256 in format 2.

    It is there to find damage, which either does as surely, and XXH3 takes a seventh of the time.
    """

    bytes: int
    checksum: str


class NewFile:
    """A file that is written once, hashed as it is written, and on the disk when the block ends without an error.

    Args:
        file: Its path.

    Raises:
        FileExistsError: There is one already.
    """

    def __init__(self, file: Path) -> None:
        if file.exists():
            raise FileExistsError(f"{file} exists; a file of an index is written once")
        self._stream = file.open("xb")
        self._hash = xxh3_128()
        self._size = 0

    def write(self, data: Any) -> int:
        """Write bytes, or the memory of an array."""
        self._hash.update(data)
        written = self._stream.write(data)
        self._size += written
        return written

    @property
    def stamp(self) -> Stamp:
        """What was written."""
        return Stamp(self._size, self._hash.hexdigest())

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._stream:
            if kind is None:
                self._stream.flush()
                os.fsync(self._stream.fileno())


def stamp(file: Path) -> Stamp:
    """Force a file that others have written to the disk; return its size and checksum."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
    return Stamp(file.stat().st_size, _digest(file, xxh3_128()))


def _digest(file: Path, whole: Any) -> str:
    block = memoryview(bytearray(_BLOCK))
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(block):
            whole.update(block[:size])
    return str(whole.hexdigest())


def verify(file: Path, expected: Stamp) -> None:
    """Raise DamagedError unless the file is as it was committed."""
    if not file.is_file():
        raise DamagedError(file, "is missing")
    if file.stat().st_size != expected.bytes:
        raise DamagedError(file, f"has {file.stat().st_size} bytes, expected {expected.bytes}")
    if expected.checksum != _digest(file, hashlib.sha256() if len(expected.checksum) == _SHA256 else xxh3_128()):
        raise DamagedError(file, "is damaged (its checksum differs)")


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def exchange(one: Path, other: Path) -> None:
    """Swap two folders of one file system, atomically where the system has a call for it.

    Otherwise it takes three renames, and a crash in between leaves one of them with `.exchanging` at the end of its
    name.

    Raises:
        OSError: They are on different file systems, or may not be renamed.
    """
    library = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(one.resolve()), os.fsencode(other.resolve())
    if hasattr(library, "renameat2"):  # Linux
        failed = library.renameat2(_HERE, paths[0], _HERE, paths[1], _EXCHANGE)
    elif hasattr(library, "renamex_np"):  # macOS
        failed = library.renamex_np(*paths, _EXCHANGE)
    else:
        ctypes.set_errno(errno.ENOSYS)
        failed = -1
    if failed:
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            raise OSError(number, os.strerror(number), str(one), None, str(other))
        staging = one.with_name(one.name + ".exchanging")
        one.rename(staging)
        other.rename(one)
        staging.rename(other)
    for folder in {one.resolve().parent, other.resolve().parent}:
        sync_folder(folder)


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a writer may be merging
            total += file.stat().st_size if file.is_file() else 0
    return total


def next_number(folder: Path, above: str = "0") -> str:
    """A name for a new entry: a number above all that exist in a folder, and above another one."""
    numbers = (int(entry.name) for entry in folder.glob("*") if entry.name.isdigit())
    return f"{1 + max(int(above), *numbers, 0):06d}"


def take_lock(folder: Path) -> int:
    """Take the writer's lock; the kernel releases it when its holder ends, however it ends."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(lock, 64).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise BusyError(f"{folder} is being written by process {holder}; wait until it is done") from None
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    return lock


def release_lock(lock: int) -> None:
    """Give a writer's lock back; its file no longer names a process."""
    os.ftruncate(lock, 0)
    os.close(lock)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the writer's lock of a folder."""
    lock = take_lock(folder)
    try:
        yield
    finally:
        release_lock(lock)
