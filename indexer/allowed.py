"""Which rows or positions may be returned, with what searching derives from that."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


class AllowedRows:
    """A mask over rows or positions. What is derived from it is computed once, however many searches it serves.

    Args:
        mask: (n,) bool, True for those that may be returned; it does not change any more.
    """

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = mask
        self._derived: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def count(self) -> int:
        """How many may be returned."""
        return self.derived("count", lambda: int(np.count_nonzero(self.mask)))

    @property
    def positions(self) -> np.ndarray:
        """(count,) int64, those that may be returned, ascending."""
        return self.derived("positions", lambda: np.flatnonzero(self.mask))

    def derived(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, from the first time it is asked for; two threads may both make it."""
        if key not in self._derived:
            self._derived[key] = make()
        found: T = self._derived[key]
        return found


def as_allowed(mask: np.ndarray | AllowedRows) -> AllowedRows:
    """A mask with what is derived from it, as long as the same object is passed on."""
    return mask if isinstance(mask, AllowedRows) else AllowedRows(mask)
