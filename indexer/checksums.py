"""Checksums of what SQLite stores: it has none for its pages."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any


def row_checksum(row: Sequence[Any]) -> int:
    """The checksum of some values of one document: (doc, first row, passages, id, title, metadata)."""
    content = "\0".join(map(str, row)).encode(errors="replace")
    return int.from_bytes(blake2b(content, digest_size=6).digest(), "big")
