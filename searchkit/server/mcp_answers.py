"""What the MCP tools return, cut to a budget of tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from searchkit.records import Document, Hit

CHARACTERS_PER_TOKEN = 4
"""How answers are measured: clients count tokens each in their own way, and this is close for English."""

_LEAST = 200  # characters; a passage is left out rather than cut shorter
_STEP = 0.9


class Match(BaseModel):
    """One document of a search, shown by its best passage."""

    rank: int
    id: str = Field(description="Pass it to `fetch` to read the whole document.")
    title: str
    passage: str = Field(description="The best passage of the document, not all of it.")
    start: int = Field(description="Where the passage begins in the document, in characters.")
    stop: int
    score: float = Field(description="Comparable only within this answer.")
    strength: Literal["match", "weak match"] = Field(
        description='"weak match": it shares few words with the query and is less similar to it than nearly all '
        "texts that belong together; "
        "probably not relevant."
    )
    metadata: dict[str, Any]


class SearchAnswer(BaseModel):
    """The answer of `search`."""

    index: str
    matches: list[Match]
    notes: list[str] = Field(description="What is missing from this answer, and how to get it.")


class DocumentPart(BaseModel):
    """The answer of `fetch`."""

    index: str
    id: str
    title: str
    text: str
    start: int = Field(description="Where this part begins in the document, in characters.")
    stop: int
    characters: int = Field(description="Length of the whole document.")
    metadata: dict[str, Any]
    notes: list[str]


class IndexFacts(BaseModel):
    """One index of `list_indexes`."""

    name: str
    documents: int
    passages: int
    language: str
    metadata: dict[str, str] = Field(description="Types and examples of each key that `where` can use.")
    titles: list[str] = Field(description="The first documents.")


class IndexList(BaseModel):
    """The answer of `list_indexes`."""

    indexes: list[IndexFacts]


class AddAnswer(BaseModel):
    """The answer of `add_documents`."""

    index: str
    added: int
    updated: int
    unchanged: int
    refused: dict[str, str] = Field(description="Why a document was not added, by its id.")


def size(answer: BaseModel) -> int:
    """Characters of an answer, as the client gets it."""
    return len(answer.model_dump_json(indent=2))


def search_answer(
    index: str, hits: Sequence[Hit], weak: Sequence[bool], notes: Sequence[str], tokens: int
) -> SearchAnswer:
    """As many hits as fit, in order; long passages are cut first, and the notes say so."""
    budget = tokens * CHARACTERS_PER_TOKEN
    longest = max((len(hit.text) for hit in hits), default=0)
    kept = len(hits)
    while True:
        matches = [_match(hit, doubt, longest) for hit, doubt in zip(hits[:kept], weak, strict=False)]
        answer = SearchAnswer(index=index, matches=matches, notes=[*notes, *_left_out(hits, kept, longest)])
        if size(answer) <= budget or kept == 0:
            return answer
        if longest > _LEAST:
            longest = max(_LEAST, int(longest * _STEP))
        else:
            kept -= 1


def _match(hit: Hit, weak: bool, longest: int) -> Match:
    return Match(
        rank=hit.rank,
        id=hit.id,
        title=cut(hit.title, _LEAST),
        passage=cut(hit.text, longest),
        start=hit.start,
        stop=hit.stop,
        score=round(hit.score, 4),
        strength="weak match" if weak else "match",
        metadata=small_metadata(hit.metadata, max(_LEAST, longest)),
    )


def _left_out(hits: Sequence[Hit], kept: int, longest: int) -> list[str]:
    notes = []
    shown = hits[:kept]
    if any(len(hit.text) > longest for hit in shown):
        notes.append(f"Passages are cut to {longest} characters to keep the answer short; fetch shows a document.")
    if any(len(json.dumps(hit.metadata)) > max(_LEAST, longest) for hit in shown):
        notes.append("Long metadata is left out where it says so; fetch shows it.")
    if kept < len(hits):
        notes.append(f"{len(hits) - kept} of {len(hits)} matches did not fit; ask for fewer, or narrow the search.")
    return notes


def document_part(index: str, document: Document, start: int, length: int, tokens: int) -> DocumentPart:
    """The part of a document that begins at `start`, at most `length` characters and what fits."""
    budget = tokens * CHARACTERS_PER_TOKEN
    start = min(start, len(document.text))
    metadata = small_metadata(document.metadata, budget // 4)
    length = min(length, len(document.text) - start, budget)
    while True:
        stop = start + length
        notes = []
        if stop < len(document.text):
            notes.append(f"{len(document.text) - stop} characters follow; fetch again with start={stop}.")
        if metadata != document.metadata:
            notes.append("Metadata is too long for one answer.")
        part = DocumentPart(
            index=index, id=document.id, title=cut(document.title, budget // 8), text=document.text[start:stop],
            start=start, stop=stop, characters=len(document.text), metadata=metadata, notes=notes,
        )  # fmt: skip
        if size(part) <= budget or length <= 1:
            return part
        length = int(length * _STEP)


def cut(text: str, longest: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def small_metadata(metadata: dict[str, Any], longest: int) -> dict[str, Any]:
    """The metadata, or only their short values and a word about the others."""
    if len(json.dumps(metadata)) <= longest:
        return metadata
    share = max(20, longest // len(metadata))
    kept = {key: value for key, value in metadata.items() if len(json.dumps({key: value})) <= share}
    return {**kept, "…": f"{len(metadata) - len(kept)} long values left out"}
