"""Merging parts: seconds and memory by the number of passages, with vectors of random clouds.

    python tests/benchmarks/merging.py [--passages 25000 200000] [--parts 8] [--dim 384] [--recipe flat pq:48]

"anonymous_mb" is the most memory of the merging process that is not a mapped file, sampled every 20 ms, less what it
had before it began; mapped pages of the parts can be dropped at any time.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from searchkit.compression.training import train_recipe
from searchkit.engine import SearchEngine
from searchkit.records import Document

CLOUDS = 1000


def build(folder: Path, part: int, parts: int, passages: int, dim: int, codebook: Path | None) -> Path:
    """One part of the corpus: every document whose number leaves a remainder."""
    rng = np.random.default_rng(part)
    centres = np.random.default_rng(0).standard_normal((CLOUDS, dim))
    with SearchEngine.create(folder, dim=dim) as engine:
        if codebook:
            engine.store_like(codebook)
        numbers = list(range(part, passages, parts))
        for start in range(0, len(numbers), 8192):
            mine = numbers[start : start + 8192]
            rows = centres[rng.integers(0, CLOUDS, len(mine))] + rng.standard_normal((len(mine), dim))
            documents = [Document(f"{n:09}", f"passage {n} of topic {n % 97}", metadata={"n": n}) for n in mine]
            engine.add(documents, vectors=rows.astype(np.float32))
    return folder


def merge(parts: list[str], target: str) -> dict[str, float]:
    """Merge in this process, and measure it."""
    from searchkit.merging import merge as merge_parts

    before, most, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    report = merge_parts(parts, target)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    return {
        "documents": report.documents,
        "seconds": round(seconds, 1),
        "anonymous_mb": round((most[0] - before) / 1024),
    }


def anonymous() -> int:
    """Kilobytes of this process that are not mapped files."""
    return int(re.findall(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def main() -> None:
    """Print one JSON object: recipe, then passages, then figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, nargs="+", default=[25_000, 200_000])
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--recipe", nargs="+", default=["flat", "ivf-pq:48+rerank"])
    options = parser.parse_args()
    found: dict[str, dict[int, dict[str, float]]] = {}
    for recipe in options.recipe:
        for passages in options.passages:
            with tempfile.TemporaryDirectory() as name:
                root, codebook = Path(name), None
                if recipe != "flat":
                    sample = build(root / "sample.index", 0, 1, min(passages, 20_000), options.dim, None)
                    codebook = root / "codebook"
                    with SearchEngine.open(sample) as engine:
                        train_recipe(engine, recipe, codebook)
                parts = [
                    str(build(root / f"{n}.index", n, options.parts, passages, options.dim, codebook))
                    for n in range(options.parts)
                ]
                command = [sys.executable, __file__, "--merge", json.dumps([parts, str(root / "merged.index")])]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found.setdefault(recipe, {})[passages] = json.loads(done.stdout)
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--merge"]:
        print(json.dumps(merge(*json.loads(sys.argv[2]))))
    else:
        main()
