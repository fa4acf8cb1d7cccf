"""Search an index: queries become a request, a commit ranks it, and the passages of its hits are fetched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from searchkit.errors import InputError
from searchkit.facets import Facets
from searchkit.indexer.documents import StoredPassage
from searchkit.models.reranker import Reranker
from searchkit.own_vectors import as_queries, brought, checked_rows
from searchkit.place import Place
from searchkit.ranking import Mode, Ranked, Ranker, SearchOptions, SearchRequest
from searchkit.records import Explanation, Hit, Query
from searchkit.request import (
    checked_vectors,
    chosen_instruction,
    chosen_options,
    embed,
    neutral_vectors,
    sides,
    unreadable,
)
from searchkit.reranking import RERANK_DEPTH, rerank_hits
from searchkit.validation import check_text, checked_queries, checked_texts, described, whole_number


class Results(NamedTuple):
    """The hits of every query, the number of the commit that they all come from, and facets if they were asked for."""

    commit: int
    hits: list[list[Hit]]
    facets: list[Facets] = []  # noqa: RUF012  a tuple's default is not shared state


class _Answer(NamedTuple):
    """What one commit returns for a request: rankings, their passages by row, why they are as they are, and facets."""

    commit: int
    rankings: list[list[Ranked]]
    passages: dict[int, StoredPassage]
    explanations: list[list[Explanation]]
    facets: list[Facets]


class Searcher(Place):
    """Searches a place; what it is, an index folder or a collection on a server, its class says besides.

    Threads may share one.
    """

    # Searching: a request is prepared once, ranked in one commit, and its passages are fetched

    def search(
        self,
        query: str | Query | None = None,
        *,
        vector: Any = None,
        instruction: str | None = None,
        task: str | None = None,
        k: int = 10,
        mode: Mode | None = None,
        where: Mapping[str, Any] | None = None,
        options: SearchOptions | None = None,
        explain: bool = False,
        rerank: Reranker | None = None,
        rerank_depth: int = RERANK_DEPTH,
    ) -> list[Hit]:
        """The k best documents for one query, each shown by its best passage.

        Args:
            query: The text to search for; None searches by the vector alone.
            vector: The query's vector, (dim,), where it is known; an index of own vectors has no other.
            instruction: One sentence that says what to find; None for the model's default, "" for none.
            task: A named task (:data:`searchkit.tasks.TASKS`) instead of an instruction.
            k: Number of documents.
            mode: "dense", "lexical" or "hybrid", which ranks by what there is of text and vector; None for hybrid.
            where: A filter on metadata (see :mod:`searchkit.indexer.filters`).
            options: All settings of a ranking, instead of `mode` and `where`.
            explain: Give every hit an :class:`Explanation`: its dense and lexical score and rank, and their weight.
            rerank: A model that reads the first hits together with the query; its order and its scores, 0 to 1, count.
            rerank_depth: How many hits it reads; at least k.

        Raises:
            InputError: The query is empty, the task unknown, or an argument cannot be used or combined with another.
        """
        if query is None and vector is None:
            raise InputError("query is None; expected a string, or a vector in its place")
        if not isinstance(query, str | Query | None):
            raise InputError(f"query is {described(query)}; expected a string")
        return self.search_many(
            None if query is None else [query],
            instruction=instruction, task=task, k=k, mode=mode, where=where, options=options,
            vectors=None if vector is None else [vector], explain=explain, rerank=rerank, rerank_depth=rerank_depth,
        )[0]  # fmt: skip

    def search_many(
        self,
        queries: Iterable[str | Query] | None = None,
        *,
        instruction: str | None = None,
        task: str | None = None,
        k: int = 10,
        mode: Mode | None = None,
        where: Mapping[str, Any] | None = None,
        options: SearchOptions | None = None,
        vectors: Any = None,
        explain: bool = False,
        rerank: Reranker | None = None,
        rerank_depth: int = RERANK_DEPTH,
    ) -> list[list[Hit]]:
        """Like `search` for many queries; a :class:`Query` with an instruction of its own keeps it.

        `vectors` are those of the queries, (n, dim): as `embed` returns them, so that they are not embedded again, or
        from where those of the documents came. Without `queries`, they are searched for alone.
        """
        options = chosen_options(options, mode, where)
        instruction, k = chosen_instruction(instruction, task), whole_number("k", k, 1)
        if rerank is None:
            request = self._request(queries, instruction, k, options, vectors=vectors)
            return self.results(request, explain=explain).hits
        if not isinstance(rerank, Reranker):
            raise InputError(f"rerank is {described(rerank)}; expected a searchkit.Reranker")
        depth = max(k, whole_number("rerank_depth", rerank_depth, 1))
        if queries is None:
            raise InputError("a reranker compares texts: give queries besides their vectors")
        checked = checked_queries(queries)
        found = self.results(self._request(checked, instruction, depth, options, vectors=vectors), explain=explain).hits
        pairs = zip(checked, found, strict=True)
        return [rerank_hits(rerank, query, hits, instruction, depth)[:k] for query, hits in pairs]

    def request(
        self, queries: Iterable[str | Query] | None, *, k: int, options: SearchOptions, vectors: Any = None
    ) -> SearchRequest:
        """A request for `results`: validated, and embedded where its mode needs vectors that did not come."""
        return self._request(queries, None, k, options, vectors=vectors)

    def results(
        self, request: SearchRequest, *, explain: bool = False, facets: bool | Sequence[str] = False
    ) -> Results:
        """The hits of a request that was prepared before: validated, and embedded where its mode needs vectors.

        `facets` are metadata keys to count (see `facets`); True for all.
        """
        self._check_open()
        answer = self._answer(request, fetch=True, explain=explain, facets=facets)
        reasons: Sequence[Sequence[Explanation]] = answer.explanations or [()] * len(answer.rankings)
        explained = zip(answer.rankings, reasons, strict=True)
        hits = [as_hits(ranking, answer.passages, why) for ranking, why in explained]
        return Results(answer.commit, hits, answer.facets)

    def rank(
        self,
        queries: Iterable[str | Query],
        *,
        instruction: str | None = None,
        task: str | None = None,
        k: int = 10,
        options: SearchOptions | None = None,
        vectors: Any = None,
        ties: bool = False,
    ) -> list[list[Ranked]]:
        """The ranking behind `search_many`, without fetching the documents' texts.

        With `ties`, also the documents that score as the k-th does, of which a cut keeps those that were added first.
        """
        options = chosen_options(options)
        request = self._request(queries, chosen_instruction(instruction, task), k, options, vectors=vectors, ties=ties)
        return self._answer(request).rankings

    def similar(self, id: str, *, k: int = 10, where: Mapping[str, Any] | None = None) -> list[Hit]:
        """The k documents nearest to one that the index holds, by their vectors; no model is needed.

        A document scores as its passage that is nearest to any passage of the given one, which is not among the hits.

        Raises:
            InputError: The index holds no document of that id, or no vector of it.
        """
        return self.similar_results(id, k=k, where=where).hits[0]

    def similar_results(
        self, id: str, *, k: int = 10, where: Mapping[str, Any] | None = None, facets: bool | Sequence[str] = False
    ) -> Results:
        """Like `similar`, as a result with its commit and facets."""
        check_text("id", id)
        k = whole_number("k", k, 1)
        options = chosen_options(None, "dense", where)
        self._check_open()
        found = self.vectors_by_doc(id)
        if found is None:
            raise InputError(f"the index holds no document {described(id)}; documents are looked up by their exact id")
        doc, vectors = found
        if not len(vectors):
            raise InputError(f"document {described(id)} has no vector to compare with those of others")
        request = SearchRequest([id] * len(vectors), vectors, k + 1, options)
        answer = self._answer(request, fetch=True, facets=facets)
        hits = as_hits(merged(answer.rankings, k, without=doc), answer.passages)
        return Results(answer.commit, [hits], answer.facets[:1])

    def facets(
        self,
        keys: Sequence[str] | None,
        query: str = "",
        *,
        mode: Mode | None = None,
        where: Mapping[str, Any] | None = None,
        options: SearchOptions | None = None,
    ) -> Facets:
        """Count metadata values over every document that a search matches, however many hits it returns.

        Vectors tell nearer from farther but leave nothing out, so a dense or hybrid search matches every document that
        passes its filter (and has a vector); a lexical one, those that also hold a word of the query.

        Args:
            keys: Metadata keys, as filters write them; None for all there are.
            query: The text to search for; it matters in lexical mode.
            mode, where, options: As `search` takes them.

        Raises:
            InputError: An argument cannot be used; FilterError, a kind of it, for a filter or a key.
        """
        options = chosen_options(options, mode, where)
        keys = None if keys is None else checked_texts("keys", keys)
        check_text("query", query)
        self._check_open()
        return self._in_one_commit(lambda ranker: ranker.facets([query], options, keys))[0]

    def embed(self, queries: Iterable[str | Query], instruction: str | None = None) -> np.ndarray:
        """Embed queries, each with its own instruction or else with the given one, as (n, dim) float32 unit rows.

        Without a model, these are the vectors that the queries bring.
        """
        checked = checked_queries(queries)
        if not self.has_model and (vectors := brought(checked)) is not None:
            return as_queries(vectors, len(checked), self.similarity)
        return embed(self.embedder, checked, chosen_instruction(instruction, None))

    def warm_up(self) -> None:
        """Load the model, so that loading it does not count as search time."""
        if self.has_model:
            self.embedder.encode_queries(["warm up"])

    def _request(
        self,
        queries: Iterable[str | Query] | None,
        instruction: str | None,
        k: int,
        options: SearchOptions,
        *,
        vectors: Any = None,
        ties: bool = False,
    ) -> SearchRequest:
        """Validate and embed queries, once whatever happens to the index meanwhile."""
        self._check_open()
        if queries is None and vectors is None:
            raise InputError(
                "queries is None; expected a list of strings or of searchkit.Query, or vectors in its place"
            )
        checked = None if queries is None else checked_queries(queries)
        k = whole_number("k", k, 1)
        if vectors is None and checked and options.mode != "lexical":
            vectors = brought(checked)
        if vectors is not None:
            count = len(list(checked_rows(vectors, self.dim))) if checked is None else len(checked)
            if self.has_model:
                vectors = checked_vectors(vectors, count, self.dim)
            else:
                vectors = as_queries(vectors, count, self.similarity)
        elif options.mode == "dense":
            self.require_model()
        if vectors is not None or not self.has_model:
            options = sides(options, [query.text.strip() for query in checked or ()], vectors=vectors is not None)
        texts = [""] * len(vectors) if checked is None else [query.text for query in checked]
        neutral = noise = None
        if not texts or self.passages == 0:
            vectors = None  # there is nothing to search, and no model to load
        elif vectors is None and checked and options.mode != "lexical":
            vectors = self.embed(checked, instruction)
            if options.mode == "hybrid" and options.fusion == "adaptive":
                neutral = neutral_vectors(self.embedder, checked, instruction, vectors)
                noise = unreadable(self.embedder, texts)
        return SearchRequest(texts, vectors, k, options, ties, neutral, noise)

    def _answer(
        self,
        request: SearchRequest,
        *,
        fetch: bool = False,
        explain: bool = False,
        facets: bool | Sequence[str] = False,
    ) -> _Answer:
        """Rank in one commit, and fetch the passages."""
        keys = None if isinstance(facets, bool) else checked_texts("facets", facets)
        was_empty = request.vectors is None and request.options.mode != "lexical"

        def answer(ranker: Ranker[Any]) -> _Answer:
            rankings = [[] for _ in request.texts] if was_empty else ranker.rank(request)
            explanations = ranker.explain(request, rankings) if explain else []
            passages = self.passages_of([item.row for r in rankings for item in r]) if fetch else {}
            counts = [] if facets is False else ranker.facets(request.texts, request.options, keys)
            return _Answer(ranker.commit, rankings, passages, explanations, counts)

        return self._in_one_commit(answer)


def merged(rankings: Iterable[Iterable[Ranked]], k: int, *, without: int) -> list[Ranked]:
    """The k best documents over several rankings, each by its best score; `without` is left out."""
    best: dict[int, Ranked] = {}
    for item in sorted((item for ranking in rankings for item in ranking), key=lambda item: (-item.score, item.doc)):
        if item.doc != without:
            best.setdefault(item.doc, item)
    return list(best.values())[:k]


def as_hits(
    ranking: Sequence[Ranked], passages: Mapping[int, StoredPassage], explanations: Sequence[Explanation] = ()
) -> list[Hit]:
    """The hits of one ranking, from its passages by row."""
    hits = []
    for rank, (item, explanation) in enumerate(zip_longest(ranking, explanations), start=1):
        passage = passages[item.row]
        hits.append(
            Hit(
                id=passage.id,
                score=item.score,
                rank=rank,
                title=passage.title,
                text=passage.text,
                start=passage.start,
                stop=passage.stop,
                metadata=passage.metadata,
                explanation=explanation,
            )
        )
    return hits
