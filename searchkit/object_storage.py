"""Corpora and indexes in object storage, through fsspec: fetched and put as whole folders, never searched there.

An index is put file by file; a list of its files with their checksums comes last, and makes it whole. Whoever finds no
list, or files that differ from it, has found an upload that was interrupted.
"""

from __future__ import annotations

import atexit
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from searchkit.errors import InputError, MissingExtraError, SearchkitError, StoreError
from searchkit.indexer.database import LAST, NAME
from searchkit.indexer.files import Stamp, locked, stamp, verify
from searchkit.indexer.store import Store

LIST = "searchkit.json"
"""The list of an index's files, which is put last."""

_URL = re.compile(r"[a-z][a-z0-9+.-]+://.+", re.IGNORECASE)
_DRIVERS = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
_CREDENTIALS = (
    "give its driver credentials with access to it: for s3:// the variables AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, a profile or a role"
)

_FOLDERS = ("segments", "codebooks", "lexical", "columns")

OnFiles = Callable[[int, int], None]


def is_url(text: object) -> bool:
    """Whether something names a place in object storage, as s3://bucket/papers does."""
    return isinstance(text, str) and _URL.fullmatch(text) is not None


def local_corpus(corpus: str) -> str:
    """A corpus as a path: itself, or what was fetched of a URL into a temporary folder, once per process.

    Raises:
        InputError: There is nothing at the URL, or it may not be read.
        MissingExtraError: The driver of the URL is not installed.
    """
    return _fetched(corpus) if is_url(corpus) else corpus


