"""What `searchkit compress` measures on: a sample of the vectors, and queries or phrases in place of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.indexer.vectors import segments
from searchkit.indexer.vectors.arrays import widened
from searchkit.indexer.vectors.backend import VectorIndex
from searchkit.indexer.vectors.recipes import Plan
from searchkit.records import Judgements, Query

QUERIES = 1000
"""Most queries that are searched."""

_HELD_OUT = 200  # passages, at most, whose phrases stand in for queries
_PHRASE = (1, 12)  # words of a phrase, as many as search queries have
_TIE = 1e-6


@dataclass
class Sample:
    """What is measured.

    Args:
        vectors: (n, dim) float32, as they are stored.
        docs: (n,) int64, the document of each vector.
        queries: (q, dim) float32, to multiply them with.
        total: Vectors in the index.
        judged: The queries with their qrels; None where phrases stand in for queries.
    """

    vectors: np.ndarray
    docs: np.ndarray
    queries: np.ndarray
    total: int
    judged: Judgements | None = None
    half: np.ndarray = field(init=False)
    tenth: np.ndarray = field(init=False)
    hundredth: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.half = self.vectors.astype(np.float16)
        self.tenth, self.hundredth = (self._scores_of_last(k) for k in (10, 100))

    @property
    def count(self) -> int:
        """Vectors in the sample."""
        return len(self.vectors)

    def _scores_of_last(self, k: int) -> np.ndarray:
        """(q,) the exact score of the k-th best vector of every query."""
        k = min(k, self.count)
        batches = (self.queries[start : start + 64] for start in range(0, len(self.queries), 64))
        return np.concatenate([np.partition(batch @ self.vectors.T, -k, axis=1)[:, -k] for batch in batches])

    def recall(self, rows: np.ndarray, last: np.ndarray) -> float:
        """The share of the exact k best among (q, k) rows, given the scores of the k-th; ties with it count."""
        scores = np.stack([self.vectors[ranked] @ query for ranked, query in zip(rows, self.queries, strict=True)])
        least = last - _TIE * np.maximum(1, np.abs(last))
        return float(((scores >= least[:, None]) & (rows >= 0)).mean())


@dataclass
class InMemory:
    """The sample as a segment in memory (see :class:`searchkit.indexer.vectors.search.Segment`)."""

    index: VectorIndex
    docs: np.ndarray
    raw: np.ndarray
    rows: np.ndarray | None = None
    first_row: int = 0
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = len(self.docs)

    @property
    def plan(self) -> Plan:
        """How its vectors are stored."""
        return self.index.plan

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """(n, dim) float32, widened from half precision."""
        return widened(self.raw[positions])

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """The rows, which are positions here."""
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


def held_out(passages: int) -> int:
    """Passages held out to take phrases from."""
    return min(_HELD_OUT, max(1, passages // 10))


def draw(engine: SearchEngine, judged: Judgements | None, most: int, rng: np.random.Generator) -> Sample:
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
        known = np.array(engine.store.documents.positions_of(sorted(ids)), dtype=np.int64)
        if not len(known):
            raise InputError(
                f"none of the {len(ids)} judged documents is in the index; "
                "judgements and index are of different corpora"
            )
        order = order[np.argsort(~np.isin(docs[order], known), kind="stable")]  # first, whatever the sample's size
    held = 0 if judged else held_out(len(living))
    taken = np.sort(order[held : held + most])
    vectors = segments.vectors_at(parts, living[taken])
    if judged:
        queries = engine.embed(judged.queries, judged.instruction)
    elif not engine.has_model:  # nothing else is known that lies where queries do
        queries = engine.vectors_of(segments.all_rows(parts)[living[np.sort(order[:held])]])
    else:
        rows = segments.all_rows(parts)[living[np.sort(order[:held])]]
        queries = engine.embed(
            phrases([stored.text for stored in engine.store.documents.passages(rows.tolist()).values()], rng)
        )
    queries = engine.storage.similarity.queries(np.ascontiguousarray(queries, dtype=np.float32))
    return Sample(vectors, docs[taken], queries, len(living), judged)


def phrases(texts: Sequence[str], rng: np.random.Generator) -> list[Query]:
    """A few consecutive words of each text, as queries.

    Whole passages will not do: they lie among the passages, queries apart from them, so IVF lists and graphs tuned on
    passages are searched too narrowly for queries (docs/benchmarks.md).
    """
    queries = []
    for text in texts:
        words = text.split()
        length = int(rng.integers(*_PHRASE, endpoint=True))
        start = int(rng.integers(0, max(1, len(words) - length + 1)))
        queries.append(Query("", " ".join(words[start : start + length]) or text))
    return queries
