"""Rows of CSV and TSV files.

CSV quotes cells as RFC 4180 has it. TSV has no quoting, as BEIR and TREC write it: a quotation mark is text. Only a TSV
whose header is all in quotes is read as CSV with tabs, since nothing else explains it.
"""

from __future__ import annotations

import csv
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from searchkit.errors import CorpusError, InputError, RowError
from searchkit.readers.columns import ColumnGuess, check_types, convert
from searchkit.readers.lines import LONGEST_LINE, Lines, name_of, open_bytes
from searchkit.readers.rows import EMPTY, Fields, ReadReport, Row, has_no_ids, id_key, numbered_id
from searchkit.readers.values import json_object, quoted

_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?')  # how Excel names the delimiter, before the header
_WITHOUT_HEADER = {1: ("text",), 2: ("id", "text"), 3: ("id", "title", "text")}


@dataclass(frozen=True, slots=True)
class TableOptions:
    """How a CSV or TSV file is to be read.

    Args:
        delimiter: One character, or "tab"; None is a comma in CSV and a tab in TSV.
        header: The first line names the columns. Without it two columns are id and text, three are id, title and text,
            and any may be named by its number in `Fields`, "1" for the first.
        types: Of columns by name, one of :data:`searchkit.readers.columns.TYPES`; the others are found out.
    """

    delimiter: str | None = None
    header: bool = True
    types: Mapping[str, str] = field(default_factory=dict)

    def separator(self, kind: str) -> str:
        """The character between cells in a file of kind "csv" or "tsv"."""
        if self.delimiter is None:
            return "," if kind == "csv" else "\t"
        separator = _DELIMITERS.get(self.delimiter, self.delimiter)
        if len(separator) != 1 or separator in '"\r\n':
            raise InputError(f"the delimiter is {self.delimiter!r}; expected one character, such as ; or tab")
        return separator


class _Record(NamedTuple):
    location: str
    cells: list[str]
    fault: str


class _Records:
    """The records of a file, one at a time; blank lines are records without cells."""

    def __init__(self, lines: Lines, delimiter: str, *, quoting: bool) -> None:
        self._lines = lines
        self._delimiter = delimiter
        # strict: a quote out of place is a fault to report, not text that swallows the rows after it
        self._reader = csv.reader(lines, delimiter=delimiter, strict=True) if quoting else None
        self._width = self._id_column = 0
        self.longest = ("", 0)

    def expect(self, width: int, id_column: int) -> None:
        """Say what a row looks like, by which rows that an open quote has swallowed are recognised."""
        self._width, self._id_column = width, id_column

    def __iter__(self) -> _Records:
        return self

    def __next__(self) -> _Record:
        location = self._lines.begin()
        if self._reader is None:
            line = next(self._lines).removesuffix("\n").removesuffix("\r")
            return _Record(location, line.split(self._delimiter) if line else [], self._lines.fault)
        cells: list[str] = []
        broken = ""
        try:
            cells = next(self._reader)
        except csv.Error as error:
            broken = _explained(error)
        count = len(self._lines.record)
        own_row = self._first_own_row(broken=bool(broken)) if count > 1 else None
        if own_row is not None:
            last = self._lines.record[-1].number
            self._lines.push_back(own_row)
            until = f"is not closed before line {last}" if broken else f"closes {count - 1} lines on, at line {last}"
            broken = (
                f"broken quotes: a quote that opens here {until}, and line {self._lines.record[-1].number + 1} looks "
                'like a row of its own: close the quote, or double it ("") if it is text'
            )
            cells = []
        elif count > 1:
            broken = broken and f"{broken}, in a record of {count} lines"
            self.longest = max(self.longest, (location, count), key=lambda longest: longest[1])
        return _Record(location, cells, self._lines.fault or broken)

    def _first_own_row(self, *, broken: bool) -> int | None:
        """The first line inside a record that looks like a row of its own, if the record looks like several rows.

        A record with broken quotes ends before the first such line. One that can be parsed is only doubted when every
        line in it looks so: as many cells as the header has, an id of the same form, and no spaces before cells.
        """
        texts = [line.text.rstrip("\r\n") for line in self._lines.record]
        first = self._cells(texts[0])
        if not self._width or len(first) <= self._id_column:
            return None
        alike_lines: list[int] = []
        for position, text in enumerate(texts[1:], start=1):
            if not text:
                continue
            cells = self._cells(text)
            alike = (
                len(cells) == self._width
                and _form(cells[self._id_column]) == _form(first[self._id_column])
                and (_spaced(first) or not _spaced(cells))
            )
            if alike and broken:
                return position
            if alike:
                alike_lines.append(position)
            elif not broken:
                return None
        return alike_lines[0] if alike_lines else None

    def _cells(self, text: str) -> list[str]:
        try:
            return next(csv.reader([text], delimiter=self._delimiter), [])
        except csv.Error:  # a carriage return
            return []


