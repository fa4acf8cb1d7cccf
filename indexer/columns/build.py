"""Columns made of documents, and of other columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from searchkit.indexer.checksums import row_checksum
from searchkit.indexer.columns.part import Part, UnusableError, id_number
from searchkit.indexer.unicode import filterable, is_strict

MOST = 1 << 18
"""Different values of a key up to which each gets a number: beyond, deciding a filter for each is no gain any more."""

_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode  # made once, which takes as long as using it

_SCALARS = (int, float, bool, type(None))
_BLOCK = 4096
"""Documents whose values are held before they are numbered."""


class Removed(NamedTuple):
    """Documents that have been compacted away.

    Args:
        docs: (n,) int64, their positions, ascending.
        checksums: (n,) uint64, what `row_checksum` returned for each.
    """

    docs: np.ndarray
    checksums: np.ndarray


class _Column:
    """One key while documents are read; values come a block at a time, which takes a third of the time."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.known: dict[Any, int] = {}
        self.places: list[int] = []
        self.values: list[Any] = []
        self._codes: list[np.ndarray] = []

    def encode(self) -> None:
        known = self.known
        codes = [
            known.setdefault(value if value.__class__ is str else _token(value), 1 + len(known))
            for value in self.values
        ]
        self._codes.append(np.array(codes, np.int64))
        self.values.clear()

    def texts(self) -> list[str]:
        key = _json(self.key)
        return [_text(key, token) for token in self.known]

    def block(self, count: int) -> np.ndarray:
        codes = np.zeros(count, np.int64)
        codes[self.places] = np.concatenate(self._codes)
        return codes


def _token(value: Any) -> tuple[type, Any]:
    """What tells a value that is no string from others: 1, 1.0 and true are equal to Python."""
    kind = value.__class__
    return kind, value if kind in _SCALARS else _json(value)


def _text(key: str, token: Any) -> str:
    """A JSON object of a key in JSON and a value, by the string or token that it is known by."""
    if token.__class__ is str:
        return f"{{{key}: {_json(token)}}}"
    kind, value = token
    return f"{{{key}: {_json(value) if kind in _SCALARS else value}}}"


def part_of(rows: Iterable[Sequence[Any]], start: int, stop: int, compacted: int) -> Part:
    """The columns of documents as the database has them.

    Args:
        rows: (doc, first row, passages, id, title, metadata) in order.
        start: Their positions are from here on,
        stop: and below here.
        compacted: The commit that last removed documents.

    Raises:
        ValueError: Metadata is not JSON, or not an object; RecursionError: it is too deep.
    """
    columns: dict[str, _Column] = {}
    numbers: list[tuple[int, int, int]] = []
    ids: list[int] = []
    contents, strict = 0, True
    for place, row in enumerate(rows):
        contents ^= row_checksum(row)
        doc, first, passages, id, _, metadata = row
        ids.append(id_number(id))
        numbers.append((doc, first, passages))
        plain = filterable(metadata)
        strict = strict and (plain is metadata or is_strict(metadata))
        values = json.loads(plain)
        if not isinstance(values, dict):
            raise ValueError(f"the metadata of document {doc} is no object")
        for key, value in values.items():
            column = columns.get(key)
            if column is None:
                column = columns[key] = _Column(key)
            column.places.append(place)
            column.values.append(value)
        if place % _BLOCK == _BLOCK - 1:
            for column in columns.values():
                column.encode()
    for column in columns.values():
        column.encode()
    table = np.array(numbers, dtype=np.int64).reshape(-1, 3)
    merged = [(key, column.block(len(table)), column.texts()) for key, column in columns.items()]
    part = _made(table, np.array(ids, "<u8"), merged, start, stop, compacted, contents)
    return part.marked(strict=strict)


def merged(parts: Sequence[Part]) -> Part:
    """One part out of several that follow each other, each block of which is made when it is read, to be written."""
    blocks: dict[str, Callable[[], Any]] = {"ids": lambda: np.concatenate([part.ids() for part in parts])}
    stored = {name for part in parts for name in part.header["blocks"]}
    count, start, stop = sum(part.count for part in parts), parts[0].start, parts[-1].stop
    if count != stop - start:
        blocks["docs"] = lambda: _joined(parts, Part.docs, "<i8")
    held = [part for part in parts if part.count]
    follow = all(int(one.header["first_row"]) + one.count == other.header["first_row"] for one, other in pairwise(held))
    if "first_rows" in stored or "passages" in stored or not follow:
        blocks["first_rows"] = lambda: _joined(parts, Part.first_rows, "<i8")
    if "passages" in stored:
        blocks["passages"] = lambda: _joined(parts, Part.passages, "<i4")
    keys: dict[str, Any] = {}
    for number, key in enumerate(dict.fromkeys(key for part in parts for key in part.keys)):
        entry, made = _merged_column(key, parts, number)
        keys[key] = entry
        blocks |= made
    contents = 0
    for part in parts:
        contents ^= int(part.header["contents"])
    header = {
        "compacted": parts[0].header["compacted"],
        "start": start,
        "stop": stop,
        "count": count,
        "contents": contents,
        "first_row": held[0].header["first_row"] if held else 0,
        "keys": keys,
        "blocks": list(blocks),
        "strict": all(part.header["strict"] for part in parts),
    }
    return Part(header, lambda name: blocks[name]())


