"""Folders of files, and files named one by one."""

from __future__ import annotations

import datetime
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from searchkit.errors import CorpusError, ExtractionError, MissingExtraError, RowError
from searchkit.readers.extract import READABLE, extract
from searchkit.readers.rejects import Rejects
from searchkit.readers.rows import Fields, ReadReport, Row, document_of
from searchkit.records import Document

TABLES = (".jsonl", ".csv", ".tsv", ".json", ".ndjson")
"""Suffixes of files with a document in every line, which a folder of files passes over."""

MODIFIED = "modified"
"""Metadata key of a file's day. It is not compared: a file that was only touched is the same document."""


def read_files(
    root: Path, paths: list[Path], encoding: str, rejects: Rejects, report: ReadReport
) -> Iterator[Document]:
    """Yield a document for every readable file below some paths; its id is its path below `root`.

    Args:
        root: A folder, or the file itself.
        paths: Files and folders in or below it.
        encoding: Of plain text and Markdown, and of HTML that does not declare one.
        rejects: Where files go that cannot be read.
        report: Gets the number of files that are of no kind that is read.

    Raises:
        CorpusError: There is no file to read.
        MissingExtraError: A library is missing, and the file was named or bad files are not set aside.
    """
    readable = 0

    def unlisted(error: OSError) -> None:
        report.rows += 1
        folder = Path(error.filename)
        report.unread.add("" if folder == root else f"{_id(folder, root)}/")
        rejects.refuse(str(folder), f"cannot be listed: {error.strerror}; nothing below it is read")

    for path in _walk(root, paths, report, unlisted):
        if path.suffix.lower() not in READABLE:
            report.passed_over[path.suffix.lower() or "without a suffix"] += 1
            continue
        readable += 1
        report.rows += 1
        try:
            document = _document(path, root, encoding, report)
        except (RowError, ExtractionError) as error:
            report.unread.add(_id(path, root))
            rejects.refuse(str(path), str(error))
        except MissingExtraError as error:
            if path in paths:
                raise
            if rejects.path is None:
                raise MissingExtraError(
                    f"{path}: {error}; or skip such files: --on-error skip", name=error.name
                ) from error
            report.unread.add(_id(path, root))
            rejects.refuse(str(path), str(error))
        else:
            yield document
    if not readable:
        counted = ", ".join(f"{count} {suffix}" for suffix, count in report.passed_over.most_common(8)) or "nothing"
        tables = ""
        if any(suffix in report.passed_over for suffix in TABLES):
            tables = f"; tables are named one by one, or by a pattern such as '{root}/*{TABLES[0]}'"
        raise CorpusError(f"{root}: no files to read; expected {' '.join(READABLE)}; found: {counted}{tables}")


def count_files(root: Path, paths: list[Path]) -> int:
    """How many files `read_files` would read."""
    return sum(path.suffix.lower() in READABLE for path in _walk(root, paths, ReadReport(), None))


def _document(path: Path, root: Path, encoding: str, report: ReadReport) -> Document:
    try:
        status = path.stat()
    except OSError as error:
        raise RowError(f"cannot be opened: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):  # a pipe would block
        raise RowError("not a regular file")
    title, text, metadata, flaw = extract(path, encoding=encoding)
    if flaw:
        report.flawed += 1
        report.first_flaw = report.first_flaw or f"{path}: {flaw}"
    day = datetime.datetime.fromtimestamp(status.st_mtime, datetime.UTC).date().isoformat()
    id = _id(path, root)
    try:
        id.encode()
    except UnicodeEncodeError:
        raise RowError("its name is not UTF-8, so that it cannot be an id; rename it") from None
    values = {"id": id, "title": title, "text": text, "metadata": {MODIFIED: day, **metadata}}
    return document_of(Row(str(path), values, ""), Fields(), incidental=() if MODIFIED in metadata else (MODIFIED,))


def _id(path: Path, root: Path) -> str:
    """The path below `root`: spelled from elsewhere, it would make every document another on the next run."""
    return path.name if path == root else path.relative_to(root).as_posix()


def _walk(
    root: Path, paths: list[Path], report: ReadReport, onerror: Callable[[OSError], None] | None
) -> Iterator[Path]:
    """Every file below some paths in a fixed order, without hidden ones, open Office documents' locks and indexes.

    Links to folders outside `root` are followed, each folder once; those inside are read where they are.
    """
    top = root.resolve()
    seen: set[Path] = set()
    for start in paths:
        if not start.is_dir():
            yield start
            continue
        for folder, folders, files in os.walk(start, onerror=onerror, followlinks=True):
            kept = []
            for name in sorted(filter(_visible, folders)):
                path = Path(folder, name)
                if os.path.isfile(path / "index.db"):  # Path.is_file() raises where one may not look
                    report.passed_over["index of searchkit"] += 1
                    continue
                link = os.path.islink(path)
                if link or seen:
                    target = path.resolve()
                    inside = link and (target.is_relative_to(top) or top.is_relative_to(target))
                    if inside or target in seen:
                        report.passed_over["link to a folder that is read anyway"] += 1
                        continue
                    seen.add(target)
                kept.append(name)
            folders[:] = kept
            yield from (Path(folder, name) for name in sorted(filter(_visible, files)))


def _visible(name: str) -> bool:
    return not name.startswith((".", "~$"))
