"""Read documents from JSONL, CSV, TSV, Parquet, BEIR folders and folders of files."""

from __future__ import annotations

import csv
import datetime
import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import searchkit
from searchkit.errors import CorpusError, ExtractionError, InputError, MissingExtraError, RowError
from searchkit.readers.extract import READABLE, extract
from searchkit.readers.lines import (
    LONGEST_LINE,
    Lines,
    Rejects,
    check_storable,
    checked_id,
    existing,
    json_object,
    name_of,
    open_bytes,
    quoted,
    typename,
)
from searchkit.records import Document

__all__ = ["KINDS", "CorpusError", "Fields", "Rejects", "estimate_documents", "kind_of", "read_corpus"]

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


class _BlankRow(RowError):
    """Text and title are both blank."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which keys or columns make a document.

    Args:
        id: Left at its default, "_id" serves where there is no "id"; in BEIR folders it is "_id".
        title: May be missing from the data while left at its default.
        text: The body.
        metadata: Keys to keep; None keeps every other key. An object under "metadata" is merged in, and the row's own
            keys win over its.
    """

    id: str = "id"
    title: str = "title"
    text: str = "text"
    metadata: tuple[str, ...] | None = None


def read_corpus(
    path: Path | str,
    *,
    kind: str = "auto",
    fields: Fields = Fields(),
    rejects: Rejects | None = None,
    encoding: str = "utf-8",
) -> Iterator[Document]:
    """Yield the documents of a corpus in its own order, holding no more than a few of them at a time.

    Ids are not compared with each other here; every document carries its place so that whoever finds two can say where.

    Args:
        path: A file, a folder, or "-" for standard input (JSON lines unless ``kind`` says otherwise).
        kind: One of KINDS. "auto" goes by the suffix; a folder is BEIR if it holds corpus.jsonl, else files.
        fields: Which keys or columns make a document; not used for files.
        rejects: Where bad rows go; None raises on the first.
        encoding: Of JSON lines, CSV, TSV, text and Markdown.

    Raises:
        CorpusError: At once for a path that cannot be read as any kind; on the way for bad rows and damaged files.
    """
    kind, path = _resolve(path, kind)
    rejects = Rejects() if rejects is None else rejects
    try:
        "".encode(encoding)
    except LookupError:
        raise CorpusError(
            f'no encoding is called "{encoding}"; use Python\'s name for it, such as utf-8 or cp1252'
        ) from None
    if rejects.path is not None and rejects.path.exists() and path.exists() and rejects.path.samefile(path):
        raise CorpusError(f"{path}: refused rows would overwrite the corpus itself; name another file with --rejects")
    if kind == "files":
        return _read_files(path, encoding, rejects)
    if kind == "beir" and fields.id == "id":
        fields = replace(fields, id="_id")
    if kind == "parquet":
        rows = _parquet_rows(path, fields)
    elif kind in ("csv", "tsv"):
        rows = _csv_rows(path, encoding, "," if kind == "csv" else "\t", fields)
    else:
        rows = _jsonl_rows(path, encoding, fields)
    return _documents(rows, fields, rejects, published=kind == "beir")


def kind_of(path: Path | str, kind: str = "auto") -> str:
    """Return the kind ``read_corpus`` would read a path as: one of KINDS, never "auto"; raises as it does."""
    return _resolve(path, kind)[0]


def estimate_documents(path: Path | str, kind: str = "auto") -> int | None:
    """About how many documents ``read_corpus`` would yield, for a progress bar; None where counting is not cheap."""
    kind, path = _resolve(path, kind)
    if kind == "files":
        return sum(path.suffix.lower() in READABLE for path in _walk(path))
    if not path.is_file() or path.suffix.lower() == ".gz":  # counting would also drain a pipe
        return None
    if kind == "parquet":
        with _open_parquet(path) as table:
            return int(table.metadata.num_rows)
    lines, block = 0, b""
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(2**20), b""):
            lines += block.count(b"\n")
    lines += bool(block) and not block.endswith(b"\n")
    return max(0, lines - (kind in ("csv", "tsv")))


