"""Bitext mining: does every sentence retrieve its translation among all others?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from searchkit.errors import CorpusError, RowError
from searchkit.models.embedder import Embedder
from searchkit.readers.lines import existing, plain_lines
from searchkit.readers.values import json_object, quoted, typename

METRICS = ("accuracy", "f1", "precision", "recall")
_SENTENCES = ("sentence1", "sentence2")
_BLOCK = 1 << 24  # similarities in memory at a time


@dataclass(frozen=True, slots=True)
class Bitext:
    """Sentences and their translations, in the same order.

    Args:
        name: Name of the language pair, for tables.
        first: Sentences of one language.
        second: As many sentences of the other.
    """

    name: str
    first: tuple[str, ...]
    second: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mined:
    """How well each side retrieves the other.

    Args:
        name: Name of the language pair.
        forward: Metrics of retrieving second sentences with the first ones, which is what MTEB reports.
        backward: Metrics of the opposite direction.
        sentences: Number of pairs.
        repeated: Second sentences that occurred before; of equal ones only that on the sentence's own line is right.
        truncated: Sentences longer than the model's input.
    """

    name: str
    forward: dict[str, float]
    backward: dict[str, float]
    sentences: int
    repeated: int
    truncated: int


def read_bitexts(files: Sequence[Path]) -> list[Bitext]:
    """Read parallel sentences: .tsv of two columns, .jsonl of "sentence1" and "sentence2", or pairs of plain files.

    Raises:
        CorpusError: A plain file lacks its counterpart, lines do not pair up, or a row is invalid.
    """
    bitexts = []
    first: Path | None = None  # of a pair of plain files
    for file in map(existing, files):
        kind = Path(file.name.lower().removesuffix(".gz")).suffix
        if kind in (".tsv", ".jsonl", ".ndjson"):
            bitexts.append(_read_rows(file, tabs=kind == ".tsv"))
        elif first is None:
            first = file
        else:
            bitexts.append(_read_lines(first, file))
            first = None
    if first:
        raise CorpusError(
            f"{first}: plain text comes in two files with equally many lines; name the translation's too, "
            "or give a .tsv or .jsonl file that holds both"
        )
    return bitexts


def _read_lines(first: Path, second: Path) -> Bitext:
    sides = [_lines(file) for file in (first, second)]
    if len(sides[0]) != len(sides[1]):
        raise CorpusError(
            f"{first} has {len(sides[0])} lines and {second} has {len(sides[1])}; "
            "a sentence and its translation must be on the same line"
        )
    return _checked(Bitext(f"{_stem(first)}-{_stem(second)}", tuple(sides[0]), tuple(sides[1])), first)


def _lines(file: Path) -> list[str]:
    sentences = []
    for number, (location, line) in enumerate(plain_lines(file), 1):
        if location != f"{file}:{number}":  # plain_lines skips blank ones
            raise CorpusError(f"{file}:{number}: the line is blank; remove it from both files")
        sentences.append(line.strip())
    return sentences


def _read_rows(file: Path, *, tabs: bool) -> Bitext:
    pairs = []
    for location, line in plain_lines(file):
        try:
            pairs.append(_tab_pair(line) if tabs else _json_pair(line))
        except RowError as error:
            raise CorpusError(f"{location}: {error}") from None
    first, second = zip(*pairs, strict=True) if pairs else ((), ())
    return _checked(Bitext(_stem(file), first, second), file)


def _tab_pair(line: str) -> tuple[str, str]:
    cells = [cell.strip() for cell in line.split("\t")]
    if len(cells) != 2 or not all(cells):
        raise RowError(f"{len(cells)} columns; expected a sentence, a tab and its translation")
    return cells[0], cells[1]


def _json_pair(line: str) -> tuple[str, str]:
    values = json_object(line)
    if missing := [name for name in _SENTENCES if name not in values]:
        raise RowError(f"{quoted(missing)} is missing; expected {quoted(_SENTENCES)}; the keys are {quoted(values)}")
    first, second = (values[name] for name in _SENTENCES)
    for name, value in zip(_SENTENCES, (first, second), strict=True):
        if not isinstance(value, str) or not value.strip():
            raise RowError(f"{name} is {'blank' if isinstance(value, str) else typename(value)}; expected a sentence")
    return first.strip(), second.strip()


def _checked(bitext: Bitext, file: Path) -> Bitext:
    if not bitext.first:
        raise CorpusError(f"{file}: it holds no sentences")
    return bitext


def _stem(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).stem


def mine(
    embedder: Embedder,
    bitext: Bitext,
    *,
    instruction: str | None = None,
    on_side: Callable[[str], None] | None = None,
) -> Mined:
    """Retrieve every sentence's translation by the highest cosine, in both directions.

    Both sides are embedded in the same way, with the instruction: neither side consists of documents.

    Args:
        embedder: The model.
        bitext: The sentences.
        instruction: None takes the model's default, "" none.
        on_side: Called with a message before each side is embedded.
    """
    before = embedder.stats.truncated
    sides = []
    for number, sentences in enumerate((bitext.first, bitext.second), 1):
        if on_side:
            on_side(f"{bitext.name}: embedding side {number}")
        sides.append(embedder.encode_symmetric(sentences, instruction))
    return Mined(
        name=bitext.name,
        forward=score(nearest(sides[0], sides[1])),
        backward=score(nearest(sides[1], sides[0])),
        sentences=len(bitext.first),
        repeated=len(bitext.second) - len(set(bitext.second)),
        truncated=embedder.stats.truncated - before,
    )


def nearest(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """The row of `candidates` most similar to each query, (len(queries),) int64; the first of several.

    Args:
        queries: (n, dim) float32 unit rows.
        candidates: (m, dim) float32 unit rows.
    """
    block = max(1, _BLOCK // len(candidates))
    starts = range(0, len(queries), block)
    return np.concatenate([np.argmax(queries[start : start + block] @ candidates.T, axis=1) for start in starts])


def score(retrieved: np.ndarray) -> dict[str, float]:
    """MTEB's metrics for sentences 0 to n - 1, whose translations are 0 to n - 1.

    Every sentence is a class with one member. Recall therefore is accuracy, and the precision of a class is one over
    the number of times it was retrieved if its own sentence retrieved it. All are averaged over classes.

    Args:
        retrieved: (n,) int64, the row retrieved for each sentence.
    """
    times = np.bincount(retrieved, minlength=len(retrieved)).astype(np.float64)
    right = retrieved == np.arange(len(retrieved))
    precision = np.where(right, 1 / np.maximum(times, 1), 0.0)
    f1 = np.where(right, 2 / (times + 1), 0.0)  # 2 p r / (p + r) with r = 1, p = 1 / times
    accuracy = float(right.mean())
    return {"accuracy": accuracy, "f1": float(f1.mean()), "precision": float(precision.mean()), "recall": accuracy}


def average(pairs: Sequence[Mined]) -> dict[str, dict[str, float]]:
    """Means over language pairs by direction; each pair has the same weight, whatever its size."""
    sides = {"forward": [pair.forward for pair in pairs], "backward": [pair.backward for pair in pairs]}
    return {
        direction: {metric: sum(values[metric] for values in results) / len(pairs) for metric in METRICS}
        for direction, results in sides.items()
    }
