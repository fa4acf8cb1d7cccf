"""The values of one key, each decided once, whatever the number of documents and of files that have it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import numpy as np

from searchkit.indexer.columns.part import Part
from searchkit.indexer.conditions import Condition


class Values:
    """What the documents of some parts have under a key.

    Args:
        key: The first part of it, as normalised metadata have it.
        parts: One after another.

    Raises:
        UnusableError: There are too many values, or a file is damaged.
    """

    def __init__(self, key: str, parts: Sequence[Part]) -> None:
        self._key, self._parts = key, parts
        known: dict[str, int] = {}
        self._numbers = [
            np.array([0, *(known.setdefault(text, 1 + len(known)) for text in part.texts(key))], np.int64)
            if key in part.keys
            else np.zeros(1, np.int64)
            for part in parts
        ]
        self._db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._db.execute("CREATE TABLE documents (number INTEGER PRIMARY KEY, metadata TEXT)")
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO documents VALUES (?, ?)", ((code, text) for text, code in known.items()))
        self._db.execute("COMMIT")
        self._count = len(known)

    def passing(self, condition: Condition, absent: bool) -> np.ndarray:
        """(documents,) bool, which documents pass a condition, which reads nothing but the key.

        Args:
            condition: On the column `metadata`.
            absent: Whether documents without the key pass.
        """
        passes = np.zeros(1 + self._count, dtype=bool)
        passes[0] = absent
        query = f"SELECT number FROM documents WHERE {condition.sql}"
        passes[[number for (number,) in self._db.execute(query, condition.parameters)]] = True
        masks = [
            passes[numbers][part.codes(self._key)] if self._key in part.keys else np.full(part.count, absent)
            for part, numbers in zip(self._parts, self._numbers, strict=True)
        ]
        return np.concatenate(masks) if masks else np.empty(0, bool)
