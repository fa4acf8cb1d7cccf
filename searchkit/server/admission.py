"""Who may wait: work is counted while it waits, and refused with the time after which there is room again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from searchkit.server.errors import overloaded


class Admission:
    """A limit on the work that waits, in any unit.

    A request is admitted while less than the limit waits, however large it is, so that a large one is not refused
    forever and a small one is not refused where a large one was taken.

    Args:
        unit: What is counted, for messages: "tokens".
        limit: How much may wait.
        longest_wait: Seconds that the last in the queue may have to wait, by the measured rate.
        on_change: Called with the amount that waits.
    """

    def __init__(self, unit: str, limit: int, longest_wait: float, on_change: Callable[[int], None]) -> None:
        self._unit, self._limit, self._longest_wait, self._on_change = unit, limit, longest_wait, on_change
        self._lock = Lock()
        self._waiting = 0
        self._rate: float | None = None  # units a second; unknown until something was done

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
        with self._lock:
            if self._waiting and (self._waiting >= self._limit or self.wait() > self._longest_wait):
                excess = max(self._waiting - self._limit // 2, self._waiting // 4, 1)
                raise overloaded(
                    excess / (self._rate or excess),
                    f"{self._waiting} {self._unit} wait already; retry after the time in Retry-After",
                )
            self._waiting += amount
            self._on_change(self._waiting)
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= amount
                self._on_change(self._waiting)

    def wait(self) -> float:
        """Seconds until what waits now will be done; 0 while the rate is unknown."""
        return self._waiting / self._rate if self._rate else 0.0

    def note_rate(self, rate: float) -> None:
        """Take a measured rate, in units a second, into the running mean."""
        self._rate = rate if self._rate is None else 0.9 * self._rate + 0.1 * rate
