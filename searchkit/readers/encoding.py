"""Bytes to text, strictly."""

from __future__ import annotations

import codecs

from searchkit.errors import ExtractionError

NAME_IT = "name its encoding with --encoding"

# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def marked_encoding(data: bytes) -> str:
    """The encoding that a byte order mark names, "" without one; UTF-8 needs none."""
    return next((encoding for mark, encoding in _MARKS.items() if data.startswith(mark)), "")


def decode(data: bytes, encoding: str, unit: str = "file", hint: str = NAME_IT) -> str:
    """Decode, or raise ExtractionError with a hint; `unit` names what the byte position is counted in."""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ExtractionError(
            f"not {encoding}: {error.reason} 0x{data[error.start]:02x} at byte {error.start} of the {unit}; {hint}"
        ) from error


def decode_file(data: bytes, encoding: str) -> str:
    """The text of a whole file, by its byte order mark if it has one."""
    return decode(data, marked_encoding(data) or encoding).removeprefix("\ufeff")
