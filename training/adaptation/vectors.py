"""The vectors of pairs, as an index holds them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from searchkit.engine import SearchEngine
from searchkit.indexer.vectors import segments
from searchkit.ranking import SearchOptions
from searchkit.records import Query
from searchkit.training.adaptation.linear_map import VectorPairs, most_passages
from searchkit.training.dataset import Example

_HARD = 10  # of the first hits of a query that it is told from, where passages are too many to take all
_BATCH = 256


def vector_pairs(engine: SearchEngine, examples: Sequence[Example], *, seed: int = 0) -> VectorPairs:
    """Pairs as vectors, with the passages that they are told from: all of the index, or a part if those are many.

    Nothing but the queries is embedded, and positives that are not in the index. Where a document has several
    passages, the one nearest to the query is right, and the others are neither right nor wrong.

    Args:
        engine: The index that a `positive_id` refers to.
        examples: As :func:`searchkit.training.adaptation.pairs.sort_pairs` keeps them.
        seed: Draws the part.
    """
    queries = [Query("", example.query, example.instruction) for example in examples]
    vectors = np.concatenate([engine.embed(queries[n : n + _BATCH]) for n in range(0, len(queries), _BATCH)])
    rows = _rows_of(engine, {example.positive_id for example in examples if example.positive_id})
    own = np.unique(np.concatenate([np.empty(0, np.int64), *rows.values()]))
    pool = _pool(engine, own, queries, np.random.default_rng(seed))
    outside = list(dict.fromkeys(example.positive for example in examples if example.positive_id not in rows))
    new = {text: np.array([len(pool) + n]) for n, text in enumerate(outside)}
    passages = engine.vectors_of(pool)
    if outside:
        passages = np.concatenate([passages, engine.embedder.encode_passages(outside)])
    answers = [
        np.searchsorted(pool, rows[example.positive_id]) if example.positive_id in rows else new[example.positive]
        for example in examples
    ]
    right = np.array(
        [own[int((passages[own] @ vector).argmax())] for own, vector in zip(answers, vectors, strict=True)]
    )
    keys = [(example.query, example.instruction) for example in examples]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    groups = np.array([numbers[key] for key in keys])
    together: list[list[np.ndarray]] = [[] for _ in numbers]
    for group, each in zip(groups, answers, strict=True):
        together[group].append(each)
    merged = [np.unique(np.concatenate(each)) for each in together]
    neutral = [merged[group][merged[group] != position] for group, position in zip(groups, right, strict=True)]
    return VectorPairs(vectors, passages, right, neutral, groups)


def _rows_of(engine: SearchEngine, ids: Collection[str]) -> dict[str | None, np.ndarray]:
    """The rows of the passages of some documents, by id."""
    table = engine.store.documents
    rows: dict[str | None, np.ndarray] = {}
    for doc in table.positions_of(sorted(ids)):
        first, document = table.document(doc)
        if document.spans and doc < engine.snapshot.next_doc:
            rows[document.id] = first + np.arange(len(document.spans))
    return rows


def _pool(engine: SearchEngine, own: np.ndarray, queries: Sequence[Query], rng: np.random.Generator) -> np.ndarray:
    """The rows of passages that queries are told from, ascending: all, or else their own, near and random ones."""
    snapshot = engine.snapshot
    most = most_passages(engine.dim)
    if not snapshot.segments:
        return own
    living = np.setdiff1d(segments.all_rows(snapshot.segments), snapshot.dead, assume_unique=True)
    if len(living) <= most:
        return living
    asked = [queries[n] for n in rng.permutation(len(queries))[: 4 * most // _HARD]]
    rankings = engine.rank(asked, k=_HARD, options=replace(SearchOptions(), mode="dense"))
    near = np.array([item.row for ranking in rankings for item in ranking], np.int64)
    chosen = np.union1d(own, near)
    return np.union1d(chosen, rng.choice(living, max(0, most - len(chosen)), replace=False))
