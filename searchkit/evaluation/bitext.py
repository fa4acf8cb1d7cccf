"""Bitext mining: does every sentence find its translation among all others?"""

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
_CELLS = 1 << 24  # similarities in memory at a time


@dataclass(frozen=True, slots=True)
class Bitext:
    """Sentences and their translations, line by line.

    Args:
        name: Of the pair of languages, for tables.
        first: Sentences of one language.
        second: Of the other; equally many.
    """

    name: str
    first: tuple[str, ...]
    second: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mined:
    """How well one side finds the other.

    Args:
        name: Of the pair of languages.
        forward: Metrics of looking for every first sentence among the second ones, which is what MTEB reports.
        backward: Of the other way round.
        sentences: How many pairs there are.
        repeated: Second sentences that came before; of equal ones only that in the sentence's own line is right.
        truncated: Sentences that are longer than the model reads.
    """

    name: str
    forward: dict[str, float]
    backward: dict[str, float]
    sentences: int
    repeated: int
    truncated: int


def read_bitexts(files: Sequence[Path]) -> list[Bitext]:
    """Read parallel sentences: .tsv of two columns, .jsonl of "sentence1" and "sentence2", or two plain files each.

    Raises:
        CorpusError: A plain file lacks its other half, lines do not pair up, or a row is not as it should be.
    """
    found, waiting = [], []
    for file in map(existing, files):
        kind = Path(file.name.lower().removesuffix(".gz")).suffix
        if kind in (".tsv", ".jsonl", ".ndjson"):
            found.append(_read_rows(file, tabs=kind == ".tsv"))
        else:
            waiting.append(file)
            if len(waiting) == 2:
                found.append(_read_lines(*waiting))
                waiting = []
    if waiting:
        raise CorpusError(
            f"{waiting[0]}: plain text comes in two files with equally many lines; name the translation's too, "
            "or give a .tsv or .jsonl file that holds both"
        )
    return found


def _read_lines(first: Path, second: Path) -> Bitext:
    sides = [_lines(file) for file in (first, second)]
    if len(sides[0]) != len(sides[1]):
        raise CorpusError(
            f"{first} has {len(sides[0])} lines and {second} has {len(sides[1])}; "
            "a sentence and its translation must stand in the same line"
        )
    return _checked(Bitext(f"{_stem(first)}-{_stem(second)}", tuple(sides[0]), tuple(sides[1])), first)


def _lines(file: Path) -> list[str]:
    sentences = []
    for number, (place, line) in enumerate(plain_lines(file), 1):
        if place != f"{file}:{number}":  # blank ones do not come
            raise CorpusError(f"{file}:{number}: the line is blank; take it out of both files")
        sentences.append(line.strip())
    return sentences


def _read_rows(file: Path, *, tabs: bool) -> Bitext:
    pairs = []
    for place, line in plain_lines(file):
        try:
            pairs.append(_tab_pair(line) if tabs else _json_pair(line))
        except RowError as error:
            raise CorpusError(f"{place}: {error}") from None
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
        raise CorpusError(f"{file}: no sentences in it")
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
    """Look for every sentence's translation among all, by the highest cosine, both ways.

    Both sides are embedded alike, with the instruction: neither is a document that the other asks for.

    Args:
        embedder: The model.
        bitext: The sentences.
        instruction: None takes the model's default, "" none.
        on_side: Told which side is being embedded.
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


def nearest(asked: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The row of `among` that is most like each row of `asked`, (len(asked),) int64; of equal ones the first.

    Args:
        asked: (n, dim) float32 unit rows.
        among: (m, dim) float32 unit rows.
    """
    block = max(1, _CELLS // len(among))
    found = [np.argmax(asked[start : start + block] @ among.T, axis=1) for start in range(0, len(asked), block)]
    return np.concatenate(found)


def score(found: np.ndarray) -> dict[str, float]:
    """Metrics of what was found for sentences 0 to n - 1, whose right answers are 0 to n - 1, as MTEB's are.

    Every sentence counts as a class of its own, which is there once: so recall is accuracy, the precision of a class is
    one over how often it was found, where it was found rightly, and all are averaged over the classes.

    Args:
        found: (n,) int64, the row found for each.
    """
    times = np.bincount(found, minlength=len(found)).astype(np.float64)
    right = found == np.arange(len(found))
    precision = np.where(right, 1 / np.maximum(times, 1), 0.0)
    f1 = np.where(right, 2 / (times + 1), 0.0)  # 2 p r / (p + r) with r = 1, p = 1 / times
    accuracy = float(right.mean())
    return {"accuracy": accuracy, "f1": float(f1.mean()), "precision": float(precision.mean()), "recall": accuracy}


def average(found: Sequence[Mined]) -> dict[str, dict[str, float]]:
    """Means over pairs of languages, which count alike however many sentences they have, by direction."""
    return {
        way: {metric: sum(getattr(one, way)[metric] for one in found) / len(found) for metric in METRICS}
        for way in ("forward", "backward")
    }
