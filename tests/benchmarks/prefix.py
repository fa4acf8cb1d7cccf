"""Queries per second with their instruction computed once for a batch, and with every query: is it worth it, and equal?

    python tests/benchmarks/prefix.py MODEL [--queries 256] [--instruction TEXT] [--threads 1]
    python tests/benchmarks/prefix.py --shape-7b      # random weights in Mistral-7B's shape, on a GPU of 24 GiB
    python tests/benchmarks/prefix.py --tiny          # the same on the CPU, in seconds

Queries are those of `corpora/intents`, or random words for random weights. Times are CPU time on a CPU, so that a busy
machine slows both alike, and wall time on a GPU; the ways take turns, and the fastest round counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from train_7b import SHAPE, TINY, build, now, random_texts

from searchkit.models.conventions import Conventions
from searchkit.models.embedder import Embedder
from searchkit.models.torch_runtime import beginning
from searchkit.readers.corpus import corpus_folder
from searchkit.readers.judgements import read_queries
from searchkit.tasks import get_task

LAST = Conventions(pooling="last", append_eos=True)


def measure(embedder: Embedder, queries: list[str], instruction: str, rounds: int) -> dict[str, Any]:
    """Both ways, for one query, some and all of them."""
    runtime: Any = embedder.runtime
    on_cpu = runtime.device.type == "cpu"
    clock = time.process_time if on_cpu else lambda: now(runtime.device)
    found: dict[str, Any] = {}
    for count in sorted({8, 32, len(queries)}):
        tokens = embedder.tokenize_queries(queries[:count], [instruction] * count)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        rows = {}
        for _ in range(rounds):
            for runtime.share_beginnings in (True, False):
                began = clock()
                rows[runtime.share_beginnings] = embedder.encode_tokens(tokens)
                seconds[runtime.share_beginnings].append(clock() - began)
        rates = {shared: count / min(taken) for shared, taken in seconds.items()}
        found[f"{count} queries"] = {
            "tokens each": round(sum(map(len, tokens)) / count, 1),
            "shared": beginning(tokens),
            "queries a second, shared": round(rates[True], 2),
            "queries a second, apart": round(rates[False], 2),
            "ratio": round(rates[True] / rates[False], 2),
            "least cosine": round(float((rows[True] * rows[False]).sum(1).min()), 6),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder of a decoder")
    parser.add_argument("--shape-7b", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--instruction", default=get_task("nfcorpus").instruction)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if not (arguments.model or arguments.shape_7b or arguments.tiny):
        parser.error("name a model, or give --shape-7b or --tiny")
    if arguments.model:
        embedder = Embedder(arguments.model, conventions=LAST, threads=arguments.threads)
        texts = [query.text for query in read_queries(corpus_folder("intents") / "queries.jsonl")][: arguments.queries]
        found = measure(embedder, texts, arguments.instruction, arguments.rounds)
    else:
        import torch

        device, shape = ("cpu", TINY) if arguments.tiny else ("cuda", SHAPE)
        if device == "cuda" and not torch.cuda.is_available():
            print("nothing measured: --shape-7b needs a GPU, and there is none here")
            return
        with tempfile.TemporaryDirectory() as place:
            build(Path(place), shape, device)
            embedder = Embedder(place, device=device, dtype="bfloat16", conventions=LAST)
        size = shape["vocab_size"]
        texts = random_texts(32 if arguments.tiny else arguments.queries, 17, size, 0)
        found = measure(embedder, texts, random_texts(1, 25, size, 1)[0], arguments.rounds)
    print(json.dumps({"model": arguments.model or "random", "dtype": embedder.dtype, **found}, indent=1))


if __name__ == "__main__":
    main()