def _explained(error: csv.Error) -> str:
    """What csv complains of, in other words than a programmer's."""
    text = str(error)
    if "expected after" in text:
        return 'broken quotes: a cell goes on after its closing quote; double the quotes inside it ("")'
    if "unexpected end of data" in text:
        return "broken quotes: a quote that opens here is never closed"
    return f"broken quotes or line ends: {text.partition(' - ')[0]}"


def _form(id: str) -> str:
    """What ids of one kind have in common: "doc-17" and "doc-4" are "a-0"."""
    if re.fullmatch(r"[0-9a-fA-F-]{8,}", id) and not id.isdigit():
        return f"hex of {len(id)}"
    return re.sub(r"[0-9]+", "0", re.sub(r"[^\W\d_]+", "a", id))


def _spaced(cells: list[str]) -> bool:
    return any(cell.startswith(" ") for cell in cells)


def delimited_rows(
    path: Path, kind: str, encoding: str, fields: Fields, options: TableOptions, report: ReadReport
) -> Iterator[Row]:
    """Yield the rows of a CSV or TSV file with their values typed.

    The file is read twice, first to find the types; standard input is copied to a temporary file for that.

    Args:
        path: The file, or "-".
        kind: "csv" or "tsv".
        encoding: Of the file.
        fields: Which columns make a document.
        options: Delimiter, header and named types.
        report: Gets the types of the columns.

    Raises:
        CorpusError: The columns are not those that `fields` names.
        InputError: `options` do not fit the file.
    """
    name = "stdin" if path == Path("-") else path.name
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    with _rereadable(path) as source:
        with source.open() as stream:
            table = _Table(stream, path, kind, encoding, fields, options)
            types = _find_types(table, options, report) if table.metadata else {}
        with source.open() as stream:
            table = _Table(stream, path, kind, encoding, fields, options)
            for number, record in enumerate(table.records(), start=1):
                values: dict[str, Any] = {}
                fault = record.fault
                if not fault:
                    try:
                        values = table.values(record.cells, types, options.types)
                    except RowError as error:
                        fault = str(error)
                    else:
                        if table.numbered:
                            values = {"id": numbered_id(name, number), **values}
                            report.numbered = report.numbered or values["id"]
                yield Row(record.location, values, table.lines.raw, fault)
            report.longest_cell = max(report.longest_cell, table.longest, key=lambda longest: longest[1])


