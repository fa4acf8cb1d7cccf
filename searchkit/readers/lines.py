"""Files as lines of text: opened, unpacked, decoded, and numbered for messages."""

from __future__ import annotations

import codecs
import gzip
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple

from searchkit.errors import CorpusError, ExtractionError, RowError
from searchkit.readers.encoding import NAME_IT, decode, marked_encoding
from searchkit.readers.values import json_object

LONGEST_LINE = 2**26  # bytes; a longer line is not a row but another kind of file
_BLOCK = 2**16
# What a file of lines begins with that is none.
_MAGIC = {
    b"\x1f\x8b": "it is gzipped; name it .gz, or unpack it (on standard input: zcat FILE | ...)",
    b"PK\x03\x04": "it is a ZIP archive or an Office document; unpack it, or export the sheet as CSV",
    b"PAR1": "it is a Parquet file; name it .parquet",
    b"%PDF-": "it is a PDF; name it .pdf",
    b"BZh": "it is packed by bzip2; unpack it",
    b"\xfd7zXZ": "it is packed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "it is packed by zstd; unpack it",
    b"SQLite format 3": "it is an SQLite database; export the table as CSV",
}


class Line(NamedTuple):
    """One physical line.

    Args:
        number: 1 for the first.
        text: With its line end; undecodable bytes come escaped.
        fault: Why it could not be decoded, or "".
    """

    number: int
    text: str
    fault: str


class Lines:
    """Iterates over the text lines of a byte stream, and remembers those of the record being read.

    A line that cannot be decoded comes escaped, and `fault` says why, so that reading can continue after it.

    Args:
        stream: The bytes. A byte order mark of UTF-16 or UTF-32 goes before `encoding`.
        name: Of the stream, for locations.
        encoding: None is UTF-8 where the user has no choice.
    """

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, name: str, encoding: str | None = None) -> None:
        self._hint = "convert it to UTF-8, as with iconv -f latin1 -t utf-8" if encoding is None else NAME_IT
        self._stream: IO[bytes] | gzip.GzipFile | _Recoded = stream
        self._encoding = encoding or "utf-8"
        if self._encoding.lower().replace("_", "-") != "utf-8-sig" and "\n".encode(self._encoding) != b"\n":
            self._recode(b"", self._encoding)
        self._read = 0
        self._returned: deque[Line] = deque()
        self.name = name
        self.record: list[Line] = []

    def begin(self) -> str:
        """Start a record and return its location."""
        self.record = []
        return f"{self.name}:{self._returned[0].number if self._returned else self._read + 1}"

    def push_back(self, first: int) -> None:
        """Return the record's lines from position `first` on, to be read again."""
        self._returned.extendleft(reversed(self.record[first:]))
        del self.record[first:]

    @property
    def raw(self) -> str:
        """The text of the record being read."""
        return "".join(line.text for line in self.record)

    @property
    def fault(self) -> str:
        """Why the record could not be decoded, or ""."""
        return next((line.fault for line in self.record if line.fault), "")

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else self._next_line()
        self.record.append(line)
        return line.text

    def _next_line(self) -> Line:
        location = f"{self.name}:{self._read + 1}"
        try:
            data = self._stream.readline(LONGEST_LINE)
            if self._read == 0 and (marked := marked_encoding(data)):
                self._recode(data, marked)
                data = self._stream.readline(LONGEST_LINE)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise CorpusError(f"{location}: the gzip file is damaged ({error}); fetch or compress it again") from error
        except UnicodeDecodeError as error:
            raise CorpusError(f"{location}: not {error.encoding} from here on: {error.reason}; {self._hint}") from error
        if not data:
            raise StopIteration
        if self._read == 0:
            self._check_kind(data)
        self._read += 1
        if len(data) == LONGEST_LINE:
            raise CorpusError(f"{location}: a line longer than {LONGEST_LINE >> 20} MiB; is it a file of another kind?")
        try:
            text, fault = decode(data, self._encoding, "line", self._hint), ""
        except ExtractionError as error:
            text, fault = data.decode(self._encoding, "backslashreplace"), str(error)
        return Line(self._read, text.removeprefix("\ufeff") if self._read == 1 else text, fault)

    def _recode(self, head: bytes, encoding: str) -> None:
        self._stream, self._encoding = _Recoded(head, self._stream, encoding), "utf-8"

    def _check_kind(self, data: bytes) -> None:
        """Raise CorpusError if the first line is that of a file of another kind."""
        for magic, advice in _MAGIC.items():
            if data.startswith(magic):
                raise CorpusError(f"{self.name}: not lines of text: {advice}")
        # every other byte of UTF-16 is zero where the text is Latin
        if len(data) > 8 and data.count(0) > len(data) // 3:
            raise CorpusError(
                f"{self.name}:1: every other byte is zero, as in UTF-16 without a byte order mark; "
                "if it is that, convert it: iconv -f utf-16le -t utf-8"
            )


class _Recoded:
    """The lines of a stream in an encoding that hides their ends, such as UTF-16, as lines in UTF-8."""

    def __init__(self, head: bytes, stream: Any, encoding: str) -> None:
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._text = self._decoder.decode(head)
        self._stream = stream
        self._more = True

    def readline(self, limit: int) -> bytes:
        while self._more and "\n" not in self._text and len(self._text) < limit:
            block = self._stream.read(_BLOCK)
            self._more = bool(block)
            self._text += self._decoder.decode(block, final=not block)
        line, end, self._text = self._text.partition("\n")
        return (line + end).encode("utf-8", "surrogatepass")[:limit]


def open_bytes(path: Path) -> AbstractContextManager[IO[bytes] | gzip.GzipFile]:
    """Open a file for its bytes, unpacked if it is .gz; "-" is standard input, which stays open."""
    if path == Path("-"):
        if sys.stdin is None:
            raise CorpusError("standard input is closed; name a file, or pipe one in")
        return nullcontext(sys.stdin.buffer)
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    return path.open("rb")


def nonblank_lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """(location, line, why it cannot be decoded) of the lines in UTF-8 that are not blank."""
    with open_bytes(path) as stream:
        lines = Lines(stream, name_of(path))
        location = lines.begin()
        for line in lines:
            if line.strip():
                yield location, line, lines.fault
            location = lines.begin()


def plain_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(location, line) of the lines that are not blank; CorpusError at one that is not UTF-8 or holds a NUL."""
    for location, line, fault in nonblank_lines(path):
        if "\0" in line:
            fault = f"a NUL byte at character {line.index(chr(0))}; remove it"
        if fault:
            raise CorpusError(f"{location}: {fault}")
        yield location, line


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(location, object) of JSON lines; CorpusError at one that is not a JSON object in UTF-8."""
    for location, line in plain_lines(path):
        try:
            values = json_object(line)
        except RowError as error:
            raise CorpusError(f"{location}: {error}") from None
        yield location, values


def existing(path: Path | str) -> Path:
    """Return the path, or raise CorpusError if nothing is there."""
    path = Path(path)
    if not path.exists():
        raise CorpusError(f"{path}: no such file or folder")
    return path


def gz_or_plain(path: Path) -> Path:
    """The path, or the same with .gz where only that exists."""
    packed = path.with_name(path.name + ".gz")
    return packed if packed.is_file() and not path.exists() else path


def name_of(path: Path) -> str:
    """The path as messages name it."""
    return "stdin" if path == Path("-") else str(path)
