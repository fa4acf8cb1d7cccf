"""A second look at examples of an index: the model grades the passages that the index finds for a query."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from searchkit.engine import SearchEngine
from searchkit.errors import AnswerError
from searchkit.records import Hit, Query, join_title
from searchkit.training.synthesis.answers import Answer
from searchkit.training.synthesis.prompting import load_prompt
from searchkit.training.synthesis.protocol import Request
from searchkit.training.synthesis.quality import Candidate
from searchkit.training.texts import folded

_SHOWN = 2000  # characters of a passage that the model sees
_NEGATIVES = 4
_ANSWERS = 2  # lowest grade of a passage that answers the query


@dataclass(frozen=True, slots=True)
class Shown:
    """A passage that is graded."""

    id: str
    text: str
    own: bool


@dataclass(frozen=True, slots=True)
class Grading:
    """What one request has the model grade.

    Args:
        candidate: The example.
        shown: The passages, in the order of the index.
        order: Position in `shown` of every passage of the prompt.
    """

    candidate: Candidate
    shown: list[Shown]
    order: list[int]


class Judge:
    """Relabels positives, and finds graded hard negatives.

    The positive becomes the passage with the best grade; among equals the one the query was written for, or else the
    one that the index ranks highest. Passages that do not help are hard negatives, best ranked first; those in between
    are neither.

    Args:
        engine: The index.
        depth: Documents that are graded besides the passage that the query was written for.
        folder: The user's own prompts, which take precedence over the shipped ones.
    """

    def __init__(self, engine: SearchEngine, *, depth: int = 6, folder: Path | None = None) -> None:
        self._engine, self._depth = engine, depth
        self._prompt = load_prompt("judge", folder)

    def requests(self, candidates: Sequence[Candidate]) -> Iterator[Request]:
        """One request for each example; its `about` is a :class:`Grading`."""
        queries = [Query("", candidate.query, candidate.instruction) for candidate in candidates]
        for candidate, hits in zip(candidates, self._engine.search_many(queries, k=self._depth), strict=True):
            shown = _shown(candidate, hits)
            # The index's own order would give the answer away.
            order = random.Random(candidate.query).sample(range(len(shown)), len(shown))
            texts = [
                f'<passage number="{number}">\n{shown[rank].text[:_SHOWN]}\n</passage>'
                for number, rank in enumerate(order, start=1)
            ]
            values = {
                "instruction": candidate.instruction,
                "query": candidate.query,
                "count": str(len(shown)),
                "passages": "\n\n".join(texts),
            }
            messages = self._prompt.messages(values)
            about = Grading(candidate, shown, order)
            yield Request(self._prompt.label, self._prompt.answer, messages, about=about)

    def judged(self, request: Request, answer: Answer) -> Candidate:
        """The example with the positive and negatives that the grades suggest.

        Raises:
            AnswerError: A passage has no grade, or none of them answers the query.
        """
        grading: Grading = request.about
        shown, order = grading.shown, grading.order
        by_number = {entry.passage: entry.grade for entry in getattr(answer, "grades", ())}
        if missing := [number for number in range(1, len(order) + 1) if by_number.get(number) not in (0, 1, 2, 3)]:
            raise AnswerError("not of the schema", f"no grade from 0 to 3 for passage {missing[0]}")
        grades = {rank: by_number[number] for number, rank in enumerate(order, start=1)}
        best = max(grades.values())
        if best < _ANSWERS:
            raise AnswerError("no passage answers it", f"best grade {best}")
        rank = min((rank for rank in grades if grades[rank] == best), key=lambda rank: (not shown[rank].own, rank))
        positive = shown[rank]
        useless = [passage.text for number, passage in enumerate(shown) if grades[number] == 0]
        return replace(
            grading.candidate,
            positive=positive.text,
            positive_id=positive.id,
            negatives=tuple(text for text in useless if folded(text) != folded(positive.text))[:_NEGATIVES],
            judged="kept" if positive.own else "relabelled",
        )


def _shown(candidate: Candidate, hits: Sequence[Hit]) -> list[Shown]:
    """The passages to grade, in the order of the index, with the one that the query was written for."""
    own, ids = candidate.positive_id, [hit.id for hit in hits]
    shown = [Shown(hit.id, join_title(hit.title, hit.text), own=False) for hit in hits if hit.id != own]
    rank = ids.index(own) if own in ids else len(shown)
    shown.insert(rank, Shown(own, candidate.positive, own=True))
    return shown
