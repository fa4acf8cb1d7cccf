"""Threads for what must not run on the event loop: searching, reading documents, writing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TypeVar

from searchkit.server.admission import Admission

T = TypeVar("T")


class WorkPool:
    """A few threads, and the count of what waits for them.

    Args:
        threads: How many calls run at the same time.
        admission: Counts the calls that wait; learns how many are done a second.
    """

    def __init__(self, threads: int, admission: Admission) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="search")
        self.admission = admission

    async def run(self, call: Callable[[], T], amount: int = 1) -> T:
        """The result of a call, made in a thread; what it raises is raised here. `amount` is what it gets done."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._timed, call, amount)

    def _timed(self, call: Callable[[], T], amount: int) -> T:
        began = perf_counter()
        try:
            return call()
        finally:
            self.admission.note_rate(self._threads * amount / max(perf_counter() - began, 1e-6))

    def close(self) -> None:
        """Finish what runs, and drop what waits."""
        self._pool.shutdown(cancel_futures=True)
