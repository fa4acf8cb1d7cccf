"""How a ranking is made: by vectors, by words, or by both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from searchkit.errors import InputError
from searchkit.indexer import fusion
from searchkit.indexer.filters import Condition, compile_filter
from searchkit.indexer.lexical import LexicalIndex
from searchkit.indexer.store import Snapshot, Store
from searchkit.indexer.vectors import faiss_index as dense
from searchkit.indexer.vectors import segments
from searchkit.indexer.vectors.faiss_gpu import Gpus
from searchkit.indexer.vectors.recipes import RECIPES

Mode = Literal["dense", "lexical", "hybrid"]
MODES: tuple[Mode, ...] = ("dense", "lexical", "hybrid")

FILTERS = 8
"""Filters whose documents are remembered: SQLite reads all metadata for each, and a commit never changes."""


def as_mode(name: str) -> Mode:
    """A mode by its name; ValueError when there is none."""
    for mode in MODES:
        if mode == name:
            return mode
    raise InputError(f"mode is {name!r}; expected one of {', '.join(MODES)}")


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How a ranking is made.

    Args:
        mode: "dense" (vectors), "lexical" (BM25) or "hybrid" (both).
        fusion: "weighted" or "rrf" (reciprocal rank); for hybrid only.
        dense_weight: Share of the vectors in a weighted fusion, 0 to 1.
        rrf_k: Constant of reciprocal rank fusion.
        depth: Documents that either side puts up for fusion, at least.
        where: Conditions on the documents' metadata (see :mod:`searchkit.indexer.filters`); None has none.
    """

    mode: Mode = "hybrid"
    fusion: str = "weighted"
    dense_weight: float = 0.5
    rrf_k: int = 60
    depth: int = 100
    where: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode is {self.mode!r}; expected one of {', '.join(MODES)}")
        if self.fusion not in fusion.FUSIONS:
            raise InputError(f"fusion is {self.fusion!r}; expected one of {', '.join(fusion.FUSIONS)}")
        if not 0 <= self.dense_weight <= 1:
            raise InputError(f"dense_weight is {self.dense_weight}; expected 0 to 1")


@dataclass(frozen=True, slots=True)
class _Allowed:
    """Which rows may be found: a mask (None: all), and how many documents and passages that are."""

    rows: np.ndarray | None
    documents: int
    passages: int


class Ranked(NamedTuple):  # made for every hit, and a frozen dataclass takes three times as long to make
    """One document in a ranking: its position in the store, its score and the row of its best passage."""

    doc: int
    score: float
    row: int


_ranked: Callable[[tuple[int, float, int]], Ranked] = partial(tuple.__new__, Ranked)  # its own way is Python code


