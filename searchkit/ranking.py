"""How a ranking is made: by vectors, by words, or by both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from searchkit.indexer import dense, fusion
from searchkit.indexer.lexical import LexicalIndex
from searchkit.indexer.store import Store

Mode = Literal["dense", "lexical", "hybrid"]
MODES: tuple[Mode, ...] = ("dense", "lexical", "hybrid")


def as_mode(name: str) -> Mode:
    """A mode by its name; ValueError when there is none."""
    for mode in MODES:
        if mode == name:
            return mode
    raise ValueError(f"mode is {name!r}; expected one of {', '.join(MODES)}")


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How a ranking is made.

    Args:
        mode: "dense" (vectors), "lexical" (BM25) or "hybrid" (both).
        fusion: "weighted" or "rrf" (reciprocal rank); for hybrid only.
        dense_weight: Share of the vectors in a weighted fusion, 0 to 1.
        rrf_k: Constant of reciprocal rank fusion.
        depth: Documents that either side puts up for fusion, at least.
    """

    mode: Mode = "hybrid"
    fusion: str = "weighted"
    dense_weight: float = 0.5
    rrf_k: int = 60
    depth: int = 100

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; expected one of {', '.join(MODES)}")
        if self.fusion not in fusion.FUSIONS:
            raise ValueError(f"fusion is {self.fusion!r}; expected one of {', '.join(fusion.FUSIONS)}")
        if not 0 <= self.dense_weight <= 1:
            raise ValueError(f"dense_weight is {self.dense_weight}; expected 0 to 1")


@dataclass(frozen=True, slots=True)
class Ranked:
    """One document in a ranking: its position in the store, its score and the row of its best passage."""

    doc: int
    score: float
    row: int


@dataclass(frozen=True, slots=True)
class Ranker:
    """One commit of an index, ready to be asked.

    Args:
        store: Says which document a passage belongs to.
        segments: The vectors of all passages.
        lexical: The words of all passages, maybe of later ones too.
        documents: How many there are.
        passages: How many there are.
    """

    store: Store
    segments: Sequence[dense.Segment]
    lexical: LexicalIndex
    documents: int
    passages: int

    def rank(
        self, texts: Sequence[str], vectors: np.ndarray | None, k: int, options: SearchOptions
    ) -> list[list[Ranked]]:
        """The k best documents a query.

        Args:
            texts: The queries, for their words.
            vectors: The same queries, (len(texts), dim) float32 unit rows; None for a lexical ranking.
            k: Documents wanted.
            options: How to rank.
        """
        if self.passages == 0:
            return [[] for _ in texts]
        if vectors is None or options.mode == "lexical":
            return [self._by_words(text, k) for text in texts]
        if options.mode == "dense":
            return self._by_vector(vectors, k)
        depth = max(k, options.depth)
        found = zip(vectors, self._by_vector(vectors, depth), texts, strict=True)
        return [
            self._fuse(vector, ranking, self._by_words(text, depth), options)[:k] for vector, ranking, text in found
        ]

    def _by_vector(self, vectors: np.ndarray, k: int) -> list[list[Ranked]]:
        """The k best documents a query by their best passage."""
        wanted = min(k, self.documents)
        depth = k if self.passages == self.documents else 4 * k
        while True:
            rows, scores = dense.search(self.segments, vectors, depth)
            docs = self.store.documents_of(rows)
            rankings = [_best_passages(*query) for query in zip(docs, scores, rows, strict=True)]
            if depth >= self.passages or all(len(ranking) >= wanted for ranking in rankings):
                return [ranking[:k] for ranking in rankings]
            depth *= 4

    def _by_words(self, text: str, k: int) -> list[Ranked]:
        depth = k if self.passages == self.documents else 4 * k
        while True:
            rows, scores = self.lexical.search(text, depth, rows_below=self.passages)
            ranking = _best_passages(self.store.documents_of(rows), scores, rows)
            if len(rows) < depth or len(ranking) >= k:
                return ranking[:k]
            depth *= 4

    def _fuse(
        self, vector: np.ndarray, by_vector: list[Ranked], by_words: list[Ranked], options: SearchOptions
    ) -> list[Ranked]:
        similarity = {item.doc: item.score for item in by_vector}
        words = {item.doc: item.score for item in by_words}
        # Shown is the passage that vectors found best, if they found one: it carries the meaning asked for.
        rows = {item.doc: item.row for item in (*by_words, *by_vector)}
        if options.fusion == "rrf":
            fused = fusion.reciprocal_rank((similarity, words), options.rrf_k)
        else:
            unscored = [doc for doc in words if doc not in similarity]
            scores = dense.score(self.segments, vector, np.array([rows[doc] for doc in unscored], dtype=np.int64))
            fused = fusion.weighted(
                similarity | dict(zip(unscored, scores.tolist(), strict=True)), words, options.dense_weight
            )
        return [Ranked(doc, fused[doc], rows[doc]) for doc in sorted(fused, key=lambda doc: (-fused[doc], doc))]


def _best_passages(docs: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> list[Ranked]:
    """Passages, best first, to documents by their first and so best passage."""
    best: dict[int, Ranked] = {}
    for doc, score, row in zip(docs.tolist(), scores.tolist(), rows.tolist(), strict=True):
        if doc not in best:
            best[doc] = Ranked(doc, score, row)
    return list(best.values())
