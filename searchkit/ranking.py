"""How a ranking is made: by vectors (dense), by BM25 (lexical), or by both (hybrid)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from searchkit.errors import InputError
from searchkit.facets import FacetColumns, Facets
from searchkit.indexer import fusion
from searchkit.indexer.filters import Condition, compile_filter
from searchkit.indexer.lexical import LexicalIndex
from searchkit.indexer.store import Snapshot, Store
from searchkit.indexer.vectors import segments
from searchkit.indexer.vectors.recipes import RECIPES
from searchkit.indexer.vectors.search import search
from searchkit.lexical_sync import LexicalSync
from searchkit.records import Explanation
from searchkit.validation import check_share, described, whole_number

Mode = Literal["dense", "lexical", "hybrid"]
MODES: tuple[Mode, ...] = ("dense", "lexical", "hybrid")

FILTERS = 8
"""Filters whose matches are cached a commit: SQLite reads all metadata for each of them."""


def as_mode(name: str) -> Mode:
    """The mode of that name; InputError when there is none."""
    for mode in MODES:
        if mode == name:
            return mode
    raise InputError(f"mode is {described(name)}; expected one of {', '.join(MODES)}")


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How a ranking is made.

    Args:
        mode: "dense" (vectors), "lexical" (BM25) or "hybrid" (both).
        fusion: For hybrid only: "adaptive" (weighted, with less weight for the lexical side where the instruction
            changes the similarities or little of the query was matched, and all of it for queries that the model cannot
            read), "weighted", or "rrf" (reciprocal rank).
        dense_weight: Weight of the dense side, 0 to 1; in adaptive fusion the least for queries it can read.
        rrf_k: Constant of reciprocal rank fusion.
        depth: Candidates that each side contributes to fusion, at least.
        where: Conditions on the documents' metadata (see :mod:`searchkit.indexer.filters`); None for no filter.
    """

    mode: Mode = "hybrid"
    fusion: str = "adaptive"
    dense_weight: float = 0.5
    rrf_k: int = 60
    depth: int = 100
    where: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        as_mode(self.mode)
        if self.fusion not in fusion.FUSIONS:
            raise InputError(f"fusion is {described(self.fusion)}; expected one of {', '.join(fusion.FUSIONS)}")
        check_share("dense_weight", self.dense_weight)
        whole_number("rrf_k", self.rrf_k, 0)
        whole_number("depth", self.depth, 1)


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """Queries that are ready to be ranked: validated, and embedded where the mode needs vectors.

    Args:
        texts: The queries, for the lexical side.
        vectors: The same queries, (len(texts), dim) float32, unit rows for the cosine; None for a lexical ranking.
        k: Documents a query.
        options: How to rank.
        ties: Also return the documents after the k-th that score as it does (as 32-bit floats), where that is known: of
            vectors, those that are searched exactly.
        neutral: The queries under the neutral instruction, in the shape of `vectors`, for adaptive fusion; equal rows
            where a query has no instruction. None stands for `vectors`.
        unreadable: Whether the model cannot read each query, for adaptive fusion: its vector is noise, so lexical
            matches rank alone. None: it can read all.
    """

    texts: Sequence[str]
    vectors: np.ndarray | None
    k: int
    options: SearchOptions = SearchOptions()
    ties: bool = False
    neutral: np.ndarray | None = None
    unreadable: Sequence[bool] | None = None


@dataclass(frozen=True, slots=True)
class _Sides:
    """What both sides say about the candidates of one query, by document.

    Args:
        similarity: Of every candidate that has a vector.
        bm25: Of those that share a term with the query.
        rows: The passage that stands for each.
        dense_weight: Weight of the dense side; the lexical one has the rest.
    """

    similarity: dict[int, float]
    bm25: dict[int, float]
    rows: dict[int, int]
    dense_weight: float


@dataclass(frozen=True, slots=True)
class _Allowed:
    """What may be returned: documents by position, rows (None: all), and how many documents and passages that are."""

    docs: np.ndarray
    rows: np.ndarray | None
    documents: int
    passages: int


class Ranked(NamedTuple):  # made for every hit, and a frozen dataclass takes three times as long to make
    """One document in a ranking: its position in the store, its score and the row of its best passage."""

    doc: int
    score: float
    row: int


_ranked: Callable[[tuple[int, float, int]], Ranked] = partial(tuple.__new__, Ranked)  # its own __new__ is Python code


