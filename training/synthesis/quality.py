"""What keeps a written example out of the training data: one plain check each."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from searchkit.engine import SearchEngine
from searchkit.errors import InputError, MissingExtraError
from searchkit.records import Query
from searchkit.training.contamination import fingerprint
from searchkit.training.dataset import folded
from searchkit.training.synthesis.answers import refuses

_WORD = re.compile(r"\w+")
_UNSPACED = re.compile(r"[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_PERMUTATIONS = 128
_BANDS = 16  # of 8 values each: texts of which 85 % is alike share one with a probability of .99
_SHINGLE = 4  # characters

# Languages that a detector takes for each other in a few sentences.
_ALIKE = (
    {"hr", "sr", "bs", "sl"}, {"id", "ms", "jv", "su"}, {"no", "nn", "nb", "da", "sv"}, {"cs", "sk"},
    {"es", "gl", "pt", "ca", "ast", "ext", "an", "oc"}, {"hi", "mr", "ne", "sa", "gom"}, {"az", "tr", "tk", "crh"},
    {"ru", "uk", "be", "bg", "mk"}, {"af", "nl", "fy"}, {"fa", "ps", "ur", "ku", "sdh", "sd"}, {"zh", "yue", "wuu"},
    {"kk", "ky", "tt", "ba", "mn"}, {"ga", "gd"}, {"xh", "zu", "nso", "st", "sn", "sw"}, {"as", "bn"},
    {"ar", "ary", "arz"}, {"uz", "uzs", "tk", "ug"}, {"om", "so"}, {"he", "hbo", "yi"}, {"it", "vec", "lij", "la"},
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Candidate:
    """An example as a model wrote it, before it is sifted.

    Args:
        query: Without its instruction.
        positive: The text to find.
        instruction: The task sentence.
        group: Task group, or "grounded".
        language: Code of the query's language, "" where it is not known.
        prompt: Label of the prompt.
        negatives: Hard negatives.
        kind: What sort of query, where there are several.
        target_language: Code of the positive's language, where it is another.
        positive_id: The document that the positive is of, where there is one.
        judged: "kept" or "relabelled", where the model has looked again.
        slot: What its source needs to know of it.
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

    def row(self, model: str) -> dict[str, Any]:
        """A line for `searchkit train`, and where it comes from."""
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


def malformed(one: Candidate) -> str:
    """Why an example is none at all, or ""."""
    written = (one.query,) if one.group == "grounded" else (one.query, one.positive, *one.negatives)
    if any(map(refuses, written)):  # the others are the user's own
        return "refused by the model"
    if folded(one.query) == folded(one.positive):
        return "the query is its own positive"
    if any(folded(one.positive) == folded(negative) for negative in one.negatives):
        return "a negative is the positive itself"
    return ""


def found_again(engine: SearchEngine, candidates: Sequence[Candidate], k: int) -> list[bool]:
    """Whether hybrid search finds the document of each example's positive among the first k."""
    rankings = engine.rank([Query("", one.query, one.instruction) for one in candidates], k=k)
    ids = engine.ids_of(rankings)
    return [
        any(ids[item.doc] == one.positive_id for item in ranking)
        for one, ranking in zip(candidates, rankings, strict=True)
    ]


def words(text: str) -> list[str]:
    """The words of a text in lower case; every character counts as one where words are not spaced."""
    return _WORD.findall(_UNSPACED.sub(lambda match: f" {match[0]} ", text.casefold()))


