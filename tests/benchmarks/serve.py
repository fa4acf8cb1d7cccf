"""What does HTTP cost? Embeddings and searches a second through the service, and in process.

    python tests/benchmarks/serve.py [--seconds 5]

Runs on `corpora/intents` with the built-in model, over a real socket, with the service in another process. Every
search has a query of its own, so that no vector comes out of the cache, and no instruction.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import httpx

from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.readers.corpus import corpus_folder, read_corpus

CALLERS = 8


@contextmanager
def service(index: Path) -> Iterator[str]:
    """A service in another process; yields its address."""
    command = [sys.executable, "-m", "searchkit.cli.main", "serve", str(index), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        rows = map(json.loads, process.stderr)
        address = next(row["address"] for row in rows if row["message"] == "listening")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(process.stderr.read)  # or its log would fill the pipe
            yield address
            process.terminate()


def rate(call: Callable[[int], int], seconds: float, callers: int) -> float:
    """Units a second, of what a call with a running number returns, by several threads."""
    numbers, end, began = count(), time.monotonic() + seconds, time.monotonic()

    def repeat(_: int) -> int:
        done = 0
        while time.monotonic() < end:
            done += call(next(numbers))
        return done

    with ThreadPoolExecutor(callers) as pool:
        total = sum(pool.map(repeat, range(callers)))
    return total / (time.monotonic() - began)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    seconds = parser.parse_args().seconds
    corpus = list(read_corpus(corpus_folder("intents")))
    texts = [document.text for document in corpus][:256]
    with tempfile.TemporaryDirectory() as work:
        index = Path(work) / "intents.index"
        with SearchEngine.create(index, chunk_tokens=0) as engine:
            engine.add(corpus)
        embedder = Embedder("builtin")
        with SearchEngine.open(index) as engine, service(index) as address:
            limits = httpx.Limits(max_keepalive_connections=CALLERS)
            with httpx.Client(base_url=address, limits=limits, timeout=60) as client:

                def query(number: int) -> str:
                    return f"{texts[number % 256][:60]} {number}"

                def embed(_: int) -> int:
                    return len(embedder.encode_passages(texts))

                def embed_served(_: int) -> int:
                    client.post("/v1/embeddings", json={"input": texts, "encoding_format": "base64"}).raise_for_status()
                    return len(texts)

                def search(number: int) -> int:
                    return min(1, len(engine.search(query(number))))

                def search_served(number: int) -> int:
                    body = {"query": query(number)}
                    client.post("/indexes/intents/search", json=body).raise_for_status()
                    return 1

                rows = [
                    ("texts embedded, 1 caller", embed, embed_served, 1),
                    ("searches, 1 caller", search, search_served, 1),
                    (f"searches, {CALLERS} callers", search, search_served, CALLERS),
                ]
                print("| a second | in process | served | ratio |\n|---|---|---|---|")
                for name, here, there, callers in rows:
                    halves = [(rate(here, seconds / 2, callers), rate(there, seconds / 2, callers)) for _ in range(2)]
                    local, served = (sum(half[side] for half in halves) / 2 for side in (0, 1))
                    print(f"| {name} | {local:.0f} | {served:.0f} | {served / local:.2f} |", flush=True)


if __name__ == "__main__":
    main()
