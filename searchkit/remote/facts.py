"""What filters need to know of a document, as short words that every engine compares alike.

Engines differ in what they make of a missing key, of a number where a string is stored, or of an element of a list. So
a row does not only hold its metadata but, beside them, facts about them: that a key exists, that it has a number, that
it has this value; and for comparisons by order, the least and the greatest value of a type. All of them are lower case
letters and digits. A condition becomes a question of which facts a row has; see :mod:`searchkit.remote.filters`.
"""

from __future__ import annotations

import json
import math
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from threading import local
from typing import Any, NamedTuple

from searchkit.indexer.filters import MAX_PARTS
from searchkit.indexer.instants import instant_of
from searchkit.indexer.unicode import normalised, normalised_metadata

ORDERED = 250
"""Characters of a string that comparisons by order see; longer operands are refused, so that they are exact."""

ID, TITLE = ("", "id"), ("", "title")
"""Stand for a document's own columns: no key has an empty part."""

EXISTS, NUMBER, TEXT, DATE, TRUE, FALSE, NULL = "entdyfz"

_threads = local()


class Facts(NamedTuple):
    """What is known of one document.

    Args:
        words: Facts.
        ranges: The least and the greatest value by key and type, under the names that `bound` gives them.
    """

    words: list[str]
    ranges: dict[str, str]


def facts_of(id: str, title: str, metadata: Any) -> Facts:
    """The facts about a document."""
    words: dict[str, None] = {}
    ranges: dict[str, str] = {}
    values = _values((), normalised_metadata(metadata))
    for parts, kind, value in [(ID, TEXT, id), (TITLE, TEXT, normalised(title)), *values]:
        key = key_name(parts)
        words[key + EXISTS] = None
        if not kind:
            continue
        words[key + kind] = None
        if kind not in (NUMBER, TEXT, DATE):
            continue
        words[equal(key, kind, value)] = None
        place = sortable(kind, value)
        low, high = bound(key, kind, least=True), bound(key, kind, least=False)
        ranges[low] = min(ranges.get(low, place), place)
        ranges[high] = max(ranges.get(high, place), place)
    return Facts(list(words), ranges)


def _values(parts: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """(key, kind, value) of everything in normalised metadata, also for dates; an empty kind says that a key exists."""
    if len(parts) > MAX_PARTS:  # no filter reaches them
        return
    if isinstance(value, dict):
        if parts:
            yield parts, "", None
        for key, inner in value.items():
            if key:
                yield from _values((*parts, key), inner)
    elif isinstance(value, list):
        yield parts, "", None
        for item in value:
            if not isinstance(item, list):  # filters do not enter lists in lists
                yield from _values(parts, item)
    elif value is None or isinstance(value, bool):
        yield parts, NULL if value is None else TRUE if value else FALSE, value
    elif isinstance(value, str):
        text = value.partition("\0")[0]  # where SQLite ends it
        yield parts, TEXT, text
        if text[4:5] == "-" == text[7:8] and (instant := instant_of(_database(), text)) is not None:
            yield parts, DATE, instant
    else:
        yield parts, NUMBER, value


def key_name(parts: Sequence[str]) -> str:
    """The short name of a key, by its parts."""
    return _digest(json.dumps(parts), 6)


def equal(key: str, kind: str, value: Any) -> str:
    """The fact that a key has a value."""
    text = sortable(kind, value) if kind == NUMBER else value
    return key + kind + _digest(text, 10)


def bound(key: str, kind: str, *, least: bool) -> str:
    """What the least or the greatest value of a type is called among the ranges."""
    return f"{key}{kind}{0 if least else 1}"


def sortable(kind: str, value: Any) -> str:
    """A value as hexadecimal digits that sort as the values do: numbers exactly, strings by code point."""
    if kind == NUMBER:
        if isinstance(value, int) and not -(2**63) <= value < 2**63:  # earlier versions stored them
            value = float(value) if abs(value) < 1 << 1023 else math.copysign(math.inf, value)
        # The nearest double, and what an integer differs from it by.
        near = float(value) + 0.0  # -0.0 is 0.0
        (bits,) = struct.unpack(">Q", struct.pack(">d", near))
        bits ^= (1 << 64) - 1 if bits >> 63 else 1 << 63
        return f"{bits:016x}{value - int(near) + 2048 if isinstance(value, int) else 2048:04x}"
    return str(value)[:ORDERED].encode().hex()


def _digest(text: str, size: int) -> str:
    return blake2b(text.encode(), digest_size=size).hexdigest()


def _database() -> sqlite3.Connection:
    """SQLite without a file, one for each thread, to read dates as filters on folders do."""
    if not hasattr(_threads, "database"):
        _threads.database = sqlite3.connect(":memory:")
    database: sqlite3.Connection = _threads.database
    return database