class Ranker:
    """One commit of an index, ready to rank.

    Args:
        store: Looks up what a filter matches.
        snapshot: The commit.
        lexical: Opens the lexical index of the commit when it is first needed; None where only vectors are ranked.
    """

    def __init__(self, store: Store, snapshot: Snapshot, lexical: LexicalSync | None = None) -> None:
        self.store, self.snapshot, self.lexical = store, snapshot, lexical
        self.segments = snapshot.segments
        self.plan, self.tuning = snapshot.storage.plan, snapshot.storage.tuning
        self.similarity = snapshot.storage.similarity
        stored = snapshot.passages + len(snapshot.dead)
        self._all_have_vectors = sum(segment.count for segment in snapshot.segments) == stored
        living: np.ndarray | None = None
        if len(snapshot.dead):
            living = np.ones(snapshot.next_row, dtype=bool)
            living[snapshot.dead] = False
        self._filtered: dict[Condition, _Allowed] = {}
        docs = np.ones(snapshot.next_doc, dtype=bool)
        docs[snapshot.dead_docs] = False
        self._living = _Allowed(docs, living, snapshot.documents, snapshot.passages)
        self._columns = FacetColumns(store, snapshot)

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

    def rank(self, request: SearchRequest) -> list[list[Ranked]]:
        """The k best documents of every query.

        Raises:
            FilterError: The filter in the options cannot be understood.
        """
        options, allowed = request.options, self._allowed(request.options)
        if allowed.passages == 0:
            return [[] for _ in request.texts]
        k = min(request.k, self.snapshot.next_row)  # there are no more
        if options.mode == "lexical":
            return [self._lexical(text, k, allowed, ties=request.ties) for text in request.texts]
        if request.vectors is None:
            raise InputError(f"a {options.mode} ranking needs the vectors of its queries")
        if options.mode == "dense":
            return self._dense(request.vectors, k, allowed, ties=request.ties)
        return [_fused(sides, k, options, ties=request.ties) for sides in self._sides(request, allowed)]

    def facets(self, texts: Sequence[str], options: SearchOptions, keys: Sequence[str] | None) -> list[Facets]:
        """Count metadata values over all documents that each query matches; see :meth:`Searcher.facets`."""
        allowed = self._allowed(options).docs
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

    def explain(self, request: SearchRequest, rankings: Sequence[Sequence[Ranked]]) -> list[list[Explanation]]:
        """Why each document of some rankings, which `rank` returned for the request, stands where it does."""
        options = request.options
        if not any(rankings):
            return [[] for _ in rankings]
        if options.mode == "dense":
            return [[Explanation(item.score, n, None, None, 1.0) for n, item in enumerate(r, 1)] for r in rankings]
        if options.mode == "lexical":
            return [[Explanation(None, None, item.score, n, 0.0) for n, item in enumerate(r, 1)] for r in rankings]
        explained = []
        for ranking, sides in zip(rankings, self._sides(request, self._allowed(options)), strict=True):
            dense_place, lexical_place = _place_of(sides.similarity), _place_of(sides.bm25)
            explained.append(
                [
                    Explanation(
                        sides.similarity.get(item.doc),
                        dense_place.get(item.doc),
                        sides.bm25.get(item.doc),
                        lexical_place.get(item.doc),
                        None if options.fusion == "rrf" else sides.dense_weight,
                    )
                    for item in ranking
                ]
            )
        return explained

    def _allowed(self, options: SearchOptions) -> _Allowed:
        if options.where is None:
            return self._living
        condition = compile_filter(options.where)
        allowed = self._filtered.get(condition)
        if allowed is None:
            docs, rows = self.store.matching(condition, self.snapshot)
            mask = np.zeros(self.snapshot.next_row, dtype=bool)
            mask[rows] = True
            passing = np.zeros(self.snapshot.next_doc, dtype=bool)
            passing[docs] = True
            allowed = _Allowed(passing, mask, len(docs), len(rows))
            for oldest in list(self._filtered)[: 1 - FILTERS]:
                self._filtered.pop(oldest, None)  # another thread may have done so
            self._filtered[condition] = allowed
        return allowed

    # The dense side

    def _dense(self, vectors: np.ndarray, k: int, allowed: _Allowed, *, ties: bool = False) -> list[list[Ranked]]:
        """The k best documents of every query by the similarity of their best passage."""
        allowed = self._with_vectors(allowed)
        if allowed.passages == 0:
            return [[] for _ in vectors]
        queries = self.similarity.queries(vectors)
        if ties and RECIPES[self.plan.recipe].exact:
            rankings = self._nearest(queries, k + 1, allowed)  # all at once: few have a tie at the cut
            for n, query in enumerate(queries):
                depth = k + 1
                while _tied_to_the_end(rankings[n], k, depth):
                    depth *= 8
                    rankings[n] = self._nearest(query[None], depth, allowed)[0]
            rankings = [ranking[: _end(ranking, k)] for ranking in rankings]
        else:
            rankings = self._nearest(queries, k, allowed)
        if self.similarity.euclidean:
            return [self._by_distance(vector, ranking) for vector, ranking in zip(vectors, rankings, strict=True)]
        return rankings

    def _by_distance(self, vector: np.ndarray, ranking: list[Ranked]) -> list[Ranked]:
        scores = self._similarities(vector, [item.row for item in ranking])
        scored = (_ranked((item.doc, score, item.row)) for item, score in zip(ranking, scores.tolist(), strict=True))
        return sorted(scored, key=lambda item: (-item.score, item.doc))

    def _with_vectors(self, allowed: _Allowed) -> _Allowed:
        """The same rows, counted without those that have no vector."""
        if self._all_have_vectors:
            return allowed
        count = sum(segment.count for segment in self.segments)
        if allowed.rows is not None and count:
            count = int(np.count_nonzero(allowed.rows[segments.all_rows(self.segments)]))
        return _Allowed(allowed.docs, allowed.rows, count, count)  # each such document is one passage

    def _nearest(self, vectors: np.ndarray, k: int, allowed: _Allowed) -> list[list[Ranked]]:
        wanted = min(k, allowed.documents)
        depth = k if allowed.passages == allowed.documents else 4 * k
        tuning = self.tuning
        while True:
            rows, scores = search(self.segments, vectors, depth, tuning=tuning, allowed=allowed.rows)
            docs = segments.documents_of(self.segments, rows)
            rankings = list(map(_best_passages, docs.tolist(), scores.tolist(), rows.tolist()))
            if all(len(ranking) >= wanted for ranking in rankings):
                return [ranking[:k] for ranking in rankings]
            if depth >= allowed.passages:
                if tuning.probes >= self.plan.lists:
                    return [ranking[:k] for ranking in rankings]
                tuning = replace(tuning, probes=4 * tuning.probes)  # the visited lists held too few that are allowed
            depth = min(4 * depth, max(depth, allowed.passages))

    # The lexical side

    def _lexical(self, text: str, k: int, allowed: _Allowed, *, ties: bool = False) -> list[Ranked]:
        """The k best documents of one query by the BM25 score of their best passage."""
        if not ties:
            return self._best_matches(text, k, allowed)
        depth = k + 1
        ranking = self._best_matches(text, depth, allowed)
        while _tied_to_the_end(ranking, k, depth):
            depth *= 8
            ranking = self._best_matches(text, depth, allowed)
        return ranking[: _end(ranking, k)]

    def _lexical_index(self) -> LexicalIndex:
        assert self.lexical is not None, "this ranker was made for vectors alone"
        return self.lexical.index_of(self.snapshot)

    def _best_matches(self, text: str, k: int, allowed: _Allowed) -> list[Ranked]:
        index = self._lexical_index()
        depth = k if allowed.passages == allowed.documents else 4 * k
        while True:
            rows, scores = index.search(text, depth, self.snapshot.next_row, allowed.rows)
            docs = self._documents_of(rows)
            ranking = _best_passages(docs.tolist(), scores.tolist(), rows.tolist())
            if len(rows) < depth or len(ranking) >= k:
                return ranking[:k]
            depth *= 4

    def _documents_of(self, rows: np.ndarray) -> np.ndarray:
        """The positions of the documents of some passages, (n,) int64."""
        if self._all_have_vectors:
            return segments.documents_of(self.segments, rows)
        return self.store.documents.docs_of(rows)

    # Both

    def _sides(self, request: SearchRequest, allowed: _Allowed) -> list[_Sides]:
        """The candidates of every query, with what fusion needs to know about them."""
        assert request.vectors is not None, "hybrid search embeds its queries"
        options = request.options
        depth = min(max(request.k, options.depth), self.snapshot.next_row)
        neutral = request.vectors if request.neutral is None else request.neutral
        nearest = self._dense(request.vectors, depth, allowed)
        sides = [
            self._side_by_side(text, vector, plain, similar, self._lexical(text, depth, allowed), options)
            for text, vector, plain, similar in zip(request.texts, request.vectors, neutral, nearest, strict=True)
        ]
        if options.fusion == "adaptive" and request.unreadable is not None:
            return [
                replace(side, dense_weight=0.0) if noise and side.bm25 else side
                for side, noise in zip(sides, request.unreadable, strict=True)
            ]
        return sides

    def _side_by_side(
        self,
        text: str,
        vector: np.ndarray,
        neutral: np.ndarray,
        by_vector: list[Ranked],
        by_term: list[Ranked],
        options: SearchOptions,
    ) -> _Sides:
        similarity = {item.doc: item.score for item in by_vector}
        bm25 = {item.doc: item.score for item in by_term}
        # Shown is the passage that ranked best by its vector, if any did: it carries the meaning of the query.
        rows = {item.doc: item.row for item in (*by_term, *by_vector)}
        if options.fusion == "rrf":
            return _Sides(similarity, bm25, rows, options.dense_weight)
        unscored = self._comparable([doc for doc in bm25 if doc not in similarity], rows)
        scores = self._similarities(vector, [rows[doc] for doc in unscored])
        similarity |= dict(zip(unscored, scores.tolist(), strict=True))
        weight = options.dense_weight
        if options.fusion == "adaptive" and bm25:
            ceiling, terms = self._lexical_index().ceiling(text)
            agreement = self._agreement(vector, neutral, [row for doc, row in rows.items() if doc in similarity])
            evidence = max(bm25.values()) / ceiling if ceiling > 0 else 0.0
            weight = 1 - (1 - weight) * fusion.lexical_share(evidence, agreement, terms)
        return _Sides(similarity, bm25, rows, weight)

    def _agreement(self, vector: np.ndarray, neutral: np.ndarray, rows: list[int]) -> float:
        """Correlation of two vectors' similarities to some passages; 1 where there is too little to compare."""
        if np.array_equal(vector, neutral):
            return 1.0
        pair = np.stack([self._similarities(vector, rows), self._similarities(neutral, rows)])
        if len(rows) < 3 or not pair.std(axis=1).all():
            return 1.0
        return float(np.corrcoef(pair)[0, 1])

    def _similarities(self, vector: np.ndarray, rows: list[int]) -> np.ndarray:
        return self.similarities(vector, np.array(rows, dtype=np.int64))

    def _comparable(self, docs: list[int], rows: Mapping[int, int]) -> list[int]:
        """Those documents whose passages have a vector."""
        if self._all_have_vectors:
            return docs
        held = self.have_vectors(np.array([rows[doc] for doc in docs], dtype=np.int64))
        return [doc for doc, has in zip(docs, held.tolist(), strict=True) if has]


