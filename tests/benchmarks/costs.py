"""What some work costs: wall time, CPU time and memory."""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Cost:
    """What some work took: wall and CPU seconds, and the highest memory that was neither file nor shared, in MiB."""

    wall: float = 0.0
    cpu: float = 0.0
    anonymous: float = 0.0

    def rounded(self) -> dict[str, float]:
        return {"wall_s": round(self.wall, 2), "cpu_s": round(self.cpu, 2), "anonymous_mib": round(self.anonymous)}


@contextmanager
def costs() -> Iterator[Cost]:
    """Measure a block; memory is looked at five times a second."""
    cost, done = Cost(), threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            cost.anonymous = max(cost.anonymous, anonymous_mib())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield cost
    finally:
        cost.wall, cost.cpu = time.perf_counter() - wall, time.process_time() - cpu
        cost.anonymous = max(cost.anonymous, anonymous_mib())
        done.set()
        watcher.join()


def anonymous_mib() -> float:
    """Memory of this process that no file backs, now; NaN where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))


def each(work: Callable[[int], Any], count: int, warm: int = 5) -> dict[str, float]:
    """Milliseconds of each of some calls, after a few that do not count."""
    walls, cpus = [], []
    for n in range(-warm, count):
        wall, cpu = time.perf_counter(), time.process_time()
        work(n % count)
        if n >= 0:
            walls.append(1e3 * (time.perf_counter() - wall))
            cpus.append(1e3 * (time.process_time() - cpu))
    found = {f"p{p}_ms": round(float(np.percentile(walls, p)), 2) for p in (50, 99)}
    return {**found, **{f"p{p}_cpu_ms": round(float(np.percentile(cpus, p)), 2) for p in (50, 99)}}
