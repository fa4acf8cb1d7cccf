"""Filters over columns: which of their documents pass."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from searchkit.indexer.columns.part import Part, UnusableError
from searchkit.indexer.columns.values import Values
from searchkit.indexer.conditions import Condition
from searchkit.indexer.filters import COLUMNS, compile_filter, first_part


def passing(where: Mapping[str, Any], parts: Sequence[Part], known: dict[str, Values] | None = None) -> np.ndarray:
    """(documents,) bool, which documents of some parts, one after another, pass a filter that can be compiled.

    Args:
        where: The filter.
        parts: The parts.
        known: Keeps the values of these parts' keys for the next filter.

    Raises:
        UnusableError: It names an id, a title, or a key with too many values, or a file is damaged.
    """
    values: dict[str, Values] = {} if known is None else known
    return _passing(where, sum(part.count for part in parts), lambda key, value: _leaf(parts, values, key, value))


def _passing(where: Mapping[str, Any], count: int, leaf: Callable[[str, Any], np.ndarray]) -> np.ndarray:
    """(count,) bool, what passes a filter that can be compiled."""
    mask = np.ones(count, dtype=bool)
    for key, value in where.items():
        if key == "$not":
            mask &= ~_passing(value, count, leaf)
        elif key.startswith("$"):
            parts: Iterator[np.ndarray] = (_passing(part, count, leaf) for part in value)
            combine = np.logical_and if key == "$and" else np.logical_or
            joined = next(parts)
            for part in parts:
                combine(joined, part, out=joined)
            mask &= ~joined if key == "$nor" else joined
        else:
            mask &= leaf(key, value)
    return mask


def _leaf(parts: Sequence[Part], known: dict[str, Values], key: str, value: Any) -> np.ndarray:
    """Which documents pass the conditions on one key."""
    if key in COLUMNS:
        raise UnusableError(f"{key} has no column")
    condition, first = compile_filter({key: value}), first_part(key)
    if first not in known:
        known[first] = Values(first, parts)
    return known[first].passing(condition, _holds_without(condition))


def _holds_without(condition: Condition) -> bool:
    """Whether a condition holds for documents that do not have its key."""
    with closing(sqlite3.connect(":memory:")) as db:
        query = f"SELECT {condition.sql} FROM (SELECT '{{}}' AS metadata)"
        return bool(db.execute(query, condition.parameters).fetchone()[0])