@lru_cache
def _fetched(url: str) -> str:
    folder = Path(tempfile.mkdtemp(prefix="searchkit-corpus-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    files, path = _opened(url)
    with _explained(url):
        files.invalidate_cache()
        if glob.has_magic(path) and not files.exists(path):
            root = path[: re.search(r"[*?\[]", path).start()].rpartition("/")[0]  # type: ignore[union-attr]
            found = files.glob(path, detail=True)
            pattern = path[len(root) :].lstrip("/")
        else:
            root, _, pattern = path.rpartition("/")
            found = files.find(path, detail=True) if files.isdir(path) else {path: files.info(path)}
        found = {name: info for name, info in found.items() if info["type"] == "file"}
        if not found:
            raise InputError(f"{url}: there is nothing there; is it spelled as the storage lists it?")
        _get(files, {name: folder / name[len(root) :].lstrip("/") for name in found})
        for name, info in found.items():  # the day that a note was changed is part of it
            if (changed := _modified(info)) is not None:
                os.utime(folder / name[len(root) :].lstrip("/"), (changed, changed))
    return str(folder / pattern)


def _modified(info: dict[str, Any]) -> float | None:
    for key in ("LastModified", "mtime", "last_modified", "updated", "created"):
        value = info.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None


def expand(url: str) -> list[str]:
    """The indexes that a pattern such as s3://bucket/part-*.index matches, or the one that a URL names.

    Raises:
        InputError: There is none.
    """
    files, path = _opened(url)
    if not glob.has_magic(path):
        return [url]
    with _explained(url):
        files.invalidate_cache()
        lists = sorted(files.glob(f"{path.rstrip('/')}/{LIST}"))
    if not lists:
        raise InputError(f"{url}: no whole index matches this pattern; one that is still being put lacks {LIST}")
    return [files.unstrip_protocol(name.rpartition("/")[0]) for name in lists]


def holds_index(url: str) -> bool:
    """Whether a whole index is at a URL."""
    files, path = _opened(url)
    with _explained(url):
        files.invalidate_cache()
        return bool(files.exists(f"{path}/{LIST}"))


def is_copy(folder: Path, url: str) -> bool:
    """Whether a folder that was fetched is still what is at the URL."""
    files, path = _opened(url)
    with _explained(url):
        return _listed(files, path)[1] == (folder / NAME).stat().st_mtime_ns


def fetch_index(url: str, folder: Path) -> None:
    """Copy an index from object storage to a folder that does not exist; each file is compared with its checksum.

    Raises:
        StoreError: There is no whole index at the URL, or it changed meanwhile.
    """
    files, path = _opened(url)
    staging = folder.with_name(f"{folder.name}.fetching")
    with _explained(url):
        files.invalidate_cache()
        listed, changed = _listed(files, path)
        if not listed:
            raise StoreError(
                f"{url} is no whole index (it has no {LIST}): there is none, or its upload was interrupted; run the "
                "command that makes it again"
            )
        shutil.rmtree(staging, ignore_errors=True)
        _get(files, {f"{path}/{name}": staging / name for name in listed})
        for name, expected in listed.items():
            try:
                verify(staging / name, expected)
            except StoreError as error:
                raise StoreError(
                    f"{url}: {name} is not what {LIST} says; another program is putting this index, or it is damaged: "
                    "run the command again, then the one that makes the index"
                ) from error
    for empty in _FOLDERS:
        (staging / empty).mkdir(exist_ok=True)
    os.utime(staging / NAME, ns=(changed, changed))  # by which `merge` knows which part is newer
    staging.rename(folder)


def put_index(folder: Path, url: str, on_files: OnFiles | None = None) -> int:
    """Copy an index to object storage, so that it is found there whole or not at all; returns the bytes put.

    Files that are there already, with the same checksum, stay.
    """
    files, path = _opened(url)
    with Store(folder, writable=True):  # folds the log into the database, and removes what no commit names
        pass
    with locked(folder), _explained(url):
        inside = (file for part in _FOLDERS for file in sorted((folder / part).rglob("*")) if file.is_file())
        names = [NAME, LAST, *(file.relative_to(folder).as_posix() for file in inside)]
        stamps = {name: stamp(folder / name) for name in names if (folder / name).is_file()}
        files.invalidate_cache()
        before, _ = _listed(files, path)
        if before == stamps:
            return 0
        if before:
            files.rm_file(f"{path}/{LIST}")
        new = [name for name in stamps if before.get(name) != stamps[name]]
        for number, name in enumerate(new):
            if on_files:
                on_files(number, len(new))
            _make_folder(files, f"{path}/{name}".rpartition("/")[0])
            files.put_file(str(folder / name), f"{path}/{name}")
        content = {"changed": (folder / NAME).stat().st_mtime_ns, "files": stamps}
        files.pipe_file(f"{path}/{LIST}", json.dumps(content).encode())
        for name in before.keys() - stamps.keys():
            with suppress(FileNotFoundError):
                files.rm_file(f"{path}/{name}")
    return sum(stamps[name].bytes for name in new)


def names_at(url: str) -> list[str]:
    """The names of what is below a URL, without what is below that; none where there is nothing."""
    files, path = _opened(url)
    with _explained(url):
        files.invalidate_cache()
        if not files.exists(path):
            return []
        return sorted(str(name).rstrip("/").rpartition("/")[2] for name in files.ls(path, detail=False))


def write_at(url: str, data: bytes) -> None:
    """Put a small file."""
    files, path = _opened(url)
    with _explained(url):
        _make_folder(files, path.rpartition("/")[0])
        files.pipe_file(path, data)


def read_at(url: str) -> bytes:
    """A small file; nothing where there is none."""
    files, path = _opened(url)
    with _explained(url):
        try:
            return bytes(files.cat_file(path))
        except FileNotFoundError:
            return b""


def remove_at(url: str) -> None:
    """Remove all that is below a URL."""
    files, path = _opened(url)
    with _explained(url):
        files.invalidate_cache()
        if files.exists(path):
            files.rm(path, recursive=True)


def _listed(files: Any, path: str) -> tuple[dict[str, Stamp], int]:
    """The files of an index with their checksums, and when it was changed, in ns; no files where it has no list."""
    try:
        content = files.cat_file(f"{path}/{LIST}")
    except FileNotFoundError:
        return {}, 0
    try:
        read = json.loads(content)
        listed = {str(name): Stamp(*value) for name, value in read["files"].items()}
        changed = int(read["changed"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(
            f"{path}/{LIST} cannot be read ({error}); run the command that makes the index again"
        ) from error
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in listed):
        raise StoreError(f"{path}/{LIST} names files outside the index")
    return listed, changed


def _get(files: Any, wanted: dict[str, Path]) -> None:
    for name, file in wanted.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        files.get_file(name, str(file))


def _make_folder(files: Any, path: str) -> None:
    """Make a folder where there are folders; a bucket has none."""
    if "file" in files.protocol:
        files.makedirs(path, exist_ok=True)


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it without a slash at its end."""
    scheme = url.partition("://")[0].lower()
    try:
        from fsspec.core import url_to_fs

        with _explained(url):
            files, path = url_to_fs(url)
    except ImportError as error:
        driver = _DRIVERS.get(scheme, error.name or "a driver")
        raise MissingExtraError(
            f"{url}: {scheme}:// is read by {driver}: pip install 'searchkit[remote-files]' {driver}", name=error.name
        ) from error
    return files, str(path).rstrip("/")


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Say what a driver's error means for the user."""
    try:
        yield
    except (SearchkitError, ImportError):
        raise
    except FileNotFoundError as error:
        raise InputError(
            f"{url}: there is nothing there ({_first_line(error)}); is it spelled as it is listed?"
        ) from error
    except PermissionError as error:
        raise StoreError(f"{url}: access is denied ({_first_line(error)}); {_CREDENTIALS}") from error
    except Exception as error:  # each driver has errors of its own
        if "Credentials" in type(error).__name__:
            raise StoreError(f"{url}: there are no credentials ({_first_line(error)}); {_CREDENTIALS}") from error
        if isinstance(error, ValueError) and "rotocol" in str(error):
            raise InputError(
                f"{url}: no such storage is known ({_first_line(error)}); expected s3://, gs:// ..."
            ) from error
        kind = type(error).__name__
        raise StoreError(
            f"{url}: the storage cannot be used ({kind}: {_first_line(error)}); nothing is lost: try again"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