class Ranker:
    """One commit of an index, ready to be asked.

    Args:
        store: Knows what filters let through.
        snapshot: The commit.
        lexical: Gives the words of all its passages, maybe of later ones too; not called before they are needed.
        gpus: Where vectors are searched as far as they can be; None is the processor.
    """

    def __init__(
        self, store: Store, snapshot: Snapshot, lexical: Callable[[], LexicalIndex], gpus: Gpus | None = None
    ) -> None:
        self.store, self.snapshot, self.lexical = store, snapshot, lexical
        self.segments = snapshot.segments
        self.plan, self.tuning = snapshot.storage.plan, snapshot.storage.tuning
        self._searched = gpus.hold(self.segments, self.plan) if gpus else self.segments
        living: np.ndarray | None = None
        if len(snapshot.dead):
            living = np.ones(snapshot.next_row, dtype=bool)
            living[snapshot.dead] = False
        self._filtered: dict[Condition, _Allowed] = {}
        self._living = _Allowed(living, snapshot.documents, snapshot.passages)

    @property
    def documents(self) -> int:
        """How many there are, without the deleted."""
        return self.snapshot.documents

    @property
    def passages(self) -> int:
        """How many there are, without those of deleted documents."""
        return self.snapshot.passages

    def rank(
        self, texts: Sequence[str], vectors: np.ndarray | None, k: int, options: SearchOptions, *, ties: bool = False
    ) -> list[list[Ranked]]:
        """The k best documents a query.

        Args:
            texts: The queries, for their words.
            vectors: The same queries, (len(texts), dim) float32 unit rows; None for a lexical ranking.
            k: Documents wanted.
            options: How to rank.
            ties: Give the documents after the k-th too that score as it does (as 32-bit floats), where it is known
                that they do: of vectors, those that are searched exactly.

        Raises:
            FilterError: The filter in the options cannot be understood.
        """
        allowed = self._living if options.where is None else self._matching(options.where)
        if allowed.passages == 0:
            return [[] for _ in texts]
        if vectors is None or options.mode == "lexical":
            by_words = partial(self._by_words, allowed=allowed)
            return [_with_ties(partial(by_words, text), k) if ties else by_words(text, k) for text in texts]
        if options.mode == "dense":
            if not (ties and RECIPES[self.plan.recipe].exact):
                return self._by_vector(vectors, k, allowed)
            found = self._by_vector(vectors, k + 1, allowed)  # all at once: few have a tie there
            return [
                _with_ties(partial(self._by_one, vector[None], allowed), k, ranking)
                for vector, ranking in zip(vectors, found, strict=True)
            ]
        depth = max(k, options.depth)
        sides = zip(vectors, self._by_vector(vectors, depth, allowed), texts, strict=True)
        return [
            self._fuse(vector, ranking, self._by_words(text, depth, allowed), k, options, ties)
            for vector, ranking, text in sides
        ]

    def _matching(self, where: Mapping[str, Any]) -> _Allowed:
        condition = compile_filter(where)
        found = self._filtered.get(condition)
        if found is None:
            docs, rows = self.store.matching(condition, self.snapshot)
            mask = np.zeros(self.snapshot.next_row, dtype=bool)
            mask[rows] = True
            found = _Allowed(mask, len(docs), len(rows))
            for oldest in list(self._filtered)[: 1 - FILTERS]:
                self._filtered.pop(oldest, None)  # another thread may have done so
            self._filtered[condition] = found
        return found

    def _by_vector(self, vectors: np.ndarray, k: int, allowed: _Allowed) -> list[list[Ranked]]:
        """The k best documents a query by their best passage."""
        wanted = min(k, allowed.documents)
        depth = k if allowed.passages == allowed.documents else 4 * k
        tuning = self.tuning
        while True:
            rows, scores = dense.search(
                self._searched, vectors, depth, plan=self.plan, tuning=tuning, allowed=allowed.rows
            )
            docs = segments.documents_of(self.segments, rows)
            rankings = list(map(_best_passages, docs.tolist(), scores.tolist(), rows.tolist()))
            if all(len(ranking) >= wanted for ranking in rankings):
                return [ranking[:k] for ranking in rankings]
            if depth >= allowed.passages:
                if tuning.probes >= self.plan.lists:
                    return [ranking[:k] for ranking in rankings]
                tuning = replace(tuning, probes=4 * tuning.probes)  # the cells visited held too few that are allowed
            depth = min(4 * depth, max(depth, allowed.passages))

    def _by_one(self, vector: np.ndarray, allowed: _Allowed, k: int) -> list[Ranked]:
        return self._by_vector(vector, k, allowed)[0]

    def _by_words(self, text: str, k: int, allowed: _Allowed) -> list[Ranked]:
        depth = k if allowed.passages == allowed.documents else 4 * k
        while True:
            rows, scores = self.lexical().search(text, depth, self.snapshot.next_row, allowed.rows)
            docs = segments.documents_of(self.segments, rows)
            ranking = _best_passages(docs.tolist(), scores.tolist(), rows.tolist())
            if len(rows) < depth or len(ranking) >= k:
                return ranking[:k]
            depth *= 4

    def _fuse(
        self,
        vector: np.ndarray,
        by_vector: list[Ranked],
        by_words: list[Ranked],
        k: int,
        options: SearchOptions,
        ties: bool,
    ) -> list[Ranked]:
        similarity = {item.doc: item.score for item in by_vector}
        words = {item.doc: item.score for item in by_words}
        # Shown is the passage that vectors found best, if they found one: it carries the meaning asked for.
        rows = {item.doc: item.row for item in (*by_words, *by_vector)}
        if options.fusion == "rrf":
            fused = fusion.reciprocal_rank((similarity, words), options.rrf_k)
        else:
            unscored = [doc for doc in words if doc not in similarity]
            scores = segments.score(self.segments, vector, np.array([rows[doc] for doc in unscored], dtype=np.int64))
            fused = fusion.weighted(
                similarity | dict(zip(unscored, scores.tolist(), strict=True)), words, options.dense_weight
            )
        order = sorted(fused, key=lambda doc: (-fused[doc], doc))
        end = _end([fused[doc] for doc in order], k) if ties else k
        return [Ranked(doc, fused[doc], rows[doc]) for doc in order[:end]]


def _end(scores: Sequence[float], k: int) -> int:
    """Where the k best end, when those that score as the last of them belong to them; `scores` are best first."""
    end = min(k, len(scores))
    while 0 < end < len(scores) and np.float32(scores[end]) == np.float32(scores[k - 1]):
        end += 1
    return end


def _with_ties(rank: Callable[[int], list[Ranked]], k: int, found: list[Ranked] | None = None) -> list[Ranked]:
    """The k best, and those that score as the k-th; `found` is what `rank` gives for one more, if that is known."""
    depth, ranking = k + 1, rank(k + 1) if found is None else found
    while True:
        end = _end([item.score for item in ranking], k)
        if end < len(ranking) or len(ranking) < depth:
            return ranking[:end]
        depth *= 8
        ranking = rank(depth)


def _best_passages(docs: list[int], scores: list[float], rows: list[int]) -> list[Ranked]:
    """Passages, best first, to documents by their first and so best passage; row -1, at the end, stands for none."""
    there = rows.index(-1) if rows and rows[-1] < 0 else len(rows)
    found = list(map(_ranked, zip(docs[:there], scores, rows, strict=False)))
    if len(set(docs)) == len(docs):
        return found
    best: dict[int, Ranked] = {}
    for item in found:
        best.setdefault(item.doc, item)
    return list(best.values())
