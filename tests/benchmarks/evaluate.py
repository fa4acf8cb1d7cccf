"""How much time of an evaluation is neither embedding nor search: ids, runs, metrics.

    python tests/benchmarks/evaluate.py [--passages 50000] [--queries 5000] [--modes dense lexical hybrid]

The index holds texts from a Zipf vocabulary with vectors drawn around centres. Queries are the first words of passages,
embedded by the built-in model. One thread; CPU time, which other work on the machine hardly affects.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from search import batches, texts

from searchkit.engine import SearchEngine
from searchkit.evaluation.evaluate import evaluate
from searchkit.folder_ranker import FolderRanker
from searchkit.indexer.vectors.faiss_library import faiss_module
from searchkit.models.embedder import Embedder
from searchkit.records import Document, Judgements, Query

WORDS = 6
"""Words of a query; about 18 tokens."""


def build(folder: Path, count: int, model: Embedder) -> list[str]:
    """Build an index of so many passages, none of which is embedded; returns their texts."""
    rows = (row for _, some in batches(count, model.dim) for row in some)
    written = texts(count, (20, 60), 1)
    encode = model.encode_passages
    model.encode_passages = lambda texts, on_batch=None: np.stack(list(islice(rows, len(texts))))  # type: ignore[method-assign]
    try:
        with SearchEngine.create(folder, model=model, chunk_tokens=0) as engine:
            engine.add(Document(f"doc-{n}", text) for n, text in enumerate(written))
    finally:
        model.encode_passages = encode  # type: ignore[method-assign]
    return written


def timed(function: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    """The function, adding up the CPU time that it takes."""

    def call(*arguments: Any, **options: Any) -> Any:
        began = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            spent[name] += time.process_time() - began

    return call


def measure(folder: Path, passages: int, queries: int, modes: list[str]) -> Iterator[dict[str, Any]]:
    model = Embedder(threads=1)
    written = build(folder, passages, model)
    searched = [Query(f"q{n}", " ".join(text.split()[:WORDS])) for n, text in enumerate(written[:queries])]
    rng = np.random.default_rng(0)
    qrels = {
        query.id: {f"doc-{n}": 1, **{f"doc-{other}": 1 for other in rng.integers(0, passages, 2)}}
        for n, query in enumerate(searched)
    }
    rank = FolderRanker.rank
    for mode in modes:
        spent = {"embedding": 0.0, "search": 0.0}
        with SearchEngine.open(folder, model=model) as engine:
            evaluate(engine, Judgements("", searched[:1], qrels), modes=[mode])  # reads and checks the files
            encode = model.encode_queries
            model.encode_queries = timed(encode, spent, "embedding")  # type: ignore[method-assign]
            FolderRanker.rank = timed(rank, spent, "search")  # type: ignore[method-assign]
            began = time.process_time()
            evaluate(engine, Judgements("", searched, qrels), modes=[mode])
            whole = time.process_time() - began
            model.encode_queries, FolderRanker.rank = encode, rank  # type: ignore[method-assign]
        rest = whole - sum(spent.values())
        seconds = {name: round(value, 2) for name, value in {**spent, "rest": rest, "whole": whole}.items()}
        yield {"mode": mode, **seconds, "share of the rest": round(rest / whole, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=5_000)
    parser.add_argument("--modes", nargs="+", default=["dense", "lexical", "hybrid"])
    arguments = parser.parse_args()
    faiss_module().omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(Path(folder) / "index", arguments.passages, arguments.queries, arguments.modes))
    whole, rest = (sum(row[name] for row in rows) for name in ("whole", "rest"))
    sizes = {"passages": arguments.passages, "queries": arguments.queries, "modes": rows}
    print(json.dumps({**sizes, "share of the rest": round(rest / whole, 3)}, indent=1))


if __name__ == "__main__":
    main()
