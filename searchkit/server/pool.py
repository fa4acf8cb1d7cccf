"""Threads for what must not run on the event loop: searching, reading documents, writing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from searchkit.server.admission import Admission

T = TypeVar("T")


class WorkPool:
    """A few threads, and the count of what waits for them.

    Args:
        threads: How many calls run at the same time.
        admission: Counts the calls that wait.
    """

    def __init__(self, threads: int, admission: Admission) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="search")
        self.admission = admission

    async def run(self, call: Callable[[], T]) -> T:
        """The result of a call, made in a thread; what it raises is raised here."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def close(self) -> None:
        """Finish what runs, and drop what waits."""
        self._pool.shutdown(cancel_futures=True)