def copied(query: str, passage: str) -> str:
    """The run of words that a query has lifted from a passage, or "" when it has lifted none worth the name.

    Search words are found in what they are meant to find; lifted are five words or more in a row that make up 70 % of
    the query, or twelve in any query.
    """
    asked = words(query)
    run = min(12, max(5, -(-7 * len(asked) // 10)))
    there = f" {' '.join(words(passage))} "
    for start in range(len(asked) - run + 1):
        part = " ".join(asked[start : start + run])
        if f" {part} " in there:
            return part
    return ""


class Seen:
    """The texts that came before, on disk, and how like a new one is to them.

    Likeness is the share of the four-character shingles of two texts that they have in common, estimated by MinHash.

    Args:
        likeness: From which share on a text counts as a copy.
    """

    def __init__(self, likeness: float = 0.8) -> None:
        if not 0 < likeness <= 1:
            raise InputError(f"likeness is {likeness:g}; it is a share above 0, and 1 for exact copies alone")
        self._likeness = likeness
        if likeness < 1:
            _signature("")  # a missing library is said now, not when answers have been paid for
        # A temporary database that SQLite keeps in a file of its own and takes away: memory stays flat.
        self._db = sqlite3.connect("")
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("CREATE TABLE exact (text BLOB PRIMARY KEY) WITHOUT ROWID")
        self._db.execute("CREATE TABLE signatures (number INTEGER PRIMARY KEY, signature BLOB)")
        self._db.execute("CREATE TABLE bands (band INTEGER, number INTEGER, PRIMARY KEY (band, number)) WITHOUT ROWID")
        self._count = 0

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def match(self, text: str) -> str:
        """ "duplicate", "near-duplicate", or "" for a text that is new; it is not added."""
        if self._db.execute("SELECT 1 FROM exact WHERE text = ?", (fingerprint(text),)).fetchone():
            return "duplicate"
        if self._likeness == 1:
            return ""
        signature = _signature(text)
        marks = ",".join("?" * _BANDS)
        found = self._db.execute(
            f"SELECT signature FROM signatures WHERE number IN (SELECT number FROM bands WHERE band IN ({marks}))",
            _bands(signature),
        )
        for (other,) in found:
            if float((np.frombuffer(other, np.uint32) == signature).mean()) >= self._likeness:
                return "near-duplicate"
        return ""

    def add(self, text: str) -> None:
        """Remember a text."""
        self._db.execute("INSERT OR IGNORE INTO exact VALUES (?)", (fingerprint(text),))
        if self._likeness < 1:
            signature = _signature(text)
            self._db.execute("INSERT INTO signatures VALUES (?, ?)", (self._count, signature.tobytes()))
            rows = [(band, self._count) for band in _bands(signature)]
            self._db.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", rows)
            self._count += 1


def _signature(text: str) -> np.ndarray:
    """(128,) uint32."""
    try:
        from rensa import RMinHash
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"finding near-duplicates needs {error.name}: pip install 'searchkit[train]'", name=error.name
        ) from error
    plain = f" {' '.join(text.casefold().split())} "
    sketch = RMinHash(num_perm=_PERMUTATIONS, seed=1)
    sketch.update(sorted({plain[start : start + _SHINGLE] for start in range(max(1, len(plain) - _SHINGLE + 1))}))
    return np.array(sketch.digest(), dtype=np.uint32)


def _bands(signature: np.ndarray) -> list[int]:
    """A number for each band; texts that share one are compared."""
    size = signature.nbytes // _BANDS
    whole = signature.tobytes()
    parts = (bytes([band]) + whole[band * size : (band + 1) * size] for band in range(_BANDS))
    return [int.from_bytes(blake2b(part, digest_size=8).digest(), "big", signed=True) for part in parts]


class Languages:
    """Tells languages apart; a text too short to tell is of any. The model is loaded when it is first needed."""

    def __init__(self) -> None:
        self._model: Any = None
        try:
            import py3langid  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"telling languages apart needs {error.name}: pip install 'searchkit[train]'", name=error.name
            ) from error

    def of(self, text: str) -> str:
        """The code of the language a text is in, "" when that cannot be told."""
        if not _long_enough(text):
            return ""
        if self._model is None:
            self._model = _identifier()
        code, probability = self._model.classify(text)
        return str(code) if probability >= 0.9 else ""

    def wrong(self, text: str, expected: str) -> str:
        """The language a text is in, if that is plainly not the expected one; otherwise ""."""
        if not expected or not _long_enough(text):
            return ""
        found = self.of(text)
        if not found or found == expected or expected not in self._model.labels:
            return ""
        return "" if any(found in group and expected in group for group in _ALIKE) else found


def _long_enough(text: str) -> bool:
    return len(text) >= 60 or len(_UNSPACED.findall(text)) >= 15


def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
