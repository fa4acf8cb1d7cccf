"""Decode files line by line, check single values, and set bad rows aside."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn, TextIO

from searchkit.errors import CorpusError, ExtractionError, InputError, RowError
from searchkit.readers.extract import decode

LONGEST_LINE = 2**26  # bytes; a longer line is not a row but a file of another kind
_SHOWN = 2000  # characters of a refused row that are kept


@dataclass
class Rejects:
    """Rows that did not become documents.

    Args:
        path: JSON lines of {"place", "reason", "row"} go here, over those of an earlier run; created with the first
            refused row. None makes the first bad row a CorpusError.
    """

    path: Path | None = None
    count: int = field(default=0, init=False)
    _file: TextIO | None = field(default=None, init=False, repr=False)

    def refuse(self, place: str, reason: str, row: object = "") -> None:
        """Set a bad row aside, or raise CorpusError where there is no file to set it aside in."""
        if self.path is None:
            raise CorpusError(f"{place}: {reason}") from None
        self.set_aside(place, reason, row)

    def set_aside(self, place: str, reason: str, row: object = "") -> None:
        """Count a row that nobody is to blame for, and write it down if there is a file; never a CorpusError."""
        if self.path is not None:
            if self._file is None:
                # Line by line, so that a killed run leaves whole lines; lone surrogates come out as JSON escapes.
                self._file = open(  # noqa: SIM115  close() closes it
                    self.path, "a" if self.count else "w", encoding="utf-8", errors="backslashreplace", buffering=1
                )
            entry = {"place": place, "reason": reason, "row": _shown(row)}
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.count += 1

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Rejects:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Lines:
    """Decodes a byte stream line by line, and keeps what is needed to report the record being read.

    A line that cannot be decoded comes escaped, with ``fault`` saying why, so that reading can go on after it.
    """

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, name: str, encoding: str) -> None:
        if encoding.lower().replace("_", "-") != "utf-8-sig" and "\n".encode(encoding) != b"\n":
            raise CorpusError(
                f"{name}: lines cannot be told apart in {encoding}; convert: iconv -f {encoding} -t utf-8"
            )
        self._stream = stream
        self._encoding = encoding
        self._number = 0
        self.name = name
        self.begin()

    def begin(self) -> str:
        """Start a record and return its place."""
        self.fault = self.raw = ""
        return f"{self.name}:{self._number + 1}"

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        place = f"{self.name}:{self._number + 1}"
        try:
            line = self._stream.readline(LONGEST_LINE)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise CorpusError(f"{place}: the gzip file is damaged ({error}); fetch or compress it again") from error
        if not line:
            raise StopIteration
        self._number += 1
        if self._number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise CorpusError(f"{place}: UTF-16 by its byte order mark; convert it: iconv -f utf-16 -t utf-8")
        if len(line) == LONGEST_LINE:
            raise CorpusError(f"{place}: a line longer than {LONGEST_LINE >> 20} MiB; is it a file of another kind?")
        try:
            text = decode(line, self._encoding, unit="line")
        except ExtractionError as error:
            self.fault = self.fault or str(error)
            text = line.decode(self._encoding, "backslashreplace")
        if len(self.raw) < _SHOWN:
            self.raw += text
        return text


def open_bytes(path: Path) -> AbstractContextManager[IO[bytes] | gzip.GzipFile]:
    """Open a file for its bytes, unpacked if it is .gz; "-" is standard input, which stays open."""
    if path == Path("-"):
        return nullcontext(sys.stdin.buffer)
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    return path.open("rb")


def plain_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, line) of the lines that are not blank, in UTF-8."""
    with open_bytes(path) as stream:
        lines = Lines(stream, str(path), "utf-8")
        place = lines.begin()
        for line in lines:
            if lines.fault:
                raise CorpusError(f"{place}: {lines.fault}")
            if line.strip():
                yield place, line
            place = lines.begin()


def existing(path: Path | str) -> Path:
    """Return the path, or raise CorpusError where nothing is there."""
    path = Path(path)
    if not path.exists():
        raise CorpusError(f"{path}: no such file or folder")
    return path


def json_object(line: str, what: str = "the row") -> dict[str, Any]:
    """Return the JSON object a text holds, or raise RowError; ``what`` names the text in the message."""
    try:
        value = _JSON.decode(line)
    except json.JSONDecodeError as error:
        raise RowError(f"{what} is not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # NaN, a number of 5,000 digits, brackets 10,000 deep
        raise RowError(f"{what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RowError(f"{what} is {typename(value)}; it must be a JSON object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise InputError(f"{name} is not a JSON number")


_JSON = json.JSONDecoder(parse_constant=_no_constant)


def checked_id(value: object) -> str:
    """Return an id as a string, or raise RowError."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(f"id is {typename(value)}; it must be a string or an integer")
    if not str(value).strip():
        raise RowError("empty id")
    return str(value)


def check_storable(name: str, value: str) -> None:
    """Raise RowError where UTF-8 cannot store the value."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(value[error.start]):04x}"
        raise RowError(f"{name} holds the lone surrogate {code}, which UTF-8 cannot store; take it out") from None


def is_integer(text: str) -> bool:
    """Whether the text is an integer in ASCII digits; int() alone takes "1_000" too."""
    return re.fullmatch(r"[+-]?[0-9]+", text) is not None


def typename(value: object) -> str:
    """What JSON calls the type of a value, with its article."""
    names: dict[type, str] = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a decimal number",
        str: "a string",
        dict: "an object",
        list: "a list",
    }
    return names.get(type(value), type(value).__name__)


def quoted(names: Iterable[str]) -> str:
    """The first dozen names, each in double quotes."""
    names = [f'"{name}"' for name in names]
    return ", ".join(names[:12] + ["..."] * (len(names) > 12)) or "nothing"


def name_of(path: Path) -> str:
    """The path as messages name it."""
    return "stdin" if path == Path("-") else str(path)


def _shown(row: object) -> str:
    if isinstance(row, bytes):
        row = row[:_SHOWN].decode("utf-8", "backslashreplace")
    elif not isinstance(row, str):
        row = json.dumps(row, ensure_ascii=False, default=repr)
    return row.rstrip("\r\n")[:_SHOWN]
