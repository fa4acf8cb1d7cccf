"""Texts that occur several times in the examples, embedded once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Rows:
    """Different texts, or pairs of them, and the row of each."""

    def __init__(self, keys: Iterable[Any]) -> None:
        self.keys = list(dict.fromkeys(keys))
        self._rows = {key: row for row, key in enumerate(self.keys)}

    def __getitem__(self, key: Any) -> int:
        return self._rows[key]
