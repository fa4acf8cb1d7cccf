"""What `searchkit compress` measures by: some of the vectors, and queries, or phrases that stand in for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.indexer.vectors import faiss_index as dense
from searchkit.indexer.vectors import segments
from searchkit.records import Qrels, Query

QUERIES = 1000
"""Queries that are asked at most."""

_HELD_OUT = 200
_PHRASE = (1, 12)
"""Words of a phrase that stands in for a query, as those of search are."""
_TIE = 1e-6


@dataclass(frozen=True, slots=True)
class Judged:
    """Queries with their judgements, and whether the document with a query's id is to be left out."""

    queries: list[Query]
    qrels: Qrels
    drop_self: bool


@dataclass
class Sample:
    """What is measured: vectors (n, dim), the document of each, queries (q, dim); float32 and int64."""

    vectors: np.ndarray
    docs: np.ndarray
    queries: np.ndarray
    total: int
    half: np.ndarray = field(init=False)
    tenth: np.ndarray = field(init=False)
    hundredth: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.half = self.vectors.astype(np.float16)
        self.tenth, self.hundredth = (self._scores_of_last(k) for k in (10, 100))

    def _scores_of_last(self, k: int) -> np.ndarray:
        """(q,) the exact score of every query's k-th best."""
        k = min(k, len(self.vectors))
        found = []
        for start in range(0, len(self.queries), 64):
            scores = self.queries[start : start + 64] @ self.vectors.T
            found.append(np.partition(scores, -k, axis=1)[:, -k])
        return np.concatenate(found)

    def recall(self, rows: np.ndarray, last: np.ndarray) -> float:
        """Which part of the exact k best is among (q, k) rows; equals of the last one are as good."""
        scores = np.stack([self.vectors[found] @ query for found, query in zip(rows, self.queries, strict=True)])
        return float(((scores >= last[:, None] - _TIE) & (rows >= 0)).mean())


@dataclass
class InMemory:
    """The sample as one segment in memory (see `dense.Segment`)."""

    index: Any
    docs: np.ndarray
    raw: np.ndarray
    rows: np.ndarray | None = None
    first_row: int = 0
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = len(self.docs)

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """(n, dim) float32, widened from half precision."""
        return dense.widened(self.raw[positions])

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Rows are positions here."""
        return rows


def queries_of(
    queries: Sequence[Query] | None, qrels: Qrels | None, drop_self: bool, rng: np.random.Generator
) -> tuple[list[Query], Judged | None]:
    """The queries to ask, at most QUERIES of them, all judged where there are judgements; none where none came.

    Raises:
        ValueError: There is nothing to ask for, or judgements are of other queries.
    """
    if queries is None:
        if qrels:
            raise InputError("judgements came without queries; give both, or neither")
        return [], None
    if not queries:
        raise InputError("there are no queries; give at least one, or none at all to take passages instead")
    asked = [query for query in queries if not qrels or query.id in qrels]
    if not asked:
        raise InputError("none of the queries has a judgement; queries and judgements are of different sets")
    if len(asked) > QUERIES:
        asked = [asked[n] for n in np.sort(rng.permutation(len(asked))[:QUERIES])]
    if not qrels:
        return asked, None
    return asked, Judged(asked, {query.id: qrels[query.id] for query in asked}, drop_self)


def drawn(
    engine: SearchEngine,
    asked: list[Query],
    judged: Judged | None,
    instruction: str | None,
    most: int,
    rng: np.random.Generator,
) -> Sample:
    """The sample, with all passages of judged documents, and vectors of queries, or of phrases held out for them."""
    snapshot = engine.store.snapshot()
    parts = snapshot.segments
    living = np.flatnonzero(~np.isin(segments.all_rows(parts), snapshot.dead)) if parts else np.empty(0, np.int64)
    if len(living) < 2:
        raise InputError(f"{engine.store.folder} holds {len(living)} passages; nothing can be measured with so few")
    docs = np.concatenate([part.docs for part in parts])[living]
    order = rng.permutation(len(living))
    if judged:
        ids = {document for gains in judged.qrels.values() for document in gains}
        known = np.array(engine.store.positions_of(sorted(ids)), dtype=np.int64)
        if not len(known):
            raise InputError(
                f"none of the {len(ids)} judged documents is in the index; "
                "judgements and index are of different corpora"
            )
        order = order[np.argsort(~np.isin(docs[order], known), kind="stable")]  # these come whatever the sample's size
    held = 0 if asked else min(_HELD_OUT, max(1, len(living) // 10))
    taken = np.sort(order[held : held + most])
    vectors = segments.vectors_at(parts, living[taken])
    if not asked:
        rows = segments.all_rows(parts)[living[np.sort(order[:held])]]
        asked = phrases([found.text for found in engine.store.passages(rows.tolist()).values()], rng)
    queries = engine.embed(asked, instruction)
    return Sample(vectors, docs[taken], np.ascontiguousarray(queries, dtype=np.float32), len(living))


def phrases(texts: Sequence[str], rng: np.random.Generator) -> list[Query]:
    """A few words in a row out of each text, to be asked for: whole passages lie among passages, queries apart.

    Cells and graphs that are tuned on passages turn out too narrow for queries (docs/benchmarks.md).
    """
    found = []
    for text in texts:
        words = text.split()
        length = int(rng.integers(*_PHRASE, endpoint=True))
        start = int(rng.integers(0, max(1, len(words) - length + 1)))
        found.append(Query("", " ".join(words[start : start + length]) or text))
    return found