class _Table:
    """One reading of a file: its header, and the records under it."""

    def __init__(
        self, stream: IO[bytes], path: Path, kind: str, encoding: str, fields: Fields, options: TableOptions
    ) -> None:
        self.lines = Lines(stream, name_of(path), encoding)
        self._delimiter = options.separator(kind)
        first = self._first_line()
        if kind == "csv" and (named := _SEPARATOR_LINE.fullmatch(first)):
            if options.delimiter is None:
                self._delimiter = named[1]
            first = self._first_line()
        self.lines.push_back(0)
        self._header: list[str] = []
        quoting = kind == "csv" or all(
            len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in first.split(self._delimiter)
        )
        self._records = _Records(self.lines, self._delimiter, quoting=quoting)
        self._quoting = quoting
        self.columns = self._read_header(fields, options)
        self.numbered = has_no_ids(self.columns, fields)
        check_types(options.types, self.columns, self.lines.name)
        used = {id_key(self.columns, fields), fields.title, fields.text, "metadata", ""}
        kept = self.columns if fields.metadata is None else fields.metadata
        self.metadata = [column for column in self.columns if column in kept and column not in used]
        id_name = id_key(self.columns, fields)
        self._records.expect(len(self.columns), self.columns.index(id_name) if id_name in self.columns else 0)

    @property
    def longest(self) -> tuple[str, int]:
        """Location and lines of the longest record."""
        return self._records.longest

    def records(self) -> Iterator[_Record]:
        """The records that are not blank lines; those of a wrong width, and of nothing but separators, with a fault."""
        for record in self._records:
            if record.cells and not record.fault and not any(map(str.strip, record.cells)):
                record = record._replace(fault=EMPTY)
            elif len(record.cells) > 1 and record.cells == self._header:
                record = record._replace(fault="the header again, as in files put one behind the other; remove it")
            elif record.cells and not record.fault and len(record.cells) != len(self.columns):
                advice = "quote cells that hold the separator"
                if not self._quoting:
                    advice = "a TSV has no quoting; if this one quotes cells: --kind csv --delimiter tab"
                count = len(self.lines.record)
                record = record._replace(
                    fault=f"{len(record.cells)} columns where the header has {len(self.columns)}"
                    + (f", in a record of {count} lines" if count > 1 else "")
                    + f"; {advice}"
                )
            if record.cells or record.fault:
                yield record

    def values(self, cells: list[str], types: Mapping[str, str], named: Mapping[str, str]) -> dict[str, Any]:
        """The values of a row by column; an unnamed column, such as the row number pandas writes, is left out."""
        values: dict[str, Any] = {name: cell for name, cell in zip(self.columns, cells, strict=True) if name}
        for name, type in types.items():
            values[name] = convert(name, values[name], type, named=name in named)
        if isinstance(cell := values.get("metadata"), str):
            if not self._quoting and cell[:2] == '"{':  # a CSV cell in a TSV: no JSON object begins with a quote
                cell = cell.strip()[1:-1].replace('""', '"')
            values["metadata"] = json_object(cell, "metadata") if cell.strip() else None
        return values

    def _first_line(self) -> str:
        self.lines.begin()
        line = next(self.lines, "").rstrip("\r\n")
        if "\r" in line:
            raise CorpusError(
                f"{self.lines.name}: its lines end in carriage returns alone; convert it: tr '\\r' '\\n' < FILE > NEW"
            )
        return line

    def _read_header(self, fields: Fields, options: TableOptions) -> list[str]:
        for record in self._records:
            if record.fault:
                _check_delimiter([], self.lines.record[0].text, self._delimiter, fields, self.lines.name)
                raise CorpusError(f"{record.location}: {record.fault}")
            if not any(map(str.strip, record.cells)):
                continue
            if not options.header:
                self.lines.push_back(0)
                return _columns_without_header(len(record.cells), fields, self.lines.name)
            self._header = record.cells
            columns = [name.strip() for name in record.cells]
            _check_delimiter(columns, self.lines.record[0].text, self._delimiter, fields, self.lines.name)
            check_columns(columns, fields, self.lines.name)
            return columns
        raise CorpusError(f"{self.lines.name}: empty; the first line must name the columns")


