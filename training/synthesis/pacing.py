"""How fast requests are sent: what may be spent, how many may be in flight, and when to wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from searchkit.errors import InputError
from searchkit.training.synthesis.journal import Journal


@dataclass
class Budget:
    """What may be spent, including what earlier runs of the same output spent.

    No request is sent unless its longest possible answer fits, so the limits hold whatever the model answers.

    Args:
        max_tokens: Token limit for requests and answers together.
        max_cost: Cost limit, in the currency of the prices.
        price_in: Price per million input tokens.
        price_out: Price per million output tokens.
    """

    max_tokens: int | None = None
    max_cost: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    _flying: list[int] = field(default_factory=lambda: [0, 0], init=False, repr=False)

    def __post_init__(self) -> None:
        if self.max_cost is not None and not (self.price_in > 0 or self.price_out > 0):
            raise InputError("max_cost needs prices; give price_in and price_out per million tokens too")

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """The cost of these tokens."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    def reserve(self, journal: Journal, tokens_in: int, tokens_out: int) -> bool:
        """Set aside the most that one request can take; False if it does not fit now."""
        whole_in = journal.tokens_in + self._flying[0] + tokens_in
        whole_out = journal.tokens_out + self._flying[1] + tokens_out
        if self.max_tokens is not None and whole_in + whole_out > self.max_tokens:
            return False
        if self.max_cost is not None and self.cost(whole_in, whole_out) > self.max_cost:
            return False
        self.release(-tokens_in, -tokens_out)
        return True

    def release(self, tokens_in: int, tokens_out: int) -> None:
        """Return what was set aside."""
        self._flying[0] -= tokens_in
        self._flying[1] -= tokens_out


class Gate:
    """Limits the requests in flight.

    The first is sent alone, and each answer adds one, until answers take so long that a server is working them off one
    after the other: more would only wait there until they time out. After each "too many requests" or timeout the limit
    is halved, then slowly raised again.

    Args:
        most: Highest limit.
        pause: Sleeps, and returns early when the run is being stopped.
        patience: Seconds of an answer beyond which the limit is not raised.
    """

    def __init__(self, most: int, pause: Callable[[float], Awaitable[None]], patience: float = float("inf")) -> None:
        self._most, self._limit = most, 1.0
        self._patience, self._step = patience, 1.0
        self._pause = pause
        self._inside = 0
        self._until = 0.0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        async with self._changed:
            while True:
                pause = self._until - time.monotonic()
                if pause <= 0 and self._inside < max(1, int(self._limit)):
                    break
                if pause <= 0:
                    await self._changed.wait()
                    continue
                self._changed.release()
                try:
                    await self._pause(pause)
                finally:
                    await self._changed.acquire()
            self._inside += 1
        try:
            yield
        finally:
            async with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def open(self) -> None:
        """End the current pause."""
        self._until = 0.0

    def slow_down(self, seconds: float) -> None:
        """Send nothing for some seconds, and halve the limit."""
        now = time.monotonic()
        if now >= self._until:  # requests that were rejected together count once
            self._limit, self._step = max(1.0, self._limit / 2), 0.5
        self._until = max(self._until, now + seconds)

    def speed_up(self, seconds: float) -> None:
        """Raise the limit a little, after an answer that took so many seconds."""
        if seconds < self._patience:
            self._limit = min(float(self._most), self._limit + self._step)
