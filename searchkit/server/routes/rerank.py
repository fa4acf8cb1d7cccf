"""Rerank as Cohere's clients ask for it, with an instruction on top."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from searchkit.errors import InputError
from searchkit.server.embedding import Text
from searchkit.server.errors import json_response
from searchkit.server.logs import note
from searchkit.server.routes.embeddings import check_input, instructions_of
from searchkit.server.service import Current

router = APIRouter(tags=["Cohere"])

MOST_DOCUMENTS = 2_048


class RerankDocument(BaseModel):
    """A document as an object, of which the text counts."""

    model_config = ConfigDict(extra="allow")

    text: str


class RerankRequest(BaseModel):
    """Cohere's fields of both versions, then ours."""

    model_config = ConfigDict(extra="forbid")

    query: str
    documents: list[str | RerankDocument]
    model: str | None = None
    top_n: int | None = Field(default=None, ge=1)
    max_tokens_per_doc: int | None = Field(default=None, ge=1)
    return_documents: bool = False
    rank_fields: list[str] | None = Field(default=None, description='Only ["text"].')
    max_chunks_per_doc: int | None = Field(default=None, description="Ignored.")
    priority: int | None = Field(default=None, description="Ignored.")
    instruction: str | None = Field(default=None, description="One sentence that says what is relevant.")
    instruct: str | None = Field(default=None, description="The same.")
    task: str | None = Field(default=None, description="A named task instead of an instruction.")


@router.post("/v1/rerank")
@router.post("/v2/rerank")
async def rerank(body: RerankRequest, request: Request, service: Current) -> Response:
    """Order documents by their relevance to a query.

    They are scored by the service's reranker if it has one. Else, or where `model` names an embedder, the score is the
    cosine of their embeddings, mapped from -1..1 to 0..1. `scored_by` says which.
    """
    texts = _texts(body)
    (instruction,) = instructions_of(body.instruction, body.instruct, body.task, 1)
    reranker = service.reranker
    tokens = {}
    if reranker is not None and body.model in (None, reranker.name):
        name, scored_by = reranker.name, "cross-encoder"
        if body.max_tokens_per_doc is not None:
            most = body.max_tokens_per_doc
            texts = await service.read(lambda: [_shortened(reranker.reranker.offsets, text, most) for text in texts])
        scores = await reranker.scores(body.query, texts, instruction)
    else:
        model, _ = service.model_named(body.model)
        name, scored_by = model.name, "bi-encoder"
        if body.max_tokens_per_doc is not None:
            most = body.max_tokens_per_doc
            texts = await service.read(lambda: [_shortened(model.embedder.offsets, text, most) for text in texts])
        embedded = await model.embed([Text(body.query, model.resolved(instruction)), *map(Text, texts)])
        cosines = embedded.rows[1:] @ embedded.rows[0]
        scores = np.clip((1 + cosines) / 2, 0, 1)
        tokens = {"tokens": {"input_tokens": sum(embedded.tokens)}}
    note(request, model=name, documents=len(texts), scored_by=scored_by)
    order = np.argsort(-scores, kind="stable")[: body.top_n]
    results: list[dict[str, Any]] = [
        {"index": int(number), "relevance_score": round(float(scores[number]), 7)} for number in order
    ]
    if body.return_documents:
        for result in results:
            result["document"] = {"text": _text(body.documents[result["index"]])}
    meta = {
        "api_version": {"version": request.url.path[2]},
        "billed_units": {"search_units": 1},
        **tokens,
    }
    return json_response({"id": str(uuid4()), "model": name, "scored_by": scored_by, "results": results, "meta": meta})


def _texts(body: RerankRequest) -> list[str]:
    check_input("query", body.query)
    if not 1 <= len(body.documents) <= MOST_DOCUMENTS:
        raise InputError(f"{len(body.documents)} documents came; expected 1 to {MOST_DOCUMENTS}")
    if body.rank_fields not in (None, ["text"]):
        raise InputError('rank_fields names other fields; only ["text"] is ranked')
    texts = [_text(document) for document in body.documents]
    for number, text in enumerate(texts, start=1):
        check_input(f"document {number}", text)
    return texts


def _text(document: str | RerankDocument) -> str:
    return document if isinstance(document, str) else document.text


def _shortened(offsets_of: Callable[[str], list[tuple[int, int]]], text: str, tokens: int) -> str:
    """The first tokens of a text; `offsets_of` gives the start and end of each."""
    offsets = offsets_of(text)
    return text if len(offsets) <= tokens else text[: offsets[tokens - 1][1]] or text[:1]
