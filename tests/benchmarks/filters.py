"""Recall with filters against recall without, by recipe: filters at random, by collection and by topic.

    python tests/benchmarks/filters.py scifact.index nfcorpus.index --queries scifact/queries.jsonl

The passages of all indexes, embedded by one model, become one segment in memory. A filter by collection allows passages
that the queries are not about. A value above 1 means a higher recall than without a filter.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from searchkit.compression.sample import InMemory
from searchkit.engine import SearchEngine
from searchkit.indexer.vectors.faiss_index import train
from searchkit.indexer.vectors.faiss_library import faiss_module
from searchkit.indexer.vectors.recipes import default_tuning, plan
from searchkit.indexer.vectors.search import search
from searchkit.readers.judgements import read_queries

K, TOPICS, QUERIES = 10, 20, 100


def vectors_of(folder: Path) -> np.ndarray:
    """(passages, dim) float32."""
    with SearchEngine.open(folder) as engine:
        return np.concatenate([part.vectors(np.arange(part.count)) for part in engine.store.snapshot().segments])


def topics_of(vectors: np.ndarray) -> np.ndarray:
    """(n,) topic of every vector, by k-means."""
    faiss = faiss_module()
    means = faiss.Kmeans(vectors.shape[1], TOPICS, niter=10, spherical=True, seed=1)
    means.train(vectors)
    return np.asarray(means.index.search(vectors, 1)[1][:, 0])


def recall(rows: np.ndarray, similar: np.ndarray, allowed: np.ndarray) -> float:
    """Share of the K best allowed rows among the returned ones."""
    best = np.argsort(np.where(allowed, -similar, np.inf), axis=1, kind="stable")[:, :K]
    return float(np.mean([len({*mine} & {*true}) / K for mine, true in zip(rows, best, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("indexes", nargs="+", type=Path)
    parser.add_argument("--queries", required=True, type=Path)
    parser.add_argument("--recipes", nargs="+", default=["pq:48", "ivf-pq:48", "ivf-int8", "rabitq", "hnsw", "cagra"])
    arguments = parser.parse_args()
    parts = [vectors_of(folder) for folder in arguments.indexes]
    vectors = np.concatenate(parts)
    with SearchEngine.open(arguments.indexes[0]) as engine:
        queries = engine.embed(read_queries(arguments.queries)[:QUERIES])
    similar, count, rng = queries @ vectors.T, len(vectors), np.random.default_rng(0)
    of_part, topics = np.repeat(np.arange(len(parts)), [len(part) for part in parts]), topics_of(vectors)
    filters = {"a half at random": rng.random(count) < 1 / 2, "an eighth at random": rng.random(count) < 1 / 8}
    filters |= {folder.name: of_part == number for number, folder in enumerate(arguments.indexes)}
    filters["five of 20 topics"] = topics < 5
    everything = np.ones(count, dtype=bool)
    for name in arguments.recipes:
        chosen = plan(name, vectors.shape[1], count)
        index = train(chosen, vectors)
        index.add(vectors)
        segment = InMemory(index, np.arange(count), vectors.astype(np.float16))
        tuning = default_tuning(chosen, keep_vectors=True)
        alone = recall(search([segment], queries, K, tuning=tuning)[0], similar, everything)
        line = {"recipe": chosen.spelling, "without": round(alone, 3)}
        for label, allowed in filters.items():
            rows, _ = search([segment], queries, K, tuning=tuning, allowed=allowed)
            line[label] = round(recall(rows, similar, allowed) / alone, 3)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
