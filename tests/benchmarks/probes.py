"""Recall of IVF lists by how many are visited and how many candidates are scored again, as an index grows.

    python tests/benchmarks/probes.py --passages 50000 200000 1000000 [--recipe ivf-pq:48] [--folder scale/]
    python tests/benchmarks/probes.py --passages 2500 5000 10000 --indexes scifact.index nfcorpus.index

Vectors are those of `passages.py`: the embeddings of `corpora/`, repeated with noise. With --indexes they are those of
indexes, in random order, and queries are phrases of held-out passages. "recall" is the share of the 10 nearest, found
by comparing every vector; "ms" is CPU time of one query, re-ranking by half-precision vectors included.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from passages import BLOCK, NOISE, seeds
from passages import queries as drawn_queries

from searchkit.compression.sample import InMemory, draw
from searchkit.engine import SearchEngine
from searchkit.indexer.vectors.arrays import halved
from searchkit.indexer.vectors.faiss_index import train
from searchkit.indexer.vectors.faiss_library import faiss_module
from searchkit.indexer.vectors.recipes import Plan, Tuning, plan
from searchkit.indexer.vectors.search import search

K = 10
PROBES = (1, 2, 4, 8)
"""Lists that are visited, in square roots of all."""
RERANK = (10, 20)

Batches = Callable[[], Iterator[np.ndarray]]


def repeated(vectors: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """(n, dim) float32 unit rows near others, the same in every call."""
    length = np.float32(NOISE / vectors.shape[1] ** 0.5)
    for first in range(0, count, BLOCK):
        rng = np.random.default_rng([4, first])
        size = min(BLOCK, count - first)
        rows = length * rng.standard_normal((size, vectors.shape[1]), dtype=np.float32)
        rows += vectors[rng.integers(len(vectors), size=size)]
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True)


def stored(folders: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """(n, dim) vectors of some indexes in random order, and (q, dim) queries, all float32."""
    rng = np.random.default_rng(6)
    samples = []
    for folder in folders:
        with SearchEngine.open(folder) as engine:
            samples.append(draw(engine, None, len(engine), rng))
    vectors = np.concatenate([sample.vectors for sample in samples])
    return rng.permutation(vectors), np.concatenate([sample.queries for sample in samples])


def built(chosen: Plan, batches: Batches, count: int, queries: np.ndarray) -> tuple[InMemory, np.ndarray]:
    """A segment of so many vectors, and (q, K) int64, the nearest of every query."""
    taken = np.random.default_rng(0).random(count) < chosen.wanted / count
    sample, first = [], 0
    for rows in batches():
        sample.append(rows[taken[first : first + len(rows)]])
        first += len(rows)
    index, halves, first = train(chosen, np.concatenate(sample)), np.empty((count, chosen.dim), "<f2"), 0
    scores, nearest = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for rows in batches():
        index.add(rows)
        halves[first : first + len(rows)] = halved(rows)
        numbers = np.broadcast_to(np.arange(first, first + len(rows)), (len(queries), len(rows)))
        scores, nearest = np.hstack([scores, queries @ rows.T]), np.hstack([nearest, numbers])
        best = np.argpartition(-scores, K - 1, axis=1)[:, :K]
        scores, nearest = np.take_along_axis(scores, best, 1), np.take_along_axis(nearest, best, 1)
        first += len(rows)
    return InMemory(index, np.arange(count), halves), nearest


def measured(segment: InMemory, queries: np.ndarray, nearest: np.ndarray) -> Iterator[str]:
    """Rows of the table: probes, rerank, recall and milliseconds."""
    lists = segment.plan.lists
    for times in PROBES:
        for rerank in RERANK:
            tuning = Tuning(probes=min(lists, round(times * lists**0.5)), rerank=rerank)
            search([segment], queries[:5], K, tuning=tuning)
            began = time.process_time()
            found = [search([segment], query[None], K, tuning=tuning)[0][0] for query in queries]
            taken = (time.process_time() - began) / len(queries)
            recall = np.mean([len(set(mine) & set(true)) / K for mine, true in zip(found, nearest, strict=True)])
            yield f"{lists} | {tuning.probes} ({times}) | {rerank} | {recall:.3f} | {1e3 * taken:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--recipe", default="ivf-pq:48")
    parser.add_argument("--indexes", type=Path, nargs="+", help="take their vectors")
    parser.add_argument("--folder", type=Path, default=Path("scale"), help="of scale.py [default: scale]")
    arguments = parser.parse_args()
    faiss_module().omp_set_num_threads(1)
    if arguments.indexes:
        vectors, queries = stored(arguments.indexes)
    else:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        source = seeds(arguments.folder)
        vectors, (_, queries) = source.vectors, drawn_queries(source)
    print("| passages | lists | probes (in square roots) | rerank | recall@10 | ms |\n|" + "---|" * 6, flush=True)
    for count in arguments.passages:
        if arguments.indexes and count > len(vectors):
            parser.error(f"--passages is {count}, and the indexes hold {len(vectors)} besides what queries are made of")
        batches = partial(_one, vectors[:count]) if arguments.indexes else partial(repeated, vectors, count)
        segment, nearest = built(plan(arguments.recipe, vectors.shape[1], count), batches, count, queries)
        for line in measured(segment, queries, nearest):
            print(f"| {count:,} | {line} |", flush=True)


def _one(vectors: np.ndarray) -> Iterator[np.ndarray]:
    yield vectors


if __name__ == "__main__":
    main()
