"""Find training examples whose text also occurs in an evaluation set.

The check of Wang et al., arXiv 2401.00368: equal strings, ignoring case and spacing. A text that was reworded, cut or
extended is not found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from searchkit.records import Document, Query, join_title
from searchkit.training.dataset import Example
from searchkit.training.texts import fingerprint, words

_FEW_WORDS = 4  # a text with fewer distinct words is low in entropy
_SAMPLES = 5  # matches of each class that are kept
_SHOWN = 200  # characters of them


@dataclass(frozen=True, slots=True)
class Match:
    """A text of a training example that also occurs in the evaluation set.

    Args:
        position: Position of the example, from 0.
        role: "query", "positive" or "negative".
        text: The beginning of the text, as in the example.
    """

    position: int
    role: str
    text: str


@dataclass
class Matches:
    """The examples of one class of leak.

    Args:
        positions: Positions of the examples; an example may be in several classes.
        samples: The first few matches.
    """

    positions: set[int] = field(default_factory=set)
    samples: list[Match] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.positions)


@dataclass
class Leaks:
    """What training examples share with an evaluation set.

    Args:
        examined: Number of examples.
        questions: Examples whose query is an evaluation query.
        documents: Examples with a positive or a negative that is an evaluation document.
        low_entropy: Examples with a match on a text of so few words that it may be chance, such as "thank you"; such a
            match is in this class only.
        asked: Fingerprints of the evaluation queries that examples repeat, of any class.
    """

    examined: int = 0
    questions: Matches = field(default_factory=Matches)
    documents: Matches = field(default_factory=Matches)
    low_entropy: Matches = field(default_factory=Matches)
    asked: set[bytes] = field(default_factory=set)


class Evaluation:
    """Fingerprints of an evaluation set's texts, 16 bytes each, against which several files can be checked.

    Args:
        queries: The evaluation queries.
        documents: The corpus; a document is recognised by its text with and without its title.
    """

    def __init__(self, queries: Iterable[Query], documents: Iterable[Document] = ()) -> None:
        self._queries: set[bytes] = set()
        self._documents: set[bytes] = set()
        for query in queries:
            self._queries.add(fingerprint(query.text))
        for document in documents:
            self._documents.add(fingerprint(join_title(document.title, document.text)))
            self._documents.add(fingerprint(document.text))
        for texts in (self._queries, self._documents):
            texts.discard(fingerprint(""))  # the text of a document with only a title

    def find_leaks(self, examples: Iterable[Example]) -> Leaks:
        """The training examples that share a query or a document with the evaluation set; they are read as a stream."""
        leaks = Leaks()
        for position, example in enumerate(examples):
            leaks.examined += 1
            for role, text in _texts(example):
                known, matches = (
                    (self._queries, leaks.questions) if role == "query" else (self._documents, leaks.documents)
                )
                if known and (mark := fingerprint(text)) in known:
                    if role == "query":
                        leaks.asked.add(mark)
                    matches = leaks.low_entropy if len(set(words(text))) < _FEW_WORDS else matches
                    matches.positions.add(position)
                    if len(matches.samples) < _SAMPLES:
                        matches.samples.append(Match(position, role, text[:_SHOWN]))
        return leaks


def _texts(example: Example) -> Iterator[tuple[str, str]]:
    yield "query", example.query
    yield "positive", example.positive
    for negative in example.negatives:
        yield "negative", negative
