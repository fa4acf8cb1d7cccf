"""Embeddings as OpenAI's clients ask for them, with an instruction on top."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from searchkit.errors import InputError
from searchkit.models.batches import unit_rows
from searchkit.request import chosen_instruction
from searchkit.server.embedding import EmbeddingQueue, Text
from searchkit.server.errors import encoded, json_response
from searchkit.server.logs import note
from searchkit.server.service import Current

router = APIRouter(prefix="/v1", tags=["OpenAI"])

MOST_INPUTS = 2_048

InputType = Literal["query", "document", "search_query", "search_document", "passage", "raw"]


class EmbeddingsRequest(BaseModel):
    """OpenAI's fields, then ours."""

    model_config = ConfigDict(extra="forbid")

    input: Any = Field(description="A string or a list of up to 2,048 strings.")
    model: str | None = Field(default=None, description="A model of /v1/models; its alias NAME-query embeds queries.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = Field(default=None, description="Ignored.")
    instruction: str | list[str | None] | None = Field(
        default=None, description="One sentence that says what to find, for all inputs or each; makes them queries."
    )
    instruct: str | list[str | None] | None = Field(default=None, description="The same.")
    task: str | list[str | None] | None = Field(default=None, description="Named tasks instead of instructions.")
    input_type: InputType | None = Field(
        default=None,
        description="What the inputs are; by default documents, or queries if they have an instruction. "
        "Raw inputs are embedded as they come, for clients that add prefixes themselves.",
    )


@router.get("/models")
async def list_models(service: Current) -> Response:
    """The models, and their aliases for queries."""
    data = [_model_row(name, model) for base, model in service.models.items() for name in (base, f"{base}-query")]
    return json_response({"object": "list", "data": data})


@router.get("/models/{name:path}")
async def show_model(name: str, service: Current) -> Response:
    """One model."""
    return json_response(_model_row(name, service.model_named(name)[0]))


@router.post("/embeddings")
async def embeddings(body: EmbeddingsRequest, request: Request, service: Current) -> Response:
    """Embed texts."""
    model, alias = service.model_named(body.model)
    inputs = _inputs(body.input)
    width = _width(model, body.dimensions)
    embedded = await model.embed(_texts(body, inputs, model, alias))
    note(request, model=model.name, inputs=len(inputs), tokens=sum(embedded.tokens))
    total = sum(embedded.tokens)
    answer: dict[str, Any] = {
        "object": "list",
        "model": body.model or model.name,
        "usage": {"prompt_tokens": total, "total_tokens": total},
    }
    if embedded.truncated:
        answer["truncated"] = embedded.truncated  # which inputs were longer than the model takes

    def written() -> bytes:
        rows = embedded.rows if width == model.embedder.dim else unit_rows(embedded.rows[:, :width])
        vectors = _base64(rows) if body.encoding_format == "base64" else rows.tolist()
        data = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)]
        return encoded({**answer, "data": data})

    # Writing a thousand vectors takes a good part of a second.
    content = written() if len(inputs) <= 16 else await asyncio.to_thread(written)
    return Response(content, media_type="application/json")


def _model_row(name: str, model: EmbeddingQueue) -> dict[str, Any]:
    """OpenAI's fields, the longest input as vLLM names it, and our conventions, for clients that apply them."""
    embedder = model.embedder
    about = {
        "max_model_len": embedder.max_length,
        "conventions": asdict(embedder.conventions),
        "shifts_queries": embedder.shifts_queries,
        "instruction_shift": embedder.instruction_shift,
    }
    return {"id": name, "object": "model", "created": 0, "owned_by": "searchkit", **about}


def _base64(rows: np.ndarray) -> list[str]:
    return [base64.b64encode(row.astype("<f4").tobytes()).decode("ascii") for row in rows]


def _inputs(value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise InputError("input is empty or no text; expected a string or a list of strings")
    if isinstance(texts[0], int) or (isinstance(texts[0], list) and texts[0] and isinstance(texts[0][0], int)):
        raise InputError(
            "input holds token ids, which are those of OpenAI's tokenizer and mean other text to this model; send "
            "strings (in LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))"
        )
    if len(texts) > MOST_INPUTS:
        raise InputError(f"input has {len(texts)} texts; expected at most {MOST_INPUTS} a request")
    for number, text in enumerate(texts):
        check_input(f"input {number + 1}", text)
    return texts


def check_input(name: str, text: object) -> None:
    """Raise InputError unless a text can be embedded: a string that is not empty and that UTF-8 can store."""
    if not isinstance(text, str):
        raise InputError(f"{name} is not a string")
    if not text:
        raise InputError(f"{name} is empty; expected some text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name} holds a lone surrogate, which is no character; remove it") from None


def _width(model: EmbeddingQueue, dimensions: int | None) -> int:
    full, smallest = model.embedder.dim, model.embedder.conventions.smallest_dim or model.embedder.dim
    if dimensions is None:
        return full
    if not smallest <= dimensions <= full:
        expected = str(full) if smallest >= full else f"{smallest} to {full}"
        raise InputError(f"dimensions is {dimensions}; {model.name} was trained for {expected}")
    return dimensions


def _texts(request: EmbeddingsRequest, inputs: list[str], model: EmbeddingQueue, alias: bool) -> list[Text]:
    instructions = instructions_of(request.instruction, request.instruct, request.task, len(inputs))
    instructed = any(each is not None for each in instructions)
    kind = request.input_type
    if kind == "raw" and not instructed:
        return [Text(text, raw=True) for text in inputs]
    if kind in ("document", "search_document", "passage", "raw"):
        if instructed or alias:
            came = "an instruction" if instructed else f"the model {request.model}"
            raise InputError(f"{came} came with input_type {kind}, but only queries have an instruction; omit one")
        return [Text(text) for text in inputs]
    if kind is None and not alias and not instructed:
        return [Text(text) for text in inputs]
    return [Text(text, model.resolved(each)) for text, each in zip(inputs, instructions, strict=True)]


def instructions_of(
    instruction: str | Sequence[str | None] | None,
    instruct: str | Sequence[str | None] | None,
    task: str | Sequence[str | None] | None,
    count: int,
) -> list[str | None]:
    """The instruction of each of some texts; None for the model's default.

    Raises:
        InputError: More than one of the fields came, or a list of another length, or there is no such task.
    """
    if sum(each is not None for each in (instruction, instruct, task)) > 1:
        raise InputError("more than one of instruction, instruct and task came; give one of them")
    chosen = next((each for each in (instruction, instruct, task) if each is not None), None)
    each = [chosen] * count if isinstance(chosen, str) or chosen is None else list(chosen)
    if len(each) != count:
        raise InputError(f"{len(each)} instructions came for {count} texts; expected one for all, or one each")
    return [chosen_instruction(None, one) if task is not None else one for one in each]
