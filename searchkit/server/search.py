"""One search of the service: parameters in, an answer of one commit out. Routes and MCP share it."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from searchkit.errors import InputError
from searchkit.facets import Facets
from searchkit.models.embedder import Embedder
from searchkit.ranking import SearchOptions, SearchRequest
from searchkit.records import Hit, Query
from searchkit.request import chosen_instruction, chosen_options, is_instructed, unreadable
from searchkit.reranking import RERANK_DEPTH
from searchkit.searcher import Results
from searchkit.server.embedding import Text
from searchkit.server.indexes import ServedIndex
from searchkit.server.service import Service
from searchkit.tasks import WEB_SEARCH
from searchkit.validation import checked_queries

MOST_HITS = 1_000
MOST_QUERIES = 100
MOST_RERANKED = 200
LONGEST_QUERY = 20_000
"""Characters; lexical search takes time for every term."""

SIMILAR_TO = AliasChoices("similar_to", "similar-to")
FILTER_EXAMPLE = {"year": {"$gte": 2015}}


class QueryItem(BaseModel):
    """A query with an instruction or a vector of its own."""

    model_config = ConfigDict(extra="forbid")

    text: str = ""
    instruction: str | None = None
    vector: list[float] | None = None


class SearchParameters(BaseModel):
    """A search: one query, several, or a document whose like is wanted."""

    model_config = ConfigDict(extra="forbid")

    query: str | None = Field(default=None, description="What to search for.")
    vector: list[float] | None = Field(
        default=None, description="The query's vector, alone or with query, for an index whose vectors its users made."
    )
    queries: list[str | QueryItem] | None = Field(default=None, description="Several queries instead of one.")
    similar_to: str | None = Field(
        default=None, validation_alias=SIMILAR_TO, description="Id of a document, instead of a query."
    )
    instruction: str | None = Field(default=None, description="One sentence that says what to find; empty for none.")
    task: str | None = Field(default=None, description="A named task instead of an instruction; see /tasks.")
    k: int = Field(default=10, ge=1, le=MOST_HITS, description="Documents a query.")
    mode: Literal["dense", "lexical", "hybrid"] = "hybrid"
    where: dict[str, Any] | None = Field(default=None, description="A filter on metadata.", examples=[FILTER_EXAMPLE])
    explain: bool = Field(default=False, description="Say why each hit stands where it does.")
    facets: bool | list[str] = Field(
        default=False,
        description="Count values of these metadata keys over all documents that match; true for all keys.",
    )

    rerank: bool = Field(default=False, description="Put the first hits in the order of the service's reranker.")
    rerank_depth: int = Field(default=RERANK_DEPTH, ge=1, le=MOST_RERANKED, description="Hits that it reads.")


class SearchAnswer(NamedTuple):
    """What a search found, all of it in one commit.

    Args:
        commit: Number of the commit.
        mode: How it was ranked: hybrid is dense or lexical where there is only a vector, or no vector.
        queries: The queries; empty for a document's like.
        hits: The best documents of every query.
        facets: Counts over all documents that each query matches; None unless requested.
        warnings: What is wrong with a filter that matched nothing, or with a facet that no document has.
        seconds: Time by stage: "embed", "rank", "rerank".
    """

    commit: int
    mode: str
    queries: list[Query]
    hits: list[list[Hit]]
    facets: list[Facets] | None
    warnings: list[str]
    seconds: dict[str, float]


async def search(service: Service, index: ServedIndex, parameters: SearchParameters) -> SearchAnswer:
    """Search one index.

    Raises:
        InputError: Parameters cannot be used or combined.
        ServerError: Too much waits already (429).
    """
    queries = _queries(parameters)
    instruction = chosen_instruction(parameters.instruction, parameters.task)
    depth = parameters.k
    if parameters.rerank:
        depth = max(depth, _rerank_depth(service, parameters, queries))
    with service.searches.admission.admitted(max(1, len(queries))):
        # In a thread: compiling a filter of ten thousand conditions takes a while.
        options = await service.searches.run(lambda: chosen_options(None, parameters.mode, parameters.where))
        began = perf_counter()
        vectors = neutral = embedder = None
        own = index.model is None or any(query.vector is not None for query in queries)
        if queries and options.mode != "lexical" and not own:
            vectors, neutral = await _vectors(service, index, queries, instruction, options)
            embedder = service.model_of(index).embedder
        embedded = perf_counter()
        request = SearchRequest([query.text for query in queries], vectors, depth, options, neutral=neutral)
        if queries and own:
            request = await service.searches.run(lambda: index.current().request(queries, k=depth, options=options))
        results, warnings = await service.searches.run(lambda: _ranked(index, parameters, request, embedder))
        ranked = perf_counter()
    seconds = {"embed": embedded - began, "rank": ranked - embedded}
    found = results.hits
    if parameters.rerank and service.reranker is not None:
        began = perf_counter()
        found = await service.reranker.hits(queries, found, instruction, max(parameters.k, parameters.rerank_depth))
        seconds["rerank"] = perf_counter() - began
    for stage, duration in seconds.items():
        service.metrics.stages.labels(stage).observe(duration)
    hits = [hits[: parameters.k] for hits in found]
    facets = None if parameters.facets is False else results.facets
    return SearchAnswer(results.commit, request.options.mode, queries, hits, facets, warnings, seconds)


def _rerank_depth(service: Service, parameters: SearchParameters, queries: list[Query]) -> int:
    """How many hits of each query are needed for the reranker."""
    if service.reranker is None:
        raise InputError("this service has no reranker; start it with --rerank MODEL, or omit rerank")
    if parameters.similar_to is not None:
        raise InputError("similar_to compares documents, and a reranker reads a query; omit rerank")
    depth = max(parameters.k, parameters.rerank_depth)
    if depth * len(queries) > MOST_HITS:
        raise InputError(f"{len(queries)} queries with {depth} hits each are too many to rerank; at most {MOST_HITS}")
    return depth


def _queries(parameters: SearchParameters) -> list[Query]:
    given = [name for name in ("query", "queries", "similar_to") if getattr(parameters, name) is not None]
    if parameters.vector is not None:
        if given not in ([], ["query"]):
            raise InputError(f"vector and {given[0]} came; vector goes with query, or alone")
    elif len(given) != 1:
        came = " and ".join(given) or "none"
        raise InputError(f"{came} of query, queries and similar_to came; give exactly one")
    if parameters.similar_to is not None:
        if parameters.instruction or parameters.task or parameters.explain:
            raise InputError("similar_to compares documents, so it takes no instruction, task or explain; omit them")
        return []
    items: list[str | QueryItem] = list(parameters.queries or [])
    if parameters.queries is None:
        items = [parameters.query or ""]
        if parameters.vector is not None:
            items = [QueryItem(text=parameters.query or "", vector=parameters.vector)]
    if not 1 <= len(items) <= MOST_QUERIES:
        raise InputError(f"{len(items)} queries came; expected 1 to {MOST_QUERIES}")
    queries = checked_queries(
        [
            item if isinstance(item, str) else Query("", item.text, item.instruction, item.vector)
            for item in items
            if item is not None
        ]
    )
    for query in queries:
        if len(query.text) > LONGEST_QUERY:
            raise InputError(f"a query has {len(query.text)} characters; expected at most {LONGEST_QUERY}")
    if parameters.k * len(queries) > 10 * MOST_HITS:
        raise InputError(f"{len(queries)} queries with k {parameters.k} are too many hits; at most {10 * MOST_HITS}")
    return queries


async def _vectors(
    service: Service, index: ServedIndex, queries: list[Query], instruction: str | None, options: SearchOptions
) -> tuple[np.ndarray, np.ndarray | None]:
    """The queries' vectors and, where fusion needs them, those under the neutral instruction, embedded together."""
    model = service.model_of(index)
    own = [query.instruction if query.instruction is not None else instruction for query in queries]
    texts = [Text(query.text, model.resolved(each)) for query, each in zip(queries, own, strict=True)]
    if options.mode != "hybrid":
        return (await model.embed(texts)).rows, None
    changed = [number for number, each in enumerate(own) if is_instructed(model.embedder, each)]
    plain = model.resolved(WEB_SEARCH) if changed else ""
    rows = (await model.embed([*texts, *(Text(queries[number].text, plain) for number in changed)])).rows
    vectors = rows[: len(queries)]
    neutral = vectors.copy()
    neutral[changed] = rows[len(queries) :]
    return vectors, neutral


def _ranked(
    index: ServedIndex, parameters: SearchParameters, request: SearchRequest, embedder: Embedder | None
) -> tuple[Results, list[str]]:
    engine = index.current()
    if embedder is not None:
        request = replace(request, unreadable=unreadable(embedder, request.texts))
    if parameters.similar_to is not None:
        results = engine.similar_results(
            parameters.similar_to, k=request.k, where=parameters.where, facets=parameters.facets
        )
    else:
        results = engine.results(request, explain=parameters.explain, facets=parameters.facets)
    warnings = []
    if parameters.where is not None and not any(results.hits):
        warnings = [fault.message for fault in engine.filter_faults(parameters.where)]
    if isinstance(parameters.facets, list):
        missing = [key for key in parameters.facets if not any(key in facets.counts for facets in results.facets)]
        warnings += engine.absent_keys(missing)
    return results, warnings
