"""The rankings of an index folder: vectors of its segments, BM25 of its lexical index, filters of its database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from searchkit.facets import FacetColumns, Facets
from searchkit.indexer.allowed import AllowedRows
from searchkit.indexer.conditions import Condition
from searchkit.indexer.filters import compile_filter
from searchkit.indexer.lexical import LexicalIndex
from searchkit.indexer.store import Snapshot, Store
from searchkit.indexer.vectors import segments
from searchkit.indexer.vectors.recipes import RECIPES
from searchkit.indexer.vectors.search import search
from searchkit.lexical_sync import LexicalSync
from searchkit.ranking import Ranked, Ranker, SearchOptions, as_ranked, best_passages, end_of_ties, tied_to_the_end

FILTERS = 8
"""Filters whose matches are cached a commit."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be returned: documents by position, rows (None: all), and how many documents and passages that are."""

    docs: np.ndarray
    rows: AllowedRows | None
    documents: int
    passages: int


class FolderRanker(Ranker[Allowed]):
    """One commit of an index folder, ready to rank.

    Args:
        store: Looks up what a filter matches.
        snapshot: The commit.
        lexical: Opens the lexical index of the commit when it is first needed; None where only vectors are ranked.
    """

    def __init__(self, store: Store, snapshot: Snapshot, lexical: LexicalSync | None = None) -> None:
        self.store, self.snapshot, self._sync = store, snapshot, lexical
        self.segments = snapshot.segments
        self.plan, self.tuning = snapshot.storage.plan, snapshot.storage.tuning
        self.similarity = snapshot.storage.similarity
        stored = snapshot.passages + len(snapshot.dead)
        self._all_have_vectors = sum(segment.count for segment in snapshot.segments) == stored
        living: AllowedRows | None = None
        if len(snapshot.dead):
            rows = np.ones(snapshot.next_row, dtype=bool)
            rows[snapshot.dead] = False
            living = AllowedRows(rows)
        self._filtered: dict[Condition, Allowed] = {}
        docs = np.ones(snapshot.next_doc, dtype=bool)
        docs[snapshot.dead_docs] = False
        self._living = Allowed(docs, living, snapshot.documents, snapshot.passages)
        self._columns = FacetColumns(store, snapshot)

    @property
    def commit(self) -> int:
        """Number of the commit."""
        return self.snapshot.generation

    @property
    def documents(self) -> int:
        """Documents in the commit, without the deleted."""
        return self.snapshot.documents

    @property
    def passages(self) -> int:
        """Passages in the commit, without those of deleted documents."""
        return self.snapshot.passages

    def have_vectors(self, rows: np.ndarray) -> np.ndarray:
        """Whether each of some passages has a vector, (n,) bool."""
        return np.ones(len(rows), dtype=bool) if self._all_have_vectors else segments.held(self.segments, rows)

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of some passages that have one, (n, dim) float32, as exact as they are kept."""
        owners = segments.owners(self.segments, rows)
        vectors = np.empty((len(rows), self.plan.dim), np.float32)
        for number in np.unique(owners):
            segment, mine = self.segments[number], owners == number
            vectors[mine] = segment.vectors(segment.positions(rows[mine]))
        return self.similarity.vectors(vectors)

    def similarities(self, vector: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """How similar a query (dim,) is to some passages that have a vector (n,), as (n,) float32."""
        if self.similarity.euclidean:  # from the difference: what the inner product leaves of it is mostly rounding
            return np.asarray(-np.linalg.norm(self.vectors_of(rows) - vector, axis=1))
        return segments.score(self.segments, vector, rows)

    def facets(self, texts: Sequence[str], options: SearchOptions, keys: Sequence[str] | None) -> list[Facets]:
        """Count metadata values over all documents that each query matches; see :meth:`Searcher.facets`."""
        allowed = self._passing(options.where).docs
        if not allowed.any() or (options.mode != "lexical" and self._all_have_vectors):
            return [self._columns.count(allowed, keys)] * len(texts)
        near = np.zeros_like(allowed)
        if options.mode != "lexical":
            for segment in self.segments:
                near[segment.docs] = True
        counted = []
        for text in texts:
            matching = near.copy()
            if options.mode != "dense":
                rows = self._lexical_index().matching(text, self.snapshot.next_row)
                matching[self._documents_of(rows)] = True
            counted.append(self._columns.count(matching & allowed, keys))
        return counted

    def allowed(self, where: Mapping[str, Any] | None) -> Allowed | None:
        """What passes a filter; None where nothing does."""
        passing = self._passing(where)
        return passing if passing.passages else None

    def _passing(self, where: Mapping[str, Any] | None) -> Allowed:
        if where is None:
            return self._living
        condition = compile_filter(where)
        allowed = self._filtered.get(condition)
        if allowed is None:
            docs, mask = self.store.passing(condition, self.snapshot)
            rows = AllowedRows(mask)
            allowed = Allowed(docs, rows, int(np.count_nonzero(docs)), rows.count)
            for oldest in list(self._filtered)[: 1 - FILTERS]:
                self._filtered.pop(oldest, None)  # another thread may have done so
            self._filtered[condition] = allowed
        return allowed

    # The dense side

    def dense(self, vectors: np.ndarray, k: int, allowed: Allowed, *, ties: bool = False) -> list[list[Ranked]]:
        """The k best documents of every query by the similarity of their best passage."""
        allowed, k = self._with_vectors(allowed), self._at_most(k)
        if allowed.passages == 0:
            return [[] for _ in vectors]
        queries = self.similarity.queries(vectors)
        if ties and RECIPES[self.plan.recipe].exact:
            rankings = self._nearest(queries, k + 1, allowed)  # all at once: few have a tie at the cut
            for n, query in enumerate(queries):
                depth = k + 1
                while tied_to_the_end(rankings[n], k, depth):
                    depth *= 8
                    rankings[n] = self._nearest(query[None], depth, allowed)[0]
            rankings = [ranking[: end_of_ties(ranking, k)] for ranking in rankings]
        else:
            rankings = self._nearest(queries, k, allowed)
        if self.similarity.euclidean:
            return [self._by_distance(vector, ranking) for vector, ranking in zip(vectors, rankings, strict=True)]
        return rankings

    def _by_distance(self, vector: np.ndarray, ranking: list[Ranked]) -> list[Ranked]:
        scores = self.similarities(vector, np.array([item.row for item in ranking], dtype=np.int64))
        scored = (as_ranked((item.doc, score, item.row)) for item, score in zip(ranking, scores.tolist(), strict=True))
        return sorted(scored, key=lambda item: (-item.score, item.doc))

    def _at_most(self, k: int) -> int:
        return min(k, self.snapshot.next_row)  # there are no more

    def _with_vectors(self, allowed: Allowed) -> Allowed:
        """The same rows, counted without those that have no vector."""
        if self._all_have_vectors:
            return allowed
        count = sum(segment.count for segment in self.segments)
        if allowed.rows is not None and count:
            rows = allowed.rows
            count = rows.derived(
                "with vectors", lambda: int(np.count_nonzero(rows.mask[segments.all_rows(self.segments)]))
            )
        return Allowed(allowed.docs, allowed.rows, count, count)  # each such document is one passage

    def _nearest(self, vectors: np.ndarray, k: int, allowed: Allowed) -> list[list[Ranked]]:
        wanted = min(k, allowed.documents)
        depth = k if allowed.passages == allowed.documents else 4 * k
        tuning = self.tuning
        while True:
            rows, scores = search(self.segments, vectors, depth, tuning=tuning, allowed=allowed.rows)
            docs = segments.documents_of(self.segments, rows)
            rankings = list(map(best_passages, docs.tolist(), scores.tolist(), rows.tolist()))
            if all(len(ranking) >= wanted for ranking in rankings):
                return [ranking[:k] for ranking in rankings]
            if depth >= allowed.passages:
                if tuning.probes >= self.plan.lists:
                    return [ranking[:k] for ranking in rankings]
                tuning = replace(tuning, probes=4 * tuning.probes)  # the visited lists held too few that are allowed
            depth = min(4 * depth, max(depth, allowed.passages))

    # The lexical side

    def lexical(self, texts: Sequence[str], k: int, allowed: Allowed, *, ties: bool = False) -> list[list[Ranked]]:
        """The k best documents of every query by the BM25 score of their best passage."""
        return [self._matches(text, self._at_most(k), allowed, ties=ties) for text in texts]

    def ceiling(self, text: str) -> tuple[float, int]:
        """The highest BM25 score that a passage of usual length could have for a query, and its distinct terms."""
        return self._lexical_index().ceiling(text)

    def _matches(self, text: str, k: int, allowed: Allowed, *, ties: bool) -> list[Ranked]:
        if not ties:
            return self._best_matches(text, k, allowed)
        depth = k + 1
        ranking = self._best_matches(text, depth, allowed)
        while tied_to_the_end(ranking, k, depth):
            depth *= 8
            ranking = self._best_matches(text, depth, allowed)
        return ranking[: end_of_ties(ranking, k)]

    def _lexical_index(self) -> LexicalIndex:
        assert self._sync is not None, "this ranker was made for vectors alone"
        return self._sync.index_of(self.snapshot)

    def _best_matches(self, text: str, k: int, allowed: Allowed) -> list[Ranked]:
        index = self._lexical_index()
        depth = k if allowed.passages == allowed.documents else 4 * k
        while True:
            rows, scores = index.search(text, depth, self.snapshot.next_row, allowed.rows)
            docs = self._documents_of(rows)
            ranking = best_passages(docs.tolist(), scores.tolist(), rows.tolist())
            if len(rows) < depth or len(ranking) >= k:
                return ranking[:k]
            depth *= 4

    def _documents_of(self, rows: np.ndarray) -> np.ndarray:
        """The positions of the documents of some passages, (n,) int64."""
        if self._all_have_vectors:
            return segments.documents_of(self.segments, rows)
        return self.store.documents.docs_of(rows)
