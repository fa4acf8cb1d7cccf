"""The plain records that reading, embedding, searching and measuring exchange."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

Qrels = dict[str, dict[str, int]]
"""Relevance judgements: query id -> {document id: gain}; a gain of 0 or less means not relevant."""

MOST_GAIN = 1_000_000
"""The highest grade of a judgement: trec_eval keeps a counter for each from 0 to the highest."""

Run = dict[str, dict[str, float]]
"""What a system returned: query id -> {document id: score}; higher is better."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text to index, under an id.

    Args:
        id: Chosen by the user, unique in an index.
        text: The body; may be empty when the title is not.
        title: Repeated in every passage that the body is cut into.
        metadata: Any JSON object; comes back with every hit.
        place: Where it was read from ("papers.jsonl:17"), for messages only; not stored or compared.
        incidental: Metadata keys whose change does not make it another document, such as a file's date; not stored.
        vector: Its vector, (dim,), for an index of vectors that its user made; None for none. Not compared.
    """

    id: str
    text: str
    title: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)
    incidental: tuple[str, ...] = field(default=(), compare=False)
    vector: Any = field(default=None, compare=False, repr=False)

    def as_row(self) -> dict[str, Any]:
        """The document as a JSON line that can be read again; with its vector if it has one."""
        row = {"id": self.id, "title": self.title, "text": self.text, "metadata": self.metadata}
        return row if self.vector is None else {**row, "vector": [float(number) for number in self.vector]}

    def checksum(self) -> str:
        """SHA-256 of everything stored, as hex; equal for equal documents only."""
        content = json.dumps([self.id, self.title, self.text, self.metadata], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Query:
    """A query, with the instruction that belongs to it if it has one of its own.

    Args:
        id: In judgements and runs.
        text: What to search for.
        instruction: None for that of the search.
        vector: Its vector, (dim,), for an index of vectors that its users made; None for none. Not compared.
    """

    id: str
    text: str
    instruction: str | None = None
    vector: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a document stands where it does in a ranking.

    Args:
        dense_score: Its inner product with the query; None in a lexical ranking.
        dense_rank: Its rank by that among the candidates, from 1.
        lexical_score: Its BM25 score; None in a dense ranking, and where it shares no term with the query.
        lexical_rank: Its rank by that, from 1.
        dense_weight: Weight of the dense side in the fused score, 0 to 1; None for reciprocal rank fusion.
    """

    dense_score: float | None
    dense_rank: int | None
    lexical_score: float | None
    lexical_rank: int | None
    dense_weight: float | None


@dataclass(frozen=True, slots=True)
class Hit:
    """One document of a result, shown by its best passage.

    Args:
        id: The document's id.
        score: Higher is better; comparable only within one result list.
        rank: 1 for the best.
        title: The document's title.
        text: The best passage, not the whole document.
        start: First character of the passage in the document's text.
        stop: One past its last character.
        metadata: The document's metadata.
        explanation: Why it stands there, where the search asked for that.
    """

    id: str
    score: float
    rank: int
    title: str
    text: str
    start: int
    stop: int
    metadata: dict[str, Any]
    explanation: Explanation | None = None


def join_title(title: str, text: str) -> str:
    """Title and text joined by a space, without stray spaces when one of them is empty."""
    return f"{title} {text}".strip() if title else text.strip()


@dataclass(frozen=True, slots=True)
class Judgements:
    """Queries with their relevant documents, and how they are to be searched.

    Args:
        name: Name shown in reports.
        queries: The queries; those without an entry in `qrels` are not searched by an evaluation.
        qrels: Relevance judgements; empty where only the queries matter.
        instruction: For queries without their own; None uses the model's default, "" none.
        drop_self: Leave out the document whose id is the query's, where queries are documents themselves.
    """

    name: str
    queries: list[Query]
    qrels: Qrels
    instruction: str | None = None
    drop_self: bool = False

    def for_model(self, default_instruction: str | None) -> Judgements:
        """Without the instruction if the model has none by default, because it was trained without instructions."""
        return self if default_instruction is not None else replace(self, instruction=None)
