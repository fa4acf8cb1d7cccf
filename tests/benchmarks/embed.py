"""Embedding speed against sentence-transformers on the same weights and texts, and peak memory of indexing.

    python tests/benchmarks/embed.py --corpus scifact/ [--texts 1000] [--memory]

Both sides take turns on the same texts in one process, so that a busy machine slows both alike; ratios are what counts.
Memory is the peak resident size of a fresh process that indexes so many documents made from the corpus.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from searchkit.models.embedder import Embedder
from searchkit.readers.corpus import read_corpus
from searchkit.records import Document, join_title


def speed(model: str, texts: list[str], rounds: int) -> dict[str, Any]:
    """Tokens a second of both, and how far their vectors lie apart."""
    import torch
    from sentence_transformers import SentenceTransformer

    ours = Embedder(model, device="cpu", dtype="float32")
    half = Embedder(model, device="cpu", dtype="bfloat16")
    peer = SentenceTransformer(str(ours.folder), device="cpu")
    peer.max_seq_length = ours.max_length
    ours.encode_passages(texts)  # warms up, and counts
    tokens = ours.stats.tokens
    sides: dict[str, Callable[[], Any]] = {
        "searchkit float32": lambda: ours.encode_passages(texts),
        "sentence-transformers float32": lambda: peer.encode(texts, show_progress_bar=False),
        "searchkit bfloat16": lambda: half.encode_passages(texts),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    rows = {}
    for _ in range(rounds):
        for name, encode in sides.items():
            began = time.perf_counter()
            rows[name] = np.asarray(encode())
            seconds[name].append(time.perf_counter() - began)
    oracle = rows["sentence-transformers float32"]
    peers = seconds["sentence-transformers float32"]
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return {
        "texts": len(texts),
        "tokens": tokens,
        "native bfloat16": bool(native),
        "tokens_per_second": {name: round(tokens / median(taken)) for name, taken in seconds.items()},
        # Ratio pair by pair: a machine that slows down does so for both of a pair.
        "speed_over_sentence_transformers": {
            name: round(median(p / t for p, t in zip(peers, taken, strict=True)), 3)
            for name, taken in seconds.items()
            if name.startswith("searchkit")
        },
        "max_abs_difference_float32": float(np.abs(rows["searchkit float32"] - oracle).max()),
        "least_cosine_bfloat16": float((rows["searchkit bfloat16"] * oracle).sum(1).min()),
    }


def peak_memory(corpus: Path, model: str, count: int) -> float:
    """Peak MiB of a fresh process that indexes `count` documents."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--corpus", str(corpus), "--model", model, "--child", str(count), folder]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child(corpus: Path, model: str, count: int, folder: Path) -> None:
    """Index `count` short documents cut from the corpus, each with an id of its own, and print the peak in MiB."""
    from searchkit.engine import SearchEngine

    def many() -> Iterator[Document]:
        texts = (document.text[:60] for document in cycle_corpus(corpus))
        for number, text in enumerate(islice(texts, count)):
            yield Document(str(number), f"{text} {number}")

    with SearchEngine.create(folder / "index", model=Embedder(model, device="cpu")) as engine:
        engine.add(many())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def cycle_corpus(corpus: Path) -> Iterator[Document]:
    """The corpus again and again."""
    for _ in cycle([0]):
        yield from read_corpus(corpus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="any corpus that searchkit index reads")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="measure memory for 10k and 100k documents instead")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        count, folder = arguments.child
        child(arguments.corpus, arguments.model, int(count), Path(folder))
    elif arguments.memory:
        peaks = {count: peak_memory(arguments.corpus, arguments.model, count) for count in (10_000, 100_000)}
        print(json.dumps({"peak_mib": peaks, "ratio": round(peaks[100_000] / peaks[10_000], 3)}))
    else:
        documents = islice(read_corpus(arguments.corpus), arguments.texts)
        texts = [join_title(document.title, document.text) for document in documents]
        print(json.dumps(speed(arguments.model, texts, arguments.rounds), indent=1))


if __name__ == "__main__":
    main()