def _joined(parts: Sequence[Part], read: Callable[[Part, np.ndarray], np.ndarray], dtype: str) -> np.ndarray:
    return np.concatenate([read(part, np.arange(part.count)).astype(dtype) for part in parts])


def _merged_column(key: str, parts: Sequence[Part], number: int) -> tuple[dict[str, Any], dict[str, Callable[[], Any]]]:
    """What the header says of a key, and how its blocks are made; none where it has too many values."""
    known: dict[str, int] = {}
    numbers: list[list[int]] = []
    many: dict[str, Any] = {"number": number, "kind": "many"}
    for part in parts:
        if key in part.keys and part.has_many(key):
            return many, {}
        texts = part.texts(key) if key in part.keys else []
        numbers.append([0, *(known.setdefault(text, 1 + len(known)) for text in texts)])
        if len(known) > MOST:
            return many, {}
    dtype, texts = np.min_scalar_type(len(known)).newbyteorder("<"), list(known)

    def codes() -> np.ndarray:
        return np.concatenate(
            [
                np.array(mine, dtype)[part.codes(key)] if key in part.keys else np.zeros(part.count, dtype)
                for part, mine in zip(parts, numbers, strict=True)
            ]
        )

    entry = {"number": number, "kind": "codes", "dtype": dtype.str, "distinct": len(texts)}
    return entry, {f"{number}.codes": codes, f"{number}.values": lambda: "\n".join(texts).encode()}


def without(part: Part, removed: Removed, compacted: int) -> Part:
    """The columns that are left of a part once the commit `compacted` has removed documents.

    Raises:
        UnusableError: Only the documents themselves tell: a key that had too many values may have few by now, and a
            document with NaN in its metadata may be gone.
    """
    first, below = np.searchsorted(removed.docs, (part.start, part.stop))
    every = np.arange(part.count)
    kept = np.flatnonzero(~np.isin(part.docs(every), removed.docs[first:below]))
    if len(kept) <= MOST and any(map(part.has_many, part.keys)):
        raise UnusableError("keys with too many values may have few by now")
    if below > first and not part.header["strict"]:
        raise UnusableError("NaN and Infinity may be gone")
    table = np.stack([part.docs(kept), part.first_rows(kept), part.passages(kept)], axis=1)
    contents = int(part.header["contents"]) ^ int(np.bitwise_xor.reduce(removed.checksums[first:below]))
    columns = [_column_of(key, part, kept) for key in part.keys]
    left = [(key, codes, texts) for key, codes, texts in columns if codes is None or texts]
    whole = _made(table, part.ids()[kept], left, part.start, part.stop, compacted, contents)
    return whole.marked(strict=part.header["strict"])


def _column_of(key: str, part: Part, kept: np.ndarray) -> tuple[str, np.ndarray | None, list[str]]:
    """A key, the numbers of some documents' values, and the values that they have; None where there are too many."""
    if part.has_many(key):
        return key, None, []
    codes, texts = part.codes(key)[kept], part.texts(key)
    held = np.flatnonzero(np.bincount(codes, minlength=1 + len(texts))[1:])
    numbers = np.zeros(1 + len(texts), np.int64)
    numbers[1 + held] = 1 + np.arange(len(held))
    return key, numbers[codes], [texts[number] for number in held.tolist()]


def _made(
    table: np.ndarray,
    ids: np.ndarray,
    columns: Sequence[tuple[str, np.ndarray | None, list[str]]],
    start: int,
    stop: int,
    compacted: int,
    contents: int,
) -> Part:
    blocks: dict[str, Any] = {"ids": np.ascontiguousarray(ids, "<u8")}
    docs, first_rows, passages = table.T
    count = len(table)
    first_row = int(first_rows[0]) if count else 0
    if count != stop - start:
        blocks["docs"] = np.ascontiguousarray(docs, "<i8")
    if not np.array_equal(first_rows, first_row + np.arange(count)):
        blocks["first_rows"] = np.ascontiguousarray(first_rows, "<i8")
    if not (passages == 1).all():
        blocks["passages"] = np.ascontiguousarray(passages, "<i4")
    keys: dict[str, Any] = {}
    for number, (key, codes, texts) in enumerate(columns):
        if codes is None or len(texts) > MOST:
            keys[key] = {"number": number, "kind": "many"}
            continue
        dtype = np.min_scalar_type(len(texts)).newbyteorder("<")
        keys[key] = {"number": number, "kind": "codes", "dtype": dtype.str, "distinct": len(texts)}
        blocks[f"{number}.codes"] = np.ascontiguousarray(codes, dtype)
        blocks[f"{number}.values"] = "\n".join(texts).encode()
    header = {
        "compacted": compacted,
        "start": start,
        "stop": stop,
        "count": count,
        "contents": contents,
        "first_row": first_row,
        "keys": keys,
        "blocks": list(blocks),
    }
    return Part(header, blocks.__getitem__)
