"""Bytes to text, strictly."""

from __future__ import annotations

from searchkit.errors import ExtractionError

NAME_IT = "name its encoding with --encoding"


def decode(data: bytes, encoding: str, unit: str = "file", hint: str = NAME_IT) -> str:
    """Decode, or raise ExtractionError with a hint; `unit` names what the byte position is counted in."""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ExtractionError(
            f"not {encoding}: {error.reason} 0x{data[error.start]:02x} at byte {error.start} of the {unit}; {hint}"
        ) from error