def _resolve(path: Path | str, kind: str) -> tuple[str, Path]:
    """The kind to read and the file or folder to read it from."""
    if kind not in KINDS:
        raise InputError(f'a corpus of kind "{kind}" is unknown; kinds are {", ".join(KINDS)}')
    if str(path) == "-":
        kind = "jsonl" if kind == "auto" else kind
        if kind not in _LINES:
            raise CorpusError(
                f"stdin: cannot read {kind} from standard input, only {', '.join(_LINES)}; "
                "give a path, or name one of those with --kind"
            )
        return kind, Path("-")
    path = existing(path)
    if path.is_dir():
        beir = next((file for file in (path / "corpus.jsonl", path / "corpus.jsonl.gz") if file.is_file()), None)
        kind = ("beir" if beir else "files") if kind == "auto" else kind
        if kind == "beir":
            if beir is None:
                raise CorpusError(f"{path}: not a BEIR folder, which holds corpus.jsonl or corpus.jsonl.gz")
            return kind, beir
        if kind != "files":
            raise CorpusError(f"{path}: a folder, but {kind} is read from a file; name the file in it")
        return kind, path
    suffix = path.suffix.lower()
    if kind == "auto":
        inner = Path(path.stem).suffix.lower() if suffix == ".gz" else suffix
        kind = "files" if suffix in READABLE else _SUFFIXES.get(inner, "")
        if not kind or (suffix == ".gz" and kind not in _LINES):
            raise CorpusError(
                f'{path}: cannot tell what it is by "{path.suffix}"; read are {" ".join(_SUFFIXES)} '
                f"(all but .parquet also with .gz), {' '.join(READABLE)} and folders; "
                f"or name its kind with --kind: {', '.join(KINDS[1:])}"
            )
    if kind == "beir":
        raise CorpusError(f"{path}: a file, but a BEIR corpus is a folder; give the folder that holds corpus.jsonl")
    if kind == "files" and suffix not in READABLE:
        raise CorpusError(f"{path}: files of text are {' '.join(READABLE)}")
    return kind, path


class _Row(NamedTuple):
    place: str
    values: dict[str, Any]
    raw: object  # shown if the row is refused
    fault: str = ""  # why there are no values


def _documents(rows: Iterable[_Row], fields: Fields, rejects: Rejects, *, published: bool) -> Iterator[Document]:
    """Make rows documents; blank rows of published data nobody here can mend, so those never stop a run."""
    for row in rows:
        try:
            if row.fault:
                raise RowError(row.fault)
            document = _document(row, fields)
        except _BlankRow as error:
            (rejects.set_aside if published else rejects.refuse)(row.place, str(error), row.raw)
        except RowError as error:
            rejects.refuse(row.place, str(error), row.raw)
        else:
            yield document


def _document(row: _Row, fields: Fields) -> Document:
    values = row.values
    id_key = _id_key(values, fields)
    for option, key in (("id", id_key), ("text", fields.text)):
        if key not in values:
            raise RowError(f'no "{key}" among {quoted(values)}; name the one to use with --{option}-field')
    # null is how tables write an empty cell
    title, text = ("" if values.get(key) is None else values[key] for key in (fields.title, fields.text))
    for name, value in (("title", title), ("text", text)):
        if not isinstance(value, str):
            raise RowError(f"{name} is {typename(value)}; it must be a string")
    id = checked_id(values[id_key])
    if not text.strip() and not title.strip():
        raise _BlankRow("empty text: text and title are both blank")
    for name, value in (("id", id), ("title", title), ("text", text)):
        if "\0" in value:
            raise RowError(f"{name} holds a NUL byte at character {value.index(chr(0))}; take it out")
        check_storable(name, value)

    merged = values.get("metadata")
    if merged is not None and not isinstance(merged, dict):
        raise RowError(f"metadata is {typename(merged)}; it must be an object")
    if fields.metadata is None:
        used = (id_key, fields.title, fields.text, "metadata")
        metadata = {**(merged or {}), **{key: value for key, value in values.items() if key not in used}}
    else:
        metadata = {**(merged or {}), **values}
        metadata = {key: metadata[key] for key in fields.metadata if key in metadata}
    try:
        stored = json.dumps(metadata, ensure_ascii=False, allow_nan=False) if metadata else ""
    except ValueError:
        raise RowError("metadata holds NaN or Infinity, which JSON has no word for") from None
    except RecursionError:
        raise RowError("metadata is nested too deeply to store") from None
    check_storable("metadata", stored)
    return Document(id=id, text=text, title=title, metadata=metadata, place=row.place)


