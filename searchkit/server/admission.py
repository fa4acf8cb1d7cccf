"""Who may wait: work is counted while it waits, and refused with the time after which there is room again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from time import perf_counter

from searchkit.server.errors import overloaded

_FIRST = 8
"""Answers before their times count: the first ones load files and warm caches."""
_FEW = 8
"""Requests that may wait as long as a large one."""


class Admission:
    """A limit on the work that waits, in any unit, and on the time for which it has to wait.

    A request that finds nothing ahead of it is admitted however large it is, so that a large one is not refused
    forever. A large one counts as one turn for those smaller than a turn, because they do not wait for all of it, so
    that a small one is not refused where a large one was taken.

    Args:
        unit: What is counted, for messages: "tokens".
        limit: How much may wait.
        longest_wait: Seconds that the work ahead of a request may take, by the measured times of the last ones.
        on_change: Called with the amount that waits.
        turn: How much of a request is done before the next request gets its turn; infinite where each is done whole.
        longest_patience: As `longest_wait`, for requests of more than a turn, and while few requests wait, so that a
            slow model still serves a few callers; None for the same.
    """

    def __init__(
        self,
        unit: str,
        limit: int,
        longest_wait: float,
        on_change: Callable[[int], None],
        *,
        turn: float = math.inf,
        longest_patience: float | None = None,
    ) -> None:
        self._unit, self._limit, self._turn, self._on_change = unit, limit, turn, on_change
        self._longest_wait, self._longest_patience = longest_wait, longest_patience or longest_wait
        self._lock = Lock()
        self._admitted: dict[object, int] = {}
        self._waiting = 0
        self._pace = 0.0  # seconds a unit, a running mean
        self._measured = 0

    @property
    def waiting(self) -> int:
        """How much has been admitted and is not done."""
        return self._waiting

    @contextmanager
    def admitted(self, amount: int) -> Iterator[None]:
        """Count work as waiting until the block ends.

        Raises:
            ServerError: Too much waits already (429).
        """
        request = object()
        with self._lock:
            ahead = self._ahead(amount)
            self._check(ahead, amount)
            self._admitted[request] = amount
            self._waiting += amount
            self._on_change(self._waiting)
        began = perf_counter()
        try:
            yield
            self._note(perf_counter() - began, ahead + amount)
        finally:
            with self._lock:
                del self._admitted[request]
                self._waiting -= amount
                self._on_change(self._waiting)

    def _ahead(self, amount: int) -> int:
        """The work that is done before a request of that amount is."""
        return sum(int(min(each, max(amount, self._turn))) for each in self._admitted.values())

    def _check(self, ahead: int, amount: int) -> None:
        patient = amount > self._turn or len(self._admitted) < _FEW
        longest = self._longest_patience if patient else self._longest_wait
        room = self._limit
        if self._measured >= _FIRST:
            room = min(room, max(1, int(longest / self._pace)))
        if ahead >= room:
            excess = max(ahead - room // 2, ahead // 4, 1)
            raise overloaded(
                excess * self._pace if self._measured else 1.0,
                f"{ahead} {self._unit} wait already; retry after the time in Retry-After",
            )

    def _note(self, seconds: float, work: int) -> None:
        """Learn from an answer: so long it took, with so much ahead of it and in it."""
        pace = max(seconds, 1e-6) / work
        with self._lock:
            self._measured += 1
            self._pace = pace if self._measured <= _FIRST else 0.9 * self._pace + 0.1 * pace
