"""What `searchkit compress` measures by: some of the vectors, and queries, or phrases that stand in for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.indexer.vectors import faiss_index as dense
from searchkit.indexer.vectors import segments
from searchkit.records import Judgements, Query

QUERIES = 1000
"""Queries that are asked at most."""

_HELD_OUT = 200
_PHRASE = (1, 12)
"""Words of a phrase that stands in for a query, as those of search are."""
_TIE = 1e-6


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


def queries_of(judgements: Judgements, rng: np.random.Generator) -> Judgements:
    """At most QUERIES of the queries with their qrels; if there are qrels, judged queries only.

    Raises:
        InputError: There are no queries, or none of them is judged.
    """
    qrels = judgements.qrels
    if not judgements.queries:
        raise InputError("there are no queries; give at least one, or omit them to search for phrases of passages")
    queries = [query for query in judgements.queries if not qrels or query.id in qrels]
    if not queries:
        raise InputError("none of the queries has a judgement; queries and judgements are of different sets")
    if len(queries) > QUERIES:
        queries = [queries[n] for n in np.sort(rng.permutation(len(queries))[:QUERIES])]
    return replace(judgements, queries=queries, qrels={query.id: qrels[query.id] for query in queries} if qrels else {})


def drawn(engine: SearchEngine, judged: Judgements | None, most: int, rng: np.random.Generator) -> Sample:
    """A sample of at most `most` vectors with the vectors of the queries, or of phrases of held-out passages.

    All passages of judged documents come first, whatever the size of the sample.
    """
    snapshot = engine.store.snapshot()
    parts = snapshot.segments
    living = np.flatnonzero(~np.isin(segments.all_rows(parts), snapshot.dead)) if parts else np.empty(0, np.int64)
    if len(living) < 2:
        raise InputError(f"{engine.store.folder} holds {len(living)} passages; nothing can be measured with so few")
    docs = np.concatenate([part.docs for part in parts])[living]
    order = rng.permutation(len(living))
    if judged and judged.qrels:
        ids = {document for gains in judged.qrels.values() for document in gains}
        known = np.array(engine.store.positions_of(sorted(ids)), dtype=np.int64)
        if not len(known):
            raise InputError(
                f"none of the {len(ids)} judged documents is in the index; "
                "judgements and index are of different corpora"
            )
        order = order[np.argsort(~np.isin(docs[order], known), kind="stable")]  # these come whatever the sample's size
    held = 0 if judged else min(_HELD_OUT, max(1, len(living) // 10))
    taken = np.sort(order[held : held + most])
    vectors = segments.vectors_at(parts, living[taken])
    if judged:
        queries = engine.embed(judged.queries, judged.instruction)
    else:
        rows = segments.all_rows(parts)[living[np.sort(order[:held])]]
        queries = engine.embed(phrases([stored.text for stored in engine.store.passages(rows.tolist()).values()], rng))
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
