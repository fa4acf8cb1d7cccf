"""The rankings of a collection in Milvus: either side from the server, joined as those of a folder are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from searchkit.errors import InputError, StoreError
from searchkit.facets import Facets, count_values
from searchkit.indexer.analysis import Analyzer
from searchkit.ranking import Ranked, Ranker, SearchOptions, SearchRequest, best_passages, end_of_ties, tied_to_the_end
from searchkit.remote.collection import K1, MOST, B, Collection, Found
from searchkit.remote.filters import NOTHING, to_expression
from searchkit.remote.rows import words_of_query

_TOGETHER = 64
"""Queries whose candidates are fetched together."""
_KEPT = 20_000
"""Vectors of candidates that are kept for other queries; rows never change."""


class CollectionRanker(Ranker[str]):
    """One commit of a collection, ready to rank.

    Args:
        collection: The collection.
        language: Of the lexical side.
        before: An earlier one, whose vectors are kept.
    """

    def __init__(self, collection: Collection, language: str, before: CollectionRanker | None = None) -> None:
        self.collection, self.state = collection, collection.state
        self._analyzer = Analyzer(language)
        self._vectors: dict[int, np.ndarray] = {} if before is None else before._vectors
        self._idf: dict[str, float] = {}

    @property
    def commit(self) -> int:
        """Number of the commit."""
        return self.state.generation

    @property
    def documents(self) -> int:
        """Documents in the commit."""
        return self.state.documents

    @property
    def passages(self) -> int:
        """Passages in the commit."""
        return self.state.passages

    def rank(self, request: SearchRequest) -> list[list[Ranked]]:
        """The k best documents of every query; the vectors of candidates are fetched for some queries at a time."""
        if request.options.mode != "hybrid" or len(request.texts) <= _TOGETHER:
            return super().rank(request)
        rankings: list[list[Ranked]] = []
        for start in range(0, len(request.texts), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            vectors, neutral, unreadable = request.vectors, request.neutral, request.unreadable
            some = replace(
                request,
                texts=request.texts[part],
                vectors=None if vectors is None else vectors[part],
                neutral=None if neutral is None else neutral[part],
                unreadable=None if unreadable is None else unreadable[part],
            )
            rankings += super().rank(some)
        return rankings

    # Vectors

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of some passages that have one, (n, dim) float32."""
        return self.state.similarity.vectors(self._stored(rows))

    def similarities(self, vector: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """How similar a query (dim,) is to some passages that have a vector (n,), as (n,) float32."""
        stored = self._stored(rows)
        if self.state.similarity.euclidean:
            return np.asarray(-np.linalg.norm(self.state.similarity.vectors(stored) - vector, axis=1))
        return np.asarray(stored @ np.asarray(vector, np.float32))

    def have_vectors(self, rows: np.ndarray) -> np.ndarray:
        """Whether each of some passages has a vector, (n,) bool."""
        if self.state.all_have_vectors:
            return np.ones(len(rows), dtype=bool)
        found = self.collection.rows(rows.tolist(), ["has_vector"])
        return np.array([found[row]["has_vector"] for row in rows.tolist()], dtype=bool)

    def expect(self, rows: Sequence[int]) -> None:
        """Fetch the vectors of all candidates at once, for all queries."""
        self._fetch(rows)

    def _stored(self, rows: np.ndarray) -> np.ndarray:
        self._fetch(rows.tolist())
        kept = self._vectors
        if not len(rows):
            return np.empty((0, self.state.similarity.width), np.float32)
        return np.stack([kept[row] for row in rows.tolist()])

    def _fetch(self, rows: Sequence[int]) -> None:
        wanted = set(rows)
        missing = wanted - self._vectors.keys()
        kept = self._vectors if len(self._vectors) + len(missing) <= _KEPT else {
            row: vector for row, vector in self._vectors.items() if row in wanted
        }  # fmt: skip
        found = self.collection.rows(missing, ["vector"])
        if len(found) < len(missing):
            raise StoreError(f"{self.collection.address} lacks {len(missing) - len(found)} rows that it found before")
        # Another thread may be reading: it keeps what it has.
        self._vectors = kept | {row: np.asarray(item["vector"], np.float32) for row, item in found.items()}

    # Either side

    def allowed(self, where: Mapping[str, Any] | None) -> str | None:
        """The expression of a filter, "" for none; None where there is nothing at all."""
        expression = "" if not where else to_expression(where)
        return None if not self.passages or expression == NOTHING else expression

    def dense(self, vectors: np.ndarray, k: int, allowed: str, *, ties: bool = False) -> list[list[Ranked]]:
        """The k best documents of every query by the similarity of their best passage."""
        similarity, kind = self.state.similarity, self.state.kind
        queries = similarity.queries(np.asarray(vectors, np.float32))
        expression = allowed
        if not self.state.all_have_vectors:
            expression = f"has_vector == true and ({allowed})" if allowed else "has_vector == true"
        effort = dict(kind.search)

        def search(numbers: Sequence[int], depth: int) -> list[list[Found]]:
            if "ef" in effort:
                effort["ef"] = max(effort["ef"], depth)
            found = self.collection.nearest(queries[list(numbers)], depth, expression, effort)
            if effort != kind.most and kind.most and allowed and any(len(one) < depth for one in found):
                # What was visited held too few that are allowed.
                found = self.collection.nearest(queries[list(numbers)], depth, expression, {**effort, **kind.most})
            return found

        rankings = self._ranked(len(queries), k, search, exact=kind.exact, ties=ties)
        if not similarity.euclidean:
            return rankings
        self.expect([item.row for ranking in rankings for item in ranking])
        return [self._by_distance(vector, ranking) for vector, ranking in zip(vectors, rankings, strict=True)]

    def lexical(self, texts: Sequence[str], k: int, allowed: str, *, ties: bool = False) -> list[list[Ranked]]:
        """The k best documents of every query by the BM25 score of their best passage."""
        queries = [" ".join(words_of_query(text, self._analyzer)) for text in texts]
        asked = [number for number, query in enumerate(queries) if query]

        def search(numbers: Sequence[int], depth: int) -> list[list[Found]]:
            return self.collection.matching([queries[asked[number]] for number in numbers], depth, allowed)

        rankings: list[list[Ranked]] = [[] for _ in texts]
        found = self._ranked(len(asked), k, search, exact=True, ties=ties) if asked else []
        for number, ranking in zip(asked, found, strict=True):
            rankings[number] = ranking
        return rankings

    def _ranked(
        self,
        count: int,
        k: int,
        search: Callable[[Sequence[int], int], list[list[Found]]],
        *,
        exact: bool,
        ties: bool,
    ) -> list[list[Ranked]]:
        """The k best documents of each query; of equals at the end, an exact search keeps those that came first."""
        if k > MOST:
            raise InputError(f"k is {k}, and Milvus returns at most {MOST:,} rows; ask for fewer")
        rankings: list[list[Ranked]] = [[] for _ in range(count)]
        depth = k + 1 if exact or ties else k
        if self.passages != self.documents:
            depth *= 4
        pending = list(range(count))
        while pending:
            depth = min(depth, MOST)
            deeper = []
            for number, found in zip(pending, search(pending, depth), strict=True):
                docs, rows, scores = ([*column] for column in zip(*found, strict=True)) if found else ([], [], [])
                rankings[number] = best_passages(docs, scores, rows)
                enough = len(rankings[number]) >= k
                if exact and enough:
                    enough = not tied_to_the_end(rankings[number], k, len(rankings[number]))
                if not enough and len(found) >= depth and depth < MOST:
                    deeper.append(number)
            pending, depth = deeper, depth * 4
        return [ranking[: end_of_ties(ranking, k)] if ties and exact else ranking[:k] for ranking in rankings]

    def _by_distance(self, vector: np.ndarray, ranking: list[Ranked]) -> list[Ranked]:
        scores = self.similarities(vector, np.array([item.row for item in ranking], dtype=np.int64))
        scored = [Ranked(item.doc, score, item.row) for item, score in zip(ranking, scores.tolist(), strict=True)]
        return sorted(scored, key=lambda item: (-item.score, item.doc))

    # What BM25 could give

    def ceiling(self, text: str) -> tuple[float, int]:
        """The highest BM25 score that a passage of usual length could have for a query, and its distinct terms."""
        words = words_of_query(text, self._analyzer)
        distinct = sorted(set(words))
        self._read_idf([word for word in distinct if word not in self._idf])
        return 0.8 * (K1 + 1) * sum(self._idf[word] for word in words), len(distinct)

    def _read_idf(self, words: Sequence[str]) -> None:
        """Inverse document frequencies, from the score of each term's best passage: Milvus does not tell them."""
        if not words:
            return
        mean = self.state.terms / max(1, self.state.counted)
        best = [found[0] if found else None for found in self.collection.matching(words, 1, "")]
        texts = self.collection.rows([one.row for one in best if one], ["words"])
        for word, one in zip(words, best, strict=True):
            if one is None or one.row not in texts:
                self._idf[word] = math.log1p((self.state.passages + 0.5) / 0.5)
                continue
            terms = texts[one.row]["words"].split()
            frequency = terms.count(word)
            length = len(terms) / mean if mean else 1.0
            saturated = frequency * (K1 + 1) / (frequency + K1 * (1 - B + B * length))
            self._idf[word] = one.score / saturated if saturated else 0.0

    # Facets

    def facets(self, texts: Sequence[str], options: SearchOptions, keys: Sequence[str] | None) -> list[Facets]:
        """Count metadata values over all documents that each query matches; see :meth:`Searcher.facets`."""
        allowed = self.allowed(options.where)
        if allowed is None:
            return [Facets(0, {})] * len(texts)
        counted: dict[str, Facets] = {}
        answers = []
        for text in texts:
            expression = self._matches(text, options, allowed)
            if expression not in counted:
                documents = {int(row["doc"]): row["metadata"] for row in self._matching_rows(expression)}
                counted[expression] = count_values(documents.values(), keys)
            answers.append(counted[expression])
        return answers

    def _matches(self, text: str, options: SearchOptions, allowed: str) -> str:
        parts = [] if options.mode == "lexical" else ["has_vector == true"]
        if options.mode != "dense":
            words = words_of_query(text, self._analyzer)
            parts.append(f'text_match(words, "{" ".join(words)}")' if words else NOTHING)
        if options.mode != "lexical" and self.state.all_have_vectors:
            return allowed
        either = f"({' or '.join(parts)})"
        return f"{either} and ({allowed})" if allowed else either

    def _matching_rows(self, expression: str) -> Any:
        if expression == f"({NOTHING})":
            return []
        return self.collection.scan(["doc", "metadata"], expression)
