"""How fast examples are written, and with how much memory, against a local server with scripted answers.

    python tests/benchmarks/synthesize.py --count 3000 --concurrency 64 --latency 1
    python tests/benchmarks/synthesize.py --count 100000 --concurrency 64 --latency 0 --every 10000

The server runs in its own process. "rate" is examples per second from the first request to the finished file,
"sustained" the rate while requests are being sent, "memory_mib" the writing process's resident memory at intervals.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "helpers"))

from fake_llm import FakeLLM, Reply, written

from searchkit.training.synthesis.synthesize import Progress, SynthesizeConfig, synthesize


def serve(latency: float, pipe: Connection) -> None:
    """Run the server until something comes through the pipe."""

    def answer(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
        return Reply(json.dumps(written(asked)), delay=latency)

    with FakeLLM(answer) as server:
        server.keep_bodies = False
        pipe.send(server.url)
        pipe.recv()
        pipe.send(server.peak)


def resident() -> float:
    """Current resident memory of this process in MiB, not its peak."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes, and the peak only


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency", type=float, default=1.0, help="seconds the server takes to answer")
    parser.add_argument("--every", type=int, default=1000, help="examples between two readings of the memory")
    options = parser.parse_args()
    here, there = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(options.latency, there))
    server.start()
    memory: dict[str, dict[int, float]] = {"asking": {}, "filtering": {}}
    asked: list[tuple[float, int]] = []

    def watch(progress: Progress) -> None:
        if progress.stage == "asking":
            asked.append((time.monotonic(), progress.examples))
        if progress.stage in memory:
            step = progress.examples // options.every * options.every
            memory[progress.stage].setdefault(step, round(resident(), 1))

    with tempfile.TemporaryDirectory() as folder:
        config = SynthesizeConfig(
            out=f"{folder}/pairs.jsonl",
            model="script",
            base_url=here.recv(),
            count=options.count,
            concurrency=options.concurrency,
            check_language=False,  # the scripted words belong to no language
        )
        report = synthesize(config, on_progress=watch)
    here.send("enough")
    peak = here.recv()
    server.join()
    # Without the first and the last tenth, when not all requests are in flight.
    steady = [each for each in asked if options.count * 0.1 <= each[1] <= options.count * 0.9]
    sustained = (steady[-1][1] - steady[0][1]) / (steady[-1][0] - steady[0][0]) if len(steady) > 1 else None
    print(
        json.dumps(
            {
                "examples": report.examples,
                "seconds": round(report.seconds, 1),
                "rate": round(report.examples / report.seconds, 1),
                "sustained": None if sustained is None else round(sustained, 1),
                "processor_seconds": round(time.process_time(), 1),
                "questions_at_once": peak,
                "memory_mib": memory,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
