"""Rows of a corpus, and the documents made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from searchkit.errors import InputError, RowError
from searchkit.readers.rejects import Rejects
from searchkit.readers.values import check_storable, checked_id, quoted, typename
from searchkit.records import Document
from searchkit.validation import check_metadata

EMPTY = "every cell is empty"
"""Fault of a row of separators alone, such as spreadsheets write below a table; it never stops a run."""

LONG_CELL = 100
"""Lines of a quoted cell from which on its length is reported: a missing quote swallows rows."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which keys or columns make a document.

    Args:
        id: "id" and "_id" stand in for each other. The default numbers the rows where there is neither; in BEIR folders
            it is "_id".
        title: The default may be missing from the data.
        text: The body.
        metadata: Keys to keep; None keeps every other key. An object under "metadata" is merged in; the row's own keys
            take precedence.
        vector: The document's vector, for an index of vectors that its user made; null or missing for none. None: not
            looked for.
    """

    id: str = "id"
    title: str = "title"
    text: str = "text"
    metadata: tuple[str, ...] | None = None
    vector: str | None = None


@dataclass
class ReadReport:
    """What there is to say about a corpus once it is read.

    Args:
        rows: Records and files read: documents and rejects together.
        numbered: The first id that was made of a row's number, "" if the rows have ids.
        columns: Types of the metadata columns of a CSV or TSV file.
        remarks: Sentences for the user.
        flawed: Files whose front matter cannot be read.
        first_flaw: The first of them, and why.
        unread: Ids of files that are there and were rejected; one that ends with "/" stands for a folder, "" for all.
        passed_over: Files in a folder that are of no kind that is read, and links, counted by kind.
        longest_cell: Location and lines of the longest quoted cell of a CSV file.
    """

    rows: int = 0
    numbered: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    flawed: int = 0
    first_flaw: str = ""
    unread: set[str] = field(default_factory=set)
    passed_over: Counter[str] = field(default_factory=Counter)
    longest_cell: tuple[str, int] = ("", 0)

    def is_unread(self, id: str) -> bool:
        """Whether a file of that id is there, or may be, and could not be read."""
        parts = id.split("/")
        folders = ("/".join((*parts[:count], "")) for count in range(len(parts)))
        return id in self.unread or any(folder in self.unread for folder in folders)

    def notes(self) -> list[str]:
        """One sentence for each thing the user should know."""
        notes = list(self.remarks)
        if typed := [f"{name} {kind}" for name, kind in self.columns.items()]:
            notes.append(f"columns: {', '.join(typed)}; to change one: --column NAME:TYPE")
        if self.numbered:
            notes.append(
                f'rows have no id and are numbered, from "{self.numbered}" on; '
                "if a column or key is their id, name it with --id-field"
            )
        location, lines = self.longest_cell
        if lines >= LONG_CELL:
            notes.append(f"{location}: a quoted cell spans {lines} lines; if rows are missing, its quote is not closed")
        if self.flawed:
            files = "1 file" if self.flawed == 1 else f"{self.flawed:,} files"
            notes.append(f"front matter of {files} cannot be read and stays text: {self.first_flaw}")
        if self.passed_over:
            counted = ", ".join(f"{count} {kind}" for kind, count in self.passed_over.most_common(8))
            more = len(self.passed_over) - 8
            notes.append(f"files of other kinds ignored: {counted}" + (f" and {more} more kinds" if more > 0 else ""))
        return notes


class Row(NamedTuple):
    """One record of a corpus.

    Args:
        location: For messages: "papers.jsonl:17".
        values: By key or column.
        raw: What goes into the rejects.
        fault: Why there are no values, or "".
    """

    location: str
    values: dict[str, Any]
    raw: object
    fault: str = ""


class _BlankRow(RowError):
    """Text and title are both blank."""


def documents_of(
    rows: Iterable[Row], fields: Fields, rejects: Rejects, report: ReadReport, *, published: bool
) -> Iterator[Document]:
    """Turn rows into documents; blank rows of a published collection never stop a run, since nobody can repair them."""
    for row in rows:
        report.rows += 1
        if row.fault == EMPTY:
            rejects.set_aside(row.location, row.fault, row.raw)
            continue
        try:
            if row.fault:
                raise RowError(row.fault)
            document = document_of(row, fields)
        except _BlankRow as error:
            (rejects.set_aside if published else rejects.refuse)(row.location, str(error), row.raw)
        except RowError as error:
            rejects.refuse(row.location, str(error), row.raw)
        else:
            yield document


def document_of(row: Row, fields: Fields, incidental: tuple[str, ...] = ()) -> Document:
    """The document of a row; RowError if it cannot be one."""
    values = row.values
    id_name = id_key(values, fields)
    for option, key in (("id", id_name), ("text", fields.text)):
        if key not in values:
            raise RowError(f'no "{key}" among {quoted(values)}; name the one to use with --{option}-field')
    # null is how tables write an empty cell
    title, text = ("" if values.get(key) is None else values[key] for key in (fields.title, fields.text))
    for name, value in (("title", title), ("text", text)):
        if not isinstance(value, str):
            raise RowError(f"{name} is {typename(value)}; it must be a string")
    id = checked_id(values[id_name])
    vector = None if fields.vector is None else values.get(fields.vector)
    if not text.strip() and not title.strip() and vector is None:
        raise _BlankRow("empty text: text and title are both blank")
    for name, value in (("id", id), ("title", title), ("text", text)):
        if "\0" in value:
            raise RowError(f"{name} holds a NUL byte at character {value.index(chr(0))}; remove it")
        check_storable(name, value)

    merged = values.get("metadata")
    if merged is not None and not isinstance(merged, dict):
        raise RowError(f"metadata is {typename(merged)}; it must be an object")
    if fields.metadata is None:
        used = (id_name, fields.title, fields.text, "metadata", fields.vector)
        metadata = {**(merged or {}), **{key: value for key, value in values.items() if key not in used}}
    else:
        metadata = {**(merged or {}), **values}
        metadata = {key: metadata[key] for key in fields.metadata if key in metadata}
    try:
        check_metadata(metadata)
    except InputError as error:
        raise RowError(str(error)) from None
    # A file's name need not be UTF-8 to be read.
    place = row.location.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return Document(id=id, text=text, title=title, metadata=metadata, place=place, incidental=incidental, vector=vector)


def id_key(keys: Container[str], fields: Fields) -> str:
    """The key of the id: "id" and "_id" stand in for each other."""
    other = {"id": "_id", "_id": "id"}.get(fields.id)
    return other if other is not None and fields.id not in keys and other in keys else fields.id


def has_no_ids(keys: Container[str], fields: Fields) -> bool:
    """Whether rows with these keys are to be numbered: no id was asked for and none is there."""
    return fields.id == "id" and "id" not in keys and "_id" not in keys


def numbered_id(file: str, number: int) -> str:
    """The id of a row that has none: the file's name without its folders, and the row's number."""
    return f"{file}#{number}"
