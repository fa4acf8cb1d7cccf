"""A second look at examples of an index: the model grades what the index finds for a query."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from searchkit.engine import SearchEngine
from searchkit.errors import AnswerError
from searchkit.records import Hit, Query, join_title
from searchkit.training.dataset import folded
from searchkit.training.synthesis.answers import Answer
from searchkit.training.synthesis.llm import Request
from searchkit.training.synthesis.prompting import load_prompt
from searchkit.training.synthesis.quality import Candidate

_SHOWN = 2000  # characters of a passage that the model is shown
_NEGATIVES = 4
_ANSWERS = 2  # the lowest grade of a passage that answers the query


@dataclass(frozen=True, slots=True)
class Shown:
    """A passage that is graded."""

    id: str
    text: str
    own: bool


class Judge:
    """Relabels positives, and finds hard negatives that were looked at.

    The positive becomes the passage with the best grade, of several the one its query was written for or else the one
    that the index ranks highest: where retriever and model agree. Passages that do not help are hard negatives, best
    ranked first; those between the two are neither.

    Args:
        engine: The index.
        depth: Documents that are graded besides the passage that the query was written for.
        folder: The user's own prompts, which go before those that ship.
    """

    def __init__(self, engine: SearchEngine, *, depth: int = 6, folder: Path | None = None) -> None:
        self._engine, self._depth = engine, depth
        self._prompt = load_prompt("judge", folder)

    def requests(self, candidates: Sequence[Candidate]) -> Iterator[Request]:
        """A question for each example."""
        queries = [Query("", one.query, one.instruction) for one in candidates]
        for one, hits in zip(candidates, self._engine.search_many(queries, k=self._depth), strict=True):
            shown = _shown(one, hits)
            # The index's order would tell the model what to think.
            order = random.Random(one.query).sample(range(len(shown)), len(shown))
            texts = [
                f'<passage number="{number}">\n{shown[place].text[:_SHOWN]}\n</passage>'
                for number, place in enumerate(order, start=1)
            ]
            values = {
                "instruction": one.instruction,
                "query": one.query,
                "count": str(len(shown)),
                "passages": "\n\n".join(texts),
            }
            messages = self._prompt.messages(values)
            yield Request(self._prompt.label, self._prompt.answer, messages, about=(one, shown, order))

    def judged(self, request: Request, answer: Answer) -> Candidate:
        """The example after a look at the grades.

        Raises:
            AnswerError: A passage has no grade, or none of them answers the query.
        """
        one: Candidate = request.about[0]
        shown: list[Shown] = request.about[1]
        order: list[int] = request.about[2]
        given = {entry.passage: entry.grade for entry in getattr(answer, "grades", ())}
        if missing := [number for number in range(1, len(order) + 1) if given.get(number) not in (0, 1, 2, 3)]:
            raise AnswerError("not of the schema", f"no grade from 0 to 3 for passage {missing[0]}")
        grades = {place: given[number] for number, place in enumerate(order, start=1)}
        best = max(grades.values())
        if best < _ANSWERS:
            raise AnswerError("no passage answers it", f"best grade {best}")
        place = min(
            (place for place in grades if grades[place] == best), key=lambda place: (not shown[place].own, place)
        )
        positive = shown[place]
        useless = [passage.text for number, passage in enumerate(shown) if grades[number] == 0]
        return replace(
            one,
            positive=positive.text,
            positive_id=positive.id,
            negatives=tuple(text for text in useless if folded(text) != folded(positive.text))[:_NEGATIVES],
            judged="kept" if positive.own else "relabelled",
        )


def _shown(one: Candidate, hits: Sequence[Hit]) -> list[Shown]:
    """What is graded: in the order of the index, and the passage that the query was written for."""
    found = [(hit.id, join_title(hit.title, hit.text)) for hit in hits]
    shown = [Shown(id, text, own=False) for id, text in found if id != one.positive_id]
    ranks = [id for id, _ in found]
    place = ranks.index(one.positive_id) if one.positive_id in ranks else len(shown)
    shown.insert(place, Shown(one.positive_id, one.positive, own=True))
    return shown
