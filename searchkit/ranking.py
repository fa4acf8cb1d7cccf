"""How a ranking is made: by vectors (dense), by BM25 (lexical), or by both (hybrid)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np

from searchkit.errors import InputError
from searchkit.facets import Facets
from searchkit.indexer import fusion
from searchkit.records import Explanation
from searchkit.validation import check_share, described, whole_number

Mode = Literal["dense", "lexical", "hybrid"]
MODES: tuple[Mode, ...] = ("dense", "lexical", "hybrid")


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


class Ranked(NamedTuple):  # made for every hit, and a frozen dataclass takes three times as long to make
    """One document in a ranking: its position in the store, its score and the row of its best passage."""

    doc: int
    score: float
    row: int


as_ranked: Callable[[tuple[int, float, int]], Ranked] = partial(tuple.__new__, Ranked)  # its own __new__ is Python code


Allowed = TypeVar("Allowed")
"""What may be returned under a filter, in whatever form a place keeps that."""


class Ranker(ABC, Generic[Allowed]):
    """One commit of a place that can be searched, ready to rank: either side is the place's, how they meet is not."""

    @property
    @abstractmethod
    def commit(self) -> int:
        """Number of the commit."""

    @property
    @abstractmethod
    def documents(self) -> int:
        """Documents in the commit, without the deleted."""

    @property
    @abstractmethod
    def passages(self) -> int:
        """Passages in the commit, without those of deleted documents."""

    @abstractmethod
    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of some passages that have one, (n, dim) float32, as exact as they are kept."""

    @abstractmethod
    def similarities(self, vector: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """How similar a query (dim,) is to some passages that have a vector (n,), as (n,) float32."""

    @abstractmethod
    def facets(self, texts: Sequence[str], options: SearchOptions, keys: Sequence[str] | None) -> list[Facets]:
        """Count metadata values over all documents that each query matches; see :meth:`Searcher.facets`."""

    @abstractmethod
    def allowed(self, where: Mapping[str, Any] | None) -> Allowed | None:
        """What passes a filter; None where nothing does.

        Raises:
            FilterError: The filter cannot be understood.
        """

    @abstractmethod
    def dense(self, vectors: np.ndarray, k: int, allowed: Allowed, *, ties: bool = False) -> list[list[Ranked]]:
        """The k best documents of every query by the similarity of their best passage."""

    @abstractmethod
    def lexical(self, texts: Sequence[str], k: int, allowed: Allowed, *, ties: bool = False) -> list[list[Ranked]]:
        """The k best documents of every query by the BM25 score of their best passage."""

    @abstractmethod
    def ceiling(self, text: str) -> tuple[float, int]:
        """The highest BM25 score that a passage of usual length could have for a query, and its distinct terms."""

    @abstractmethod
    def have_vectors(self, rows: np.ndarray) -> np.ndarray:
        """Whether each of some passages has a vector, (n,) bool."""

    def expect(self, rows: Sequence[int]) -> None:
        """Take note that the similarities of some passages will be asked for, query by query."""

    def rank(self, request: SearchRequest) -> list[list[Ranked]]:
        """The k best documents of every query.

        Raises:
            FilterError: The filter in the options cannot be understood.
        """
        options, allowed = request.options, self.allowed(request.options.where)
        if allowed is None:
            return [[] for _ in request.texts]
        if options.mode == "lexical":
            return self.lexical(request.texts, request.k, allowed, ties=request.ties)
        if request.vectors is None:
            raise InputError(f"a {options.mode} ranking needs the vectors of its queries")
        if options.mode == "dense":
            return self.dense(request.vectors, request.k, allowed, ties=request.ties)
        return [_fused(sides, request.k, options, ties=request.ties) for sides in self._sides(request, allowed)]

    def explain(self, request: SearchRequest, rankings: Sequence[Sequence[Ranked]]) -> list[list[Explanation]]:
        """Why each document of some rankings, which `rank` returned for the request, stands where it does."""
        options = request.options
        if not any(rankings):
            return [[] for _ in rankings]
        if options.mode == "dense":
            return [[Explanation(item.score, n, None, None, 1.0) for n, item in enumerate(r, 1)] for r in rankings]
        if options.mode == "lexical":
            return [[Explanation(None, None, item.score, n, 0.0) for n, item in enumerate(r, 1)] for r in rankings]
        allowed = self.allowed(options.where)
        assert allowed is not None, "what passed the filter is in the rankings"
        explained = []
        for ranking, sides in zip(rankings, self._sides(request, allowed), strict=True):
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

    def _sides(self, request: SearchRequest, allowed: Allowed) -> list[_Sides]:
        """The candidates of every query, with what fusion needs to know about them."""
        assert request.vectors is not None, "hybrid search embeds its queries"
        options = request.options
        depth = max(request.k, options.depth)
        neutral = request.vectors if request.neutral is None else request.neutral
        nearest = self.dense(request.vectors, depth, allowed)
        matching = self.lexical(request.texts, depth, allowed)
        self.expect([item.row for ranking in (*nearest, *matching) for item in ranking])
        sides = [
            self._side_by_side(*query, options)
            for query in zip(request.texts, request.vectors, neutral, nearest, matching, strict=True)
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
            ceiling, terms = self.ceiling(text)
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
        held = self.have_vectors(np.array([rows[doc] for doc in docs], dtype=np.int64))
        return [doc for doc, has in zip(docs, held.tolist(), strict=True) if has]


def _fused(sides: _Sides, k: int, options: SearchOptions, *, ties: bool) -> list[Ranked]:
    """The k best of one query's candidates."""
    if options.fusion == "rrf":
        fused = fusion.reciprocal_rank((sides.similarity, sides.bm25), options.rrf_k)
    else:
        fused = fusion.weighted(sides.similarity, sides.bm25, sides.dense_weight)
    order = sorted(fused, key=lambda doc: (-fused[doc], doc))
    ranking = [as_ranked((doc, fused[doc], sides.rows[doc])) for doc in (order if ties else order[:k])]
    return ranking[: end_of_ties(ranking, k)] if ties else ranking


def _place_of(scores: Mapping[int, float]) -> dict[int, int]:
    """The rank of every document by its score, from 1."""
    order = sorted(scores, key=lambda doc: (-scores[doc], doc))
    return {doc: place for place, doc in enumerate(order, start=1)}


def end_of_ties(ranking: Sequence[Ranked], k: int) -> int:
    """Where the k best end, counting those that tie with the last of them; `ranking` is best first."""
    end = min(k, len(ranking))
    while 0 < end < len(ranking) and np.float32(ranking[end].score) == np.float32(ranking[k - 1].score):
        end += 1
    return end


def tied_to_the_end(ranking: Sequence[Ranked], k: int, depth: int) -> bool:
    """Whether a ranking cut at `depth` may have lost documents that tie with the k-th."""
    return len(ranking) >= depth and end_of_ties(ranking, k) == len(ranking)


def best_passages(docs: list[int], scores: list[float], rows: list[int]) -> list[Ranked]:
    """Rank documents by their first and so best passage; row -1, at the end, stands for no passage."""
    count = rows.index(-1) if rows and rows[-1] < 0 else len(rows)
    ranking = list(map(as_ranked, zip(docs[:count], scores, rows, strict=False)))
    if len(set(docs)) == len(docs):
        return ranking
    best: dict[int, Ranked] = {}
    for item in ranking:
        best.setdefault(item.doc, item)
    return list(best.values())
