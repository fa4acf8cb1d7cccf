"""Find training examples whose text is also in a collection that judges the result.

The check of Wang et al., arXiv 2401.00368: equal strings, ignoring case and spacing. A text that was reworded, cut or
extended is not found.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

from searchkit.errors import InputError
from searchkit.records import Document, Query, join_title
from searchkit.training.dataset import Example

FEW_WORDS = 4  # a text with fewer different words is low in entropy

# Thai to Burmese, Khmer, kana and Han write without spaces: there every character counts as a word.
_UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_SHOWN = 200  # characters of a sample that are kept


@dataclass(frozen=True, slots=True)
class Match:
    """A text of a training example that the evaluation holds too.

    Args:
        position: Of the example, counted from 0.
        place: "query", "positive" or "negative".
        text: Its beginning, as the example has it.
    """

    position: int
    place: str
    text: str


@dataclass
class Matches:
    """The examples of one class of leak.

    Args:
        positions: Of the examples; one example may be in several classes.
        samples: The first few matches.
    """

    positions: set[int] = field(default_factory=set)
    samples: list[Match] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.positions)


@dataclass
class Leaks:
    """What the training examples share with an evaluation.

    Args:
        examined: How many examples were read.
        questions: Examples whose query is an evaluation query.
        documents: Examples with a positive or a negative that is an evaluation document.
        low_entropy: Examples with a match of either kind on a text of so few words that it may well be chance, such
            as "thank you"; such a match is in this class only.
        asked: Fingerprints of the evaluation queries that examples ask too, whatever their class.
    """

    examined: int = 0
    questions: Matches = field(default_factory=Matches)
    documents: Matches = field(default_factory=Matches)
    low_entropy: Matches = field(default_factory=Matches)
    asked: set[bytes] = field(default_factory=set)

    @property
    def positions(self) -> set[int]:
        """Positions of the examples in any class."""
        return self.questions.positions | self.documents.positions | self.low_entropy.positions

    def without(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Yield the examples that are in no class; they must be those that were examined, in the same order.

        Raises:
            ValueError: At the end, if there are not as many as were examined.
        """
        leaking = self.positions
        count = 0
        for count, example in enumerate(examples, 1):
            if count - 1 not in leaking:
                yield example
        if count != self.examined:
            raise InputError(
                f"{count} examples came but {self.examined} were examined, so positions may not fit; examine these"
            )


class Evaluation:
    """Fingerprints of an evaluation's texts, 16 bytes each, so that several files can be checked against one reading.

    Args:
        queries: Those that judge.
        documents: The collection they are asked of; a document is known by its text with its title and without.
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
            texts.discard(fingerprint(""))  # of a document that has a title only

    def find_leaks(self, examples: Iterable[Example], *, samples: int = 5, few_words: int = FEW_WORDS) -> Leaks:
        """Check examples one by one; see :func:`find_leaks`."""
        leaks = Leaks()
        for position, example in enumerate(examples):
            leaks.examined += 1
            for place, text in _texts(example):
                known, matches = (
                    (self._queries, leaks.questions) if place == "query" else (self._documents, leaks.documents)
                )
                if known and (mark := fingerprint(text)) in known:
                    if place == "query":
                        leaks.asked.add(mark)
                    matches = leaks.low_entropy if _has_few_words(text, few_words) else matches
                    matches.positions.add(position)
                    if len(matches.samples) < samples:
                        matches.samples.append(Match(position, place, text[:_SHOWN]))
        return leaks


def find_leaks(
    examples: Iterable[Example],
    queries: Iterable[Query],
    documents: Iterable[Document] = (),
    *,
    samples: int = 5,
    few_words: int = FEW_WORDS,
) -> Leaks:
    """Find the training examples that share a query or a document with an evaluation.

    Examples and documents stream; memory goes with the number of the evaluation's texts and of the leaks.

    Args:
        examples: The training text.
        queries: Those that judge, not the training queries of the same collection.
        documents: The collection they are asked of.
        samples: How many matches to keep of each class.
        few_words: A match with fewer different words is set apart as low in entropy.
    """
    return Evaluation(queries, documents).find_leaks(examples, samples=samples, few_words=few_words)


def fingerprint(text: str) -> bytes:
    """16 bytes that two texts share if they differ in case, white space and Unicode compatibility forms only."""
    plain = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    return blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _texts(example: Example) -> Iterator[tuple[str, str]]:
    yield "query", example.query
    yield "positive", example.positive
    for negative in example.negatives:
        yield "negative", negative


def _has_few_words(text: str, few: int) -> bool:
    """Whether a text has fewer different words."""
    seen: set[str] = set()
    for match in _WORD.finditer(text):
        seen.add(match[0].casefold())
        if len(seen) >= few:
            return False
    return len(seen) < few