def _jsonl_rows(path: Path, encoding: str, fields: Fields) -> Iterator[_Row]:
    wanted = {"id": False, "text": False}
    count = 0
    with open_bytes(path) as stream:
        lines = Lines(stream, name_of(path), encoding)
        place = lines.begin()
        for line in lines:
            if line.strip():
                count += 1
                if count == 1 and line.lstrip().startswith("["):
                    raise CorpusError(
                        f"{place}: one JSON array, where one object a line is read; "
                        f"make JSON lines of it: jq -c '.[]' {path} > {path.stem}.jsonl"
                    )
                try:
                    values, fault = ({}, lines.fault) if lines.fault else (json_object(line), "")
                except RowError as error:
                    values, fault = {}, str(error)
                wanted["id"] |= bool(fault) or _id_key(values, fields) in values
                wanted["text"] |= bool(fault) or fields.text in values
                yield _Row(place, values, lines.raw, fault)
            place = lines.begin()
    for option, key in (("id", fields.id), ("text", fields.text)):
        if count and not wanted[option]:
            raise CorpusError(f'{name_of(path)}: not one row has "{key}"; name the key to use with --{option}-field')


def _csv_rows(path: Path, encoding: str, delimiter: str, fields: Fields) -> Iterator[_Row]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    header: list[str] = []
    with open_bytes(path) as stream:
        lines = Lines(stream, name_of(path), encoding)
        # strict: a quote out of place is a fault to report, not text to swallow the next rows with
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            place = lines.begin()
            cells, fault = [], ""
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                fault = f"broken quotes or line ends: {error}"
            fault = lines.fault or fault
            if not header:
                header = [name.strip() for name in cells]
                if fault:
                    raise CorpusError(f"{place}: {fault}")
                if header:
                    _check_columns(header, fields, lines.name)
            elif cells or fault:
                if not fault and len(cells) != len(header):
                    fault = (
                        f"{len(cells)} columns where the header has {len(header)}; quote cells that hold the separator"
                    )
                # An unnamed column is the row number pandas writes, or commas at the line's end.
                values = {} if fault else {name: cell for name, cell in zip(header, cells, strict=True) if name}
                yield _table_row(place, values, lines.raw, fault)
    if not header:
        raise CorpusError(f"{name_of(path)}: empty; the first line must name the columns")


def _parquet_rows(path: Path, fields: Fields) -> Iterator[_Row]:
    number = 0
    with _open_parquet(path) as table:
        import pyarrow as pa  # _open_parquet() says what to do where it is missing

        names = table.schema_arrow.names
        _check_columns(names, fields, str(path))
        if fields.metadata is not None:
            kept = {*fields.metadata, "metadata", _id_key(names, fields), fields.title, fields.text}
            names = [name for name in names if name in kept]
        batches = table.iter_batches(batch_size=256, columns=names)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                raise CorpusError(f"{path}:row {number + 1}: damaged from here on: {error}") from error
            for index in range(batch.num_rows):
                number += 1
                values, fault = {}, ""
                for name, column in zip(names, batch.columns, strict=True):
                    try:
                        values[name] = column[index].as_py()
                    except (ValueError, OverflowError) as error:  # not UTF-8, or a time Python cannot hold
                        values[name], fault = None, f'column "{name}": {error}'
                yield _table_row(f"{path}:row {number}", values, values, fault)


