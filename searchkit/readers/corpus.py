"""Read documents from JSON lines, CSV, TSV, Parquet, BEIR folders and folders of files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import searchkit
from searchkit.errors import CorpusError, InputError
from searchkit.readers.delimited import TableOptions, delimited_rows
from searchkit.readers.extract import READABLE
from searchkit.readers.folders import count_files, read_files
from searchkit.readers.jsonl import jsonl_rows
from searchkit.readers.lines import existing, gz_or_plain
from searchkit.readers.parquet import count_rows, parquet_rows, part_files
from searchkit.readers.rejects import Rejects
from searchkit.readers.rows import Fields, ReadReport, Row, documents_of
from searchkit.records import Document

__all__ = [
    "KINDS", "CorpusError", "Fields", "ReadReport", "Rejects", "TableOptions", "estimate_documents", "kind_of",
    "read_corpus",
]  # fmt: skip

KINDS = ("auto", "beir", "jsonl", "csv", "tsv", "parquet", "files")

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_LINES = ("jsonl", "csv", "tsv")  # kinds read line by line, so also gzipped and from stdin


def read_corpus(
    path: Path | str,
    *,
    kind: str = "auto",
    fields: Fields | None = None,
    table: TableOptions | None = None,
    rejects: Rejects | None = None,
    report: ReadReport | None = None,
    encoding: str = "utf-8",
) -> Iterator[Document]:
    """Yield the documents of a corpus in its own order, holding only a few in memory.

    Ids are not compared with each other here; every document carries its location, so that an error can name both.

    Args:
        path: A file, a folder, a pattern such as "notes/*.md", or "-" for standard input (JSON lines unless `kind` says
            otherwise).
        kind: One of KINDS. "auto" goes by the suffix; a folder is BEIR if it holds corpus.jsonl, Parquet if it holds
            part files and nothing else that is read, else files.
        fields: Which keys or columns make a document, "id", "title" and "text" by default; not used for files.
        table: How CSV and TSV are to be read.
        rejects: Where bad rows go; None raises on the first.
        report: Filled in with what there is to say about the corpus; complete once the last document has been yielded.
        encoding: Of JSON lines, CSV, TSV, plain text and Markdown.

    Raises:
        CorpusError: At once for a path that cannot be read as any kind; on the way for damaged files.
        RejectedRowError: On the way, for a bad row without `rejects`.
    """
    source = _resolve(path, kind)
    fields, table = fields or Fields(), table or TableOptions()
    rejects = Rejects() if rejects is None else rejects
    report = ReadReport() if report is None else report
    try:
        "".encode(encoding)
    except LookupError:
        raise CorpusError(
            f'no encoding is called "{encoding}"; use Python\'s name for it, such as utf-8 or cp1252'
        ) from None
    if table != TableOptions() and source.kind not in ("csv", "tsv"):
        raise InputError(f"{path}: delimiter, header and column types are for CSV and TSV, but this is {source.kind}")
    if fields.vector is not None and source.kind not in ("jsonl", "parquet", "beir"):
        raise InputError(f"{path}: vectors are read from JSON lines and Parquet, but this is {source.kind}")
    for file in source.paths:
        if rejects.path is not None and rejects.path.exists() and file.exists() and rejects.path.samefile(file):
            raise CorpusError(
                f"{file}: rejected rows would overwrite the corpus itself; name another file with --rejects"
            )
    if source.kind == "files":
        return read_files(source.root, source.paths, encoding, rejects, report)
    if source.kind == "beir" and fields.id == "id":
        fields = replace(fields, id="_id")
    return _read_rows(source, fields, table, rejects, report, encoding)


def kind_of(path: Path | str, kind: str = "auto") -> str:
    """Return the kind `read_corpus` would read a path as: one of KINDS, never "auto"; raises as it does."""
    return _resolve(path, kind).kind


def estimate_documents(path: Path | str, kind: str = "auto") -> int | None:
    """Roughly how many documents `read_corpus` would yield, for a progress bar; None where counting is not cheap."""
    source = _resolve(path, kind)
    if source.kind == "files":
        return count_files(source.root, source.paths)
    if source.kind == "parquet":
        return sum(map(count_rows, source.paths))
    total = 0
    for file in source.paths:
        if not file.is_file() or file.suffix.lower() == ".gz":  # counting would also drain a pipe
            return None
        lines, block = 0, b""
        with file.open("rb") as stream:
            for block in iter(lambda: stream.read(2**20), b""):
                lines += block.count(b"\n")
        lines += bool(block) and not block.endswith(b"\n")
        total += max(0, lines - (source.kind in ("csv", "tsv")))
    return total


def corpus_folder(name: str) -> Path:
    """A corpus that comes with searchkit: in a checkout it lies beside the packages, in a wheel among them."""
    for base in searchkit.__path__:
        folder = Path(base) / "corpora" / name
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the corpus {name!r} is not installed; install searchkit again")


class _Source(NamedTuple):
    """What is read, and how.

    Args:
        kind: One of KINDS, never "auto".
        root: For files: the folder that ids are relative to, or the one file.
        paths: Files to read, or folders of files.
    """

    kind: str
    root: Path
    paths: list[Path]


def _read_rows(
    source: _Source, fields: Fields, table: TableOptions, rejects: Rejects, report: ReadReport, encoding: str
) -> Iterator[Document]:
    for path in source.paths:
        if source.kind == "parquet":
            rows = parquet_rows(path, fields, report)
        elif source.kind in ("csv", "tsv"):
            rows = delimited_rows(path, source.kind, encoding, fields, table, report)
        else:
            rows = jsonl_rows(path, encoding, fields, report)
        if len(source.paths) > 1:
            rows = _whole_or_rejected(rows, path)
        yield from documents_of(rows, fields, rejects, report, published=source.kind == "beir")


def _whole_or_rejected(rows: Iterator[Row], path: Path) -> Iterator[Row]:
    """The rows of one file of several; what is wrong with the file, or with the rest of it, is a fault like another."""
    try:
        yield from rows
    except (CorpusError, OSError) as error:
        reason = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
        yield Row(str(path), {}, "", reason.removeprefix(f"{path}: "))


def _resolve(path: Path | str, kind: str) -> _Source:
    if kind not in KINDS:
        raise InputError(f'a corpus of kind "{kind}" is unknown; kinds are {", ".join(KINDS)}')
    if str(path) == "-":
        kind = "jsonl" if kind == "auto" else kind
        if kind not in _LINES:
            raise CorpusError(
                f"stdin: cannot read {kind} from standard input, only {', '.join(_LINES)}; "
                "give a path, or name one of those with --kind"
            )
        return _Source(kind, Path("-"), [Path("-")])
    if glob.has_magic(str(path)) and not Path(path).exists():
        return _resolve_pattern(str(path), kind)
    path = existing(path)
    return _resolve_folder(path, kind) if path.is_dir() else _resolve_file(path, kind)


def _resolve_pattern(pattern: str, kind: str) -> _Source:
    paths = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    if not paths:
        raise CorpusError(f"{pattern}: no file or folder matches this pattern")
    if kind in ("auto", "files") and all(path.is_dir() or path.suffix.lower() in READABLE for path in paths):
        parts = Path(pattern).parts
        fixed = next(position for position, part in enumerate(parts) if glob.has_magic(part))
        folders = [path for path in paths if path.is_dir()]
        inner = [path for path in paths if not any(folder in path.parents for folder in folders)]
        return _Source("files", Path(*parts[:fixed]), inner)
    sources = [_resolve(path, kind) for path in paths if path.is_file()]
    kinds = sorted({source.kind for source in sources})
    if len(kinds) != 1 or kinds == ["files"]:
        raise CorpusError(
            f"{pattern}: matches files of several kinds ({', '.join(kinds) or 'folders'}, {len(paths)} in all); "
            "write a pattern for one kind"
        )
    return _Source(kinds[0], Path(), [path for source in sources for path in source.paths])


def _resolve_folder(path: Path, kind: str) -> _Source:
    try:
        if os.listdir(path):
            os.stat(f"{path}/.")  # it may be listed while no file in it may be looked at
    except OSError as error:
        raise CorpusError(f"{path}: cannot be listed: {error.strerror}") from None
    beir = gz_or_plain(path / "corpus.jsonl")
    if kind == "auto":
        kind = "beir" if beir.is_file() else "files"
        if kind == "files" and part_files(path) and not count_files(path, [path]):
            kind = "parquet"
    if kind == "beir":
        if not beir.is_file():
            raise CorpusError(f"{path}: not a BEIR folder, which holds corpus.jsonl or corpus.jsonl.gz")
        return _Source(kind, path, [beir])
    if kind == "parquet" and not part_files(path):
        raise CorpusError(f"{path}: a folder without Parquet files")
    if kind not in ("files", "parquet"):
        raise CorpusError(f"{path}: a folder, but {kind} is read from a file; name the file in it")
    return _Source(kind, path, [path])


def _resolve_file(path: Path, kind: str) -> _Source:
    suffix = path.suffix.lower()
    if kind == "auto":
        inner = Path(path.stem).suffix.lower() if suffix == ".gz" else suffix
        kind = "files" if suffix in READABLE else _SUFFIXES.get(inner, "")
        if not kind or (suffix == ".gz" and kind not in _LINES):
            found = f'unknown suffix "{path.suffix}"' if path.suffix else "no suffix"
            raise CorpusError(
                f"{path}: {found}; expected one of {' '.join(_SUFFIXES)} "
                f"(all but .parquet also with .gz), {' '.join(READABLE)} and folders; "
                f"or name its kind with --kind: {', '.join(KINDS[1:])}"
            )
    if kind == "beir":
        raise CorpusError(f"{path}: a file, but a BEIR corpus is a folder; give the folder that holds corpus.jsonl")
    if kind == "files" and suffix not in READABLE:
        raise CorpusError(f"{path}: files of text are {' '.join(READABLE)}")
    return _Source(kind, path, [path])