def _columns_without_header(count: int, fields: Fields, name: str) -> list[str]:
    if any(each.isdigit() for each in (fields.id, fields.title, fields.text)):
        columns = [str(number) for number in range(1, count + 1)]
    elif count in _WITHOUT_HEADER:
        columns = list(_WITHOUT_HEADER[count])
    else:
        raise CorpusError(
            f"{name}: {count} columns and no header; name columns by their numbers, such as --id-field 1 --text-field 2"
        )
    check_columns(columns, fields, name)
    return columns


def _check_delimiter(columns: list[str], header: str, delimiter: str, fields: Fields, name: str) -> None:
    if fields.text in columns:
        return
    for other, option in ((",", ","), (";", ";"), ("\t", "tab"), ("|", "|")):
        cells = [cell.strip().strip('"') for cell in header.rstrip("\r\n").split(other)]
        if other != delimiter and (fields.text in cells or (len(columns) == 1 and len(cells) > 1)):
            raise CorpusError(
                f'{name}: no column "{fields.text}"'
                + (f"; its columns are {quoted(columns)}" if columns else "")
                + f'; the cells seem to be separated by another character: --delimiter "{option}"'
            )


def check_columns(columns: list[str], fields: Fields, name: str, *, header: bool = True) -> None:
    """Raise CorpusError unless the columns are those that `fields` names; `header` is for what it advises."""
    listed = f"its columns are {quoted(columns)}"
    if twice := [column for column, count in Counter(columns).items() if column and count > 1]:
        raise CorpusError(f"{name}: more than one column is called {quoted(twice)}; {listed}")
    wanted = {} if has_no_ids(columns, fields) else {"id": id_key(columns, fields)}
    wanted["text"] = fields.text
    if fields.title != "title":
        wanted["title"] = fields.title
    if fields.vector is not None:
        wanted["vector"] = fields.vector
    for option, column in wanted.items():
        if column not in columns:
            raise CorpusError(
                f'{name}: no column "{column}"; {listed}; name the {option} column with --{option}-field'
                + _field_options(columns)
                + ("" if not header else ", or say --no-header if the first line is a row")
            )
    # A "metadata" column holds objects whose keys are known only row by row.
    missing = [] if "metadata" in columns else [key for key in fields.metadata or () if key not in columns]
    if missing:
        raise CorpusError(f"{name}: no column {quoted(missing)} to keep as metadata (--metadata-field); {listed}")


def _field_options(columns: list[str]) -> str:
    """Options for columns that are called "ID" or "Text", as far as there are any."""
    names = {option: [column for column in columns if column.lower() == option] for option in ("id", "title", "text")}
    options = [f"--{option}-field {found[0]}" for option, found in names.items() if found and found[0] != option]
    return f" (here: {' '.join(options)})" if options else ""


def _find_types(table: _Table, options: TableOptions, report: ReadReport) -> dict[str, str]:
    """The type of each metadata column, by all rows of the file."""
    guesses = {name: ColumnGuess(name) for name in table.metadata if name not in options.types}
    positions = {name: table.columns.index(name) for name in guesses}
    for record in table.records():
        if not record.fault:
            for name, guess in guesses.items():
                guess.see(record.cells[positions[name]], record.location)
    types = {name: options.types.get(name) or guesses[name].kind for name in table.metadata}
    report.columns.update(types)
    report.remarks += [guess.near_miss for guess in guesses.values() if guess.near_miss]
    return {name: kind for name, kind in types.items() if kind != "text"}


class _Source(NamedTuple):
    """A file that can be read twice."""

    path: Path
    copy: IO[bytes] | None

    def open(self) -> AbstractContextManager[Any]:
        if self.copy is None:
            return open_bytes(self.path)
        self.copy.seek(0)
        return nullcontext(self.copy)


@contextmanager
def _rereadable(path: Path) -> Iterator[_Source]:
    if path.is_file():
        yield _Source(path, None)
        return
    with open_bytes(path) as stream, tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy)
        yield _Source(path, copy)
