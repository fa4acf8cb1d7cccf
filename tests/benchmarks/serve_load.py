"""Does the service keep its promises under more load than it can take? Needs `hey` (Debian: apt install hey) and Linux.

    python tests/benchmarks/serve_load.py [--seconds 60] [--connections 256] [--deadline 30]

Starts `searchkit serve` on `corpora/intents` in another process. Half of the connections search, the other half embed a
passage, each asking again as soon as it has an answer, so that many are refused. Then the same for a few seconds, with
SIGTERM in the middle. Prints what was measured as JSON, and what of it is not as it should be; exit 1 if anything is.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from searchkit.engine import SearchEngine
from searchkit.readers.corpus import corpus_folder, read_corpus

SEARCH, EMBED = "/indexes/{name}/search", "/v1/embeddings"
TEXT = (
    "Few who lie down after a meal keep the nap as short as they meant to, and waking leaves them duller than before."
)


@dataclass
class Service:
    """A service in another process, with what it logged of its requests."""

    process: subprocess.Popen[str]
    address: str = ""
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)
    """(route, status) of the requests in its log."""

    def resident(self) -> int:
        """Bytes of memory it holds."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0

    def counted(self) -> Counter[tuple[str, int]]:
        """(route, status) of the requests in its metrics."""
        pattern = r'searchkit_requests_total\{method="\w+",route="([^"]*)",status="(\d+)"\} (\S+)'
        rows = re.findall(pattern, httpx.get(f"{self.address}/metrics", timeout=60).text)
        return Counter({(route, int(status)): int(float(count)) for route, status, count in rows})

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for row in map(json.loads, self.process.stderr):
            if row["message"] == "listening":
                self.address = row["address"]
            elif row["message"] == "request":
                self.answered[row["route"], row["status"]] += 1


@contextmanager
def service(index: Path, deadline: float) -> Iterator[Service]:
    """Starts one, and ends it unless it has ended."""
    command = [
        sys.executable,
        "-m",
        "searchkit.cli.main",
        "serve",
        str(index),
        "--port",
        "0",
        "--deadline",
        str(deadline),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        started = Service(process)
        reader = threading.Thread(target=started._read_log)
        reader.start()
        while not started.address and process.poll() is None:
            time.sleep(0.05)
        try:
            yield started
        finally:
            process.terminate()
            reader.join()


@dataclass
class Load:
    """What hey saw: (status, seconds) of every answer, as far as one came."""

    answers: list[tuple[int, float]]

    def seconds(self, status: int) -> list[float]:
        return [seconds for each, seconds in self.answers if each == status]

    def statuses(self) -> Counter[int]:
        return Counter(status for status, _ in self.answers)


def hey(seconds: float, connections: int, *request: str) -> Load:
    """Load one address; a connection sends its next request when it has the last one's answer."""
    command = ["hey", "-z", f"{seconds}s", "-c", str(connections), "-t", "0", "-o", "csv", *request]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = csv.DictReader(done.stdout.splitlines())
    answers = [(int(row["status-code"]), float(row["response-time"])) for row in rows]
    return Load(answers)


def loads(address: str, seconds: float, connections: int) -> dict[str, Load]:
    """Searches and embeddings at the same time, by route."""
    body = json.dumps({"input": TEXT, "encoding_format": "base64"})
    with ThreadPoolExecutor(2) as pool:
        searches = pool.submit(
            hey, seconds, connections // 2, f"{address}/indexes/intents/search?query=does+a+nap+help"
        )
        embeddings = pool.submit(
            hey, seconds, connections // 2, "-m", "POST", "-T", "application/json", "-d", body, f"{address}{EMBED}"
        )
        return {SEARCH: searches.result(), EMBED: embeddings.result()}


def sustained(index: Path, seconds: float, connections: int, deadline: float) -> tuple[dict[str, Any], list[str]]:
    """Minutes of too much: statuses, times, memory and counters."""
    faults = []
    with service(index, deadline) as served, ThreadPoolExecutor(1) as pool:
        running = pool.submit(loads, served.address, seconds, connections)
        memory = []
        while not running.done():
            memory.append(served.resident())
            time.sleep(0.5)
        found, counted = running.result(), served.counted()
    report: dict[str, Any] = {}
    for route, load in found.items():
        times, statuses = load.seconds(200), load.statuses()
        p50, p99 = (float(np.quantile(times, q)) for q in (0.5, 0.99)) if times else (0.0, 0.0)
        report[route] = {
            "statuses": dict(statuses),
            "admitted_per_second": round(len(times) / seconds, 1),
            "refused_per_second": round(statuses[429] / seconds, 1),
            "admitted_p50": round(p50, 3),
            "admitted_p99": round(p99, 3),
            "refused_p99": round(float(np.quantile(load.seconds(429) or [0.0], 0.99)), 3),
        }
        if set(statuses) - {200, 429} or not times:
            faults.append(f"{route}: other answers than 200 and 429: {dict(statuses)}")
        if p99 >= deadline:
            faults.append(f"{route}: the p99 of admitted requests, {p99:.1f} s, is past the deadline")
        for status in {*statuses, *(status for of, status in counted if of == route)}:
            if counted[route, status] != statuses[status]:
                faults.append(
                    f"{route}: {statuses[status]} answers of {status}, but /metrics counts {counted[route, status]}"
                )
    half = len(memory) // 2
    early, late = max(memory[half // 2 : half], default=0), max(memory[half:], default=0)
    report["resident_mb"] = {"second_quarter": early >> 20, "second_half": late >> 20}
    if late > 1.1 * early:
        faults.append(f"memory grows from {early >> 20} to {late >> 20} MB")
    return report, faults


def stopped(index: Path, connections: int, deadline: float) -> tuple[dict[str, Any], list[str]]:
    """SIGTERM under load: every request that the service took is answered, to the client too."""
    with service(index, deadline) as served, ThreadPoolExecutor(1) as pool:
        running = pool.submit(loads, served.address, 6, connections)
        time.sleep(2)
        served.process.terminate()
        code = served.process.wait(deadline + 10)
        found = running.result()
    faults = [] if code == 0 else [f"exit code {code} after SIGTERM"]
    report: dict[str, Any] = {"exit_code": code}
    for route, load in found.items():
        report[route] = {"statuses": dict(load.statuses())}
        for status in {*load.statuses(), *(status for of, status in served.answered if of == route)}:
            if load.statuses()[status] != served.answered[route, status]:
                faults.append(
                    f"{route}: {load.statuses()[status]} answers of {status} came, the service sent "
                    f"{served.answered[route, status]}"
                )
    return report, faults


def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--deadline", type=float, default=30.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        index = Path(work) / "intents.index"
        with SearchEngine.create(index, chunk_tokens=0) as engine:
            engine.add(read_corpus(corpus_folder("intents")))
        report, faults = sustained(index, arguments.seconds, arguments.connections, arguments.deadline)
        ending, more = stopped(index, arguments.connections, arguments.deadline)
    print(json.dumps({"sustained": report, "stopped": ending, "faults": faults + more}, indent=2))
    sys.exit(1 if faults + more else 0)


if __name__ == "__main__":
    main()