def _fused(sides: _Sides, k: int, options: SearchOptions, *, ties: bool) -> list[Ranked]:
    """The k best of one query's candidates."""
    if options.fusion == "rrf":
        fused = fusion.reciprocal_rank((sides.similarity, sides.bm25), options.rrf_k)
    else:
        fused = fusion.weighted(sides.similarity, sides.bm25, sides.dense_weight)
    order = sorted(fused, key=lambda doc: (-fused[doc], doc))
    ranking = [_ranked((doc, fused[doc], sides.rows[doc])) for doc in (order if ties else order[:k])]
    return ranking[: _end(ranking, k)] if ties else ranking


def _place_of(scores: Mapping[int, float]) -> dict[int, int]:
    """The rank of every document by its score, from 1."""
    order = sorted(scores, key=lambda doc: (-scores[doc], doc))
    return {doc: place for place, doc in enumerate(order, start=1)}


def _end(ranking: Sequence[Ranked], k: int) -> int:
    """Where the k best end, counting those that tie with the last of them; `ranking` is best first."""
    end = min(k, len(ranking))
    while 0 < end < len(ranking) and np.float32(ranking[end].score) == np.float32(ranking[k - 1].score):
        end += 1
    return end


def _tied_to_the_end(ranking: Sequence[Ranked], k: int, depth: int) -> bool:
    """Whether a ranking cut at `depth` may have lost documents that tie with the k-th."""
    return len(ranking) >= depth and _end(ranking, k) == len(ranking)


def _best_passages(docs: list[int], scores: list[float], rows: list[int]) -> list[Ranked]:
    """Rank documents by their first and so best passage; row -1, at the end, stands for no passage."""
    count = rows.index(-1) if rows and rows[-1] < 0 else len(rows)
    ranking = list(map(_ranked, zip(docs[:count], scores, rows, strict=False)))
    if len(set(docs)) == len(docs):
        return ranking
    best: dict[int, Ranked] = {}
    for item in ranking:
        best.setdefault(item.doc, item)
    return list(best.values())
