"""Routes that search and read indexes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from searchkit.errors import InputError
from searchkit.indexer.filters import parse_filter
from searchkit.records import Hit
from searchkit.reranking import RERANK_DEPTH
from searchkit.server.errors import encoded, json_response, not_found
from searchkit.server.indexes import ServedIndex
from searchkit.server.logs import note
from searchkit.server.search import MOST_HITS, MOST_RERANKED, SIMILAR_TO, SearchAnswer, SearchParameters, search
from searchkit.server.service import Current, Service
from searchkit.server.words import MOST_TEXTS, matched_words
from searchkit.tasks import TASKS

router = APIRouter(tags=["search"])


@router.get("/indexes")
async def list_indexes(service: Current) -> Response:
    """The indexes of this service."""
    return json_response({"indexes": await service.read(lambda: [summary(index) for index in service.indexes])})


@router.get("/indexes/{name}")
async def show_index(name: str, service: Current) -> Response:
    """One index, with its metadata keys and their types."""
    index = service.indexes[name]
    return json_response(await service.read(lambda: _described(index)))


@router.get("/tasks")
async def list_tasks() -> Response:
    """The named tasks with their instructions."""
    return json_response({"tasks": [{"name": task.name, "instruction": task.instruction} for task in TASKS]})


@router.post("/indexes/{name}/search")
async def post_search(name: str, parameters: SearchParameters, request: Request, service: Current) -> Response:
    """Search an index."""
    return await _answered(request, service, service.indexes[name], parameters)


class SearchLink(BaseModel):
    """A search as the parameters of a link."""

    model_config = ConfigDict(extra="forbid")

    query: str | None = None
    queries: list[str] | None = Field(default=None, description="Several queries: repeat the parameter.")
    similar_to: str | None = Field(default=None, validation_alias=SIMILAR_TO)
    instruction: str | None = None
    task: str | None = None
    k: int = Field(default=10, ge=1, le=MOST_HITS)
    mode: Literal["dense", "lexical", "hybrid"] = "hybrid"
    where: str | None = Field(default=None, description="A filter on metadata, as JSON.")
    explain: bool = False
    rerank: bool = False
    rerank_depth: int = Field(default=RERANK_DEPTH, ge=1, le=MOST_RERANKED)
    facets: str | None = Field(default=None, description='Metadata keys, separated by commas; "*" for all.')


@router.get("/indexes/{name}/search")
async def get_search(name: str, link: Annotated[SearchLink, Query()], request: Request, service: Current) -> Response:
    """Search an index by a link."""
    values = link.model_dump(exclude_none=True)
    if link.where is not None:
        values["where"] = parse_filter(link.where)
    if link.facets is not None:
        values["facets"] = True if link.facets == "*" else link.facets.split(",")
    try:
        parameters = SearchParameters.model_validate(values)
    except ValidationError as error:
        raise InputError(str(error.errors()[0]["msg"])) from error
    return await _answered(request, service, service.indexes[name], parameters)


@router.get("/indexes/{name}/documents/{id:path}")
async def get_document(name: str, id: str, service: Current) -> Response:
    """A whole document."""
    index = service.indexes[name]
    commit, document = await service.read(lambda: index.get(id))
    if document is None:
        raise not_found("document_not_found", "the index holds no document of that id; ids are compared exactly")
    return json_response({"index": name, "commit": commit, **document.as_row()})


async def _answered(request: Request, service: Service, index: ServedIndex, parameters: SearchParameters) -> Response:
    answer = await search(service, index, parameters)
    note(request, index=index.name, commit=answer.commit, queries=len(answer.queries))
    if service.settings.log_texts:
        note(request, texts=[query.text for query in answer.queries], instruction=parameters.instruction)
    content = _as_json(index, parameters, answer)
    if parameters.explain:
        results = content["results"] if parameters.queries is not None else [content]
        await service.searches.run(lambda: _add_matched_words(index, results, answer))
    large = sum(map(len, answer.hits)) > 100
    return Response(await asyncio.to_thread(encoded, content) if large else encoded(content), 200,
                    media_type="application/json")  # fmt: skip


def _as_json(index: ServedIndex, parameters: SearchParameters, answer: SearchAnswer) -> dict[str, Any]:
    results = []
    for number, hits in enumerate(answer.hits):
        result: dict[str, Any] = {"query": answer.queries[number].text} if answer.queries else {}
        result["hits"] = [hit_row(hit) for hit in hits]
        if answer.facets is not None:
            result["facets"] = {
                key: [{"value": value, "count": count} for value, count in values]
                for key, values in answer.facets[number].counts.items()
            }
            result["facets_over"] = answer.facets[number].documents
        results.append(result)
    shown = {"results": results} if parameters.queries is not None else results[0]
    return {
        "index": index.name,
        "commit": answer.commit,
        "model": index.model,
        "mode": "dense" if parameters.similar_to is not None else answer.mode,
        **shown,
        **({"warnings": answer.warnings} if answer.warnings else {}),
        "timings": {f"{stage}_ms": round(1000 * seconds, 2) for stage, seconds in answer.seconds.items()},
    }


def _add_matched_words(index: ServedIndex, results: list[dict[str, Any]], answer: SearchAnswer) -> None:
    language = index.current().settings["language"]
    for result, query, hits in zip(results, answer.queries, answer.hits, strict=True):
        texts = [f"{hit.title} {hit.text}" for hit in hits[:MOST_TEXTS]]
        result["matched_words"] = matched_words(language, query.text, texts)


def hit_row(hit: Hit) -> dict[str, Any]:
    """A hit as JSON. Not by `asdict` as a whole: metadata may be nested deeper than it can copy."""
    row = {
        "id": hit.id,
        "score": hit.score,
        "rank": hit.rank,
        "title": hit.title,
        "text": hit.text,
        "start": hit.start,
        "stop": hit.stop,
        "metadata": hit.metadata,
    }
    return row if hit.explanation is None else {**row, "explanation": asdict(hit.explanation)}


def summary(index: ServedIndex) -> dict[str, Any]:
    """What an index holds, in a few numbers."""
    engine = index.current()
    return {
        "name": index.name,
        "commit": engine.commit,
        "documents": len(engine),
        "passages": engine.passages,
        "model": index.model,
        "dim": engine.dim,
        "recipe": engine.recipe,
    }


def _described(index: ServedIndex) -> dict[str, Any]:
    keys = {
        name: {
            "types": dict(key.types),
            "examples": [json.loads(each) if _whole(each) else each for each in key.examples],
        }
        for name, key in index.keys().items()
    }
    return {**summary(index), "metadata": keys}


def _whole(example: str) -> bool:
    """Whether an example was not shortened, and so still is JSON."""
    return not example.endswith('..."')
