"""An example as a model wrote it, and the checks that keep bad ones out of the training data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from searchkit.engine import SearchEngine
from searchkit.records import Query
from searchkit.training.synthesis.answers import refuses
from searchkit.training.synthesis.duplicates import Seen
from searchkit.training.synthesis.languages import Languages
from searchkit.training.texts import folded, words

# Of a query that does not stand alone; "the passage of time" and "the author of a poem" are something else.
_REFERENCE = re.compile(
    r"\b(?:(?:the|this) (?:passage|excerpt|authors?)\b(?! (?:from|of|through|to)\b)"
    r"|this (?:article|document|paper|study|text)\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An example as a model wrote it, before it is checked.

    Args:
        query: Without its instruction.
        positive: The text to retrieve.
        instruction: The task sentence.
        group: Task group, or "grounded".
        language: Code of the query's language, "" if unknown.
        prompt: Label of the prompt.
        negatives: Hard negatives.
        kind: Kind of query, where there are several.
        target_language: Code of the positive's language, where it differs.
        positive_id: The document that the positive is from, if any.
        judged: "kept" or "relabelled", where the model has graded it.
        slot: Position that its source uses to recognise it.
        shown: What the model saw besides the positive: its prompt, with the examples in it.
    """

    query: str
    positive: str
    instruction: str
    group: str
    language: str
    prompt: str
    negatives: tuple[str, ...] = ()
    kind: str = ""
    target_language: str = ""
    positive_id: str = ""
    judged: str = ""
    slot: Any = None
    shown: str = ""

    @property
    def named_group(self) -> str:
        """What it is counted under: its kind of query, or else its task group."""
        return self.kind or self.group

    def row(self, model: str) -> dict[str, Any]:
        """A line for `searchkit train`, with where the example comes from."""
        values = {
            "query": self.query,
            "positive": self.positive,
            "positive_id": self.positive_id,
            "negatives": list(self.negatives),
            "instruction": self.instruction,
            "source": f"synthetic-{self.group}",
            "group": self.group,
            "kind": self.kind,
            "language": self.language,
            "target_language": self.target_language,
            "judged": self.judged,
            "prompt": self.prompt,
            "model": model,
        }
        return {name: value for name, value in values.items() if value not in ("", [])}


class Checks:
    """Finds what is wrong with an example by itself, and remembers the others to recognise their copies.

    Args:
        likeness: Similarity at which a query counts as a duplicate.
        check_language: Reject texts in the wrong language.
        evaluation: Queries that no example may repeat.
    """

    def __init__(self, *, likeness: float, check_language: bool, evaluation: Iterable[str]) -> None:
        self._languages = Languages() if check_language else None
        self._seen, self._evaluation = Seen(likeness), Seen(likeness)
        for query in evaluation:
            self._evaluation.add(query)

    def close(self) -> None:
        """Delete the temporary files."""
        self._seen.close()
        self._evaluation.close()

    def fault(self, candidate: Candidate) -> tuple[str, str] | None:
        """(reason, detail) why an example is rejected; one that is not is remembered."""
        if reason := malformed(candidate):
            return reason, ""
        if candidate.group not in ("long-short", "bitext") and (run := copied(candidate.query, candidate.positive)):
            return "copied from the passage", run
        if candidate.group == "grounded" and (found := _REFERENCE.search(candidate.query)):
            return "speaks of the passage", found[0]
        for text in _texts(candidate):
            if run := copied(text, candidate.shown):
                return "copied from the prompt", run
        if self._languages is not None:
            sides = [(candidate.query, candidate.language)]
            if candidate.group != "grounded":  # whose positive is the user's own
                sides.append((candidate.positive, candidate.target_language or candidate.language))
            for text, expected in sides:
                if other := self._languages.wrong(text, expected):
                    return "wrong language", f"{other} instead of {expected}"
        if self._evaluation.match(candidate.query):
            return "an evaluation query", ""
        if reason := self._seen.match(candidate.query):
            return reason, ""
        self._seen.add(candidate.query)
        return None


def malformed(candidate: Candidate) -> str:
    """Why a text is no example at all, or ""."""
    if any(map(refuses, _texts(candidate))):
        return "refused by the model"
    if folded(candidate.query) == folded(candidate.positive):
        return "the query is its own positive"
    if any(folded(candidate.positive) == folded(negative) for negative in candidate.negatives):
        return "a negative is the positive itself"
    return ""


def _texts(candidate: Candidate) -> tuple[str, ...]:
    """What the model wrote: for grounded examples the query alone, since their passages are the user's own."""
    if candidate.group == "grounded":
        return (candidate.query,)
    return (candidate.query, candidate.positive, *candidate.negatives)


def copied(query: str, passage: str) -> str:
    """The run of words that a query has copied from a passage, or "" if it is too short to matter.

    Search terms occur in what they are meant to find. Copied are five words or more in a row that make up 70 % of the
    query, or twelve in any query.
    """
    terms = words(query)
    length = min(12, max(5, -(-7 * len(terms) // 10)))
    text = f" {' '.join(words(passage))} "
    for start in range(len(terms) - length + 1):
        run = " ".join(terms[start : start + length])
        if f" {run} " in text:
            return run
    return ""


def found_again(engine: SearchEngine, candidates: Sequence[Candidate], k: int) -> list[bool]:
    """Whether hybrid search ranks the document of each example's positive among the first k."""
    rankings = engine.rank([Query("", candidate.query, candidate.instruction) for candidate in candidates], k=k)
    ids = engine.ids_of(rankings)
    return [
        any(ids[item.doc] == candidate.positive_id for item in ranking)
        for candidate, ranking in zip(candidates, rankings, strict=True)
    ]
