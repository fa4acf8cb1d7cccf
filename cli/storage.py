"""Indexes in object storage, as commands use them: fetched to a folder, put when they are whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from searchkit.cli.output import note, progress_bar, readable_bytes
from searchkit.errors import StoreError

WORKING = ".uploading"
"""How the name of a working folder ends, in the current directory."""


@contextmanager
def put_at_end(target: Path | str, *, go_on: bool) -> Iterator[Path]:
    """A folder to make an index in: the target, or for a URL one here that is put there, and removed, at the end.

    Args:
        target: A folder or a URL.
        go_on: An index that is at the URL already is fetched and gone on with, instead of being refused.
    """
    from searchkit.object_storage import fetch_index, holds_index

    if isinstance(target, Path):
        yield target
        return
    folder = Path(target.rstrip("/").rpartition("/")[2] + WORKING)
    if holds_index(target):
        if not go_on:
            raise StoreError(f"{target} exists; name another place, or delete it")
        if not folder.exists():
            fetch_index(target, folder)
    yield folder
    with _bar("uploading") as on_files:
        sent = _put(folder, target, on_files)
    shutil.rmtree(folder)
    note(f"{target}: {readable_bytes(sent)} uploaded")


def _put(folder: Path, target: str, on_files: Callable[[int, int], None]) -> int:
    from searchkit.object_storage import put_index

    try:
        return put_index(folder, target, on_files)
    except BaseException:
        note(f"{folder} holds the whole index; the same command uploads the rest")
        raise


def fetched(indexes: Sequence[Path | str], folder: Path) -> list[Path]:
    """Folders of indexes; those at URLs are fetched into `folder`, unless an earlier call has fetched the same."""
    from searchkit.object_storage import expand, fetch_index, is_copy

    urls = [url for index in indexes if isinstance(index, str) for url in expand(index)]
    local = [index for index in indexes if isinstance(index, Path)]
    with _bar("fetching") as on_files:
        for number, url in enumerate(urls):
            on_files(number, len(urls))
            copy = folder / url.partition("://")[2].rstrip("/").replace("/", "_")
            if copy.exists() and not is_copy(copy, url):
                shutil.rmtree(copy)
            if not copy.exists():
                fetch_index(url, copy)
            local.append(copy)
    return local


def temporary_folder(opened: ExitStack, index: Path | str) -> Path:
    """A folder for what is fetched of a URL, until a block ends; none is made for a path."""
    return Path(opened.enter_context(TemporaryDirectory(prefix="searchkit-"))) if isinstance(index, str) else Path()


@contextmanager
def _bar(doing: str) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    with progress_bar(TextColumn(doing), BarColumn(), MofNCompleteColumn()) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
