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

FEW_WORDS = 4  # a text with fewer distinct words is low in entropy

_SHOWN = 200  # characters of a sample that are kept


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

    def find_leaks(self, examples: Iterable[Example], *, samples: int = 5, few_words: int = FEW_WORDS) -> Leaks:
        """Check a stream of examples; see :func:`find_leaks`."""
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
                    matches = leaks.low_entropy if len(set(words(text))) < few_words else matches
                    matches.positions.add(position)
                    if len(matches.samples) < samples:
                        matches.samples.append(Match(position, role, text[:_SHOWN]))
        return leaks


def find_leaks(
    examples: Iterable[Example],
    queries: Iterable[Query],
    documents: Iterable[Document] = (),
    *,
    samples: int = 5,
    few_words: int = FEW_WORDS,
) -> Leaks:
    """Find the training examples that share a query or a document with an evaluation set.

    Examples and documents stream; memory grows with the texts of the evaluation set and the leaks.

    Args:
        examples: The training examples.
        queries: The evaluation queries, not the training queries of the same collection.
        documents: The corpus.
        samples: Matches to keep of each class.
        few_words: A match with fewer distinct words counts as low in entropy.
    """
    return Evaluation(queries, documents).find_leaks(examples, samples=samples, few_words=few_words)


def _texts(example: Example) -> Iterator[tuple[str, str]]:
    yield "query", example.query
    yield "positive", example.positive
    for negative in example.negatives:
        yield "negative", negative