def _table_row(place: str, values: dict[str, Any], raw: object, fault: str) -> _Row:
    """A row of a table as JSON would have it: dates are strings, and the metadata cell may be JSON."""
    if not fault:
        try:
            values = {name: _plain(value, f'column "{name}"') for name, value in values.items()}
            if isinstance(cell := values.get("metadata"), str):
                values["metadata"] = json_object(cell, "metadata") if cell.strip() else None
        except RowError as error:
            values, fault = {}, str(error)
    return _Row(place, values, raw, fault)


def _plain(value: Any, where: str) -> Any:
    """A Parquet value as JSON has it."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal | uuid.UUID):
        return str(value)
    raise RowError(
        f"{where} holds {typename(value)}, which JSON cannot; "
        "convert it, or name the metadata columns to keep with --metadata-field"
    )


def _check_columns(columns: list[str], fields: Fields, name: str) -> None:
    there = f"its columns are {quoted(columns)}"
    if twice := [column for column, count in Counter(columns).items() if column and count > 1]:
        raise CorpusError(f"{name}: more than one column is called {quoted(twice)}; {there}")
    wanted = {"id": _id_key(columns, fields), "text": fields.text}
    if fields.title != "title":
        wanted["title"] = fields.title
    for option, column in wanted.items():
        if column not in columns:
            raise CorpusError(f'{name}: no column "{column}"; {there}; name the {option} column with --{option}-field')
    # A "metadata" column holds objects whose keys are known only row by row.
    lost = [] if "metadata" in columns else [key for key in fields.metadata or () if key not in columns]
    if lost:
        raise CorpusError(f"{name}: no column {quoted(lost)} to keep as metadata (--metadata-field); {there}")


def _read_files(root: Path, encoding: str, rejects: Rejects) -> Iterator[Document]:
    others: Counter[str] = Counter()
    readable = 0
    for path in _walk(root, lambda error: rejects.refuse(str(error.filename), f"cannot be listed: {error.strerror}")):
        if path.suffix.lower() not in READABLE:
            others[path.suffix.lower() or "without a suffix"] += 1
            continue
        readable += 1
        id = path.name if path == root else path.relative_to(root).as_posix()
        try:
            if not path.is_file():  # a pipe would block, a broken link has nothing
                raise RowError("not a regular file")
            title, text = extract(path, encoding=encoding)
            modified = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).date().isoformat()
            # Not the path: spelled otherwise on the next run, it would make every document look changed.
            values = {"id": id, "title": title, "text": text, "modified": modified}
            document = _document(_Row(str(path), values, ""), Fields())
        except (RowError, ExtractionError) as error:
            rejects.refuse(str(path), str(error))
        else:
            yield document
    if not readable:
        found = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(8)) or "nothing"
        raise CorpusError(f"{root}: no files to read; read are {' '.join(READABLE)}, found: {found}")


def _walk(root: Path, onerror: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Every file below ``root`` in a fixed order, without hidden ones; ``root`` itself if it is a file."""
    if not root.is_dir():
        yield root
        return
    for folder, folders, files in os.walk(root, onerror=onerror):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("reading .parquet needs pyarrow: pip install 'searchkit[files]'") from error
    try:
        return pq.ParquetFile(path, buffer_size=2**20)  # without a buffer whole row groups are held
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path}: cannot be read as Parquet: {error}") from error


def _id_key(keys: Container[str], fields: Fields) -> str:
    return "_id" if fields.id == "id" and "id" not in keys and "_id" in keys else fields.id


def corpus_folder(name: str) -> Path:
    """A corpus that comes with searchkit: in a checkout it lies beside the packages, in a wheel among them."""
    for base in searchkit.__path__:
        folder = Path(base) / "corpora" / name
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the corpus {name!r} is not installed; install searchkit again")
