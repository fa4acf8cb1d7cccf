"""The batches of an epoch: which examples are each other's negatives."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from searchkit.errors import InputError
from searchkit.training.dataset import Example

logger = logging.getLogger(__name__)

WINDOW = 32
"""Batches within which examples are sorted by length; each batch is still drawn from many."""

Near = dict[int, NDArray[np.float32]]
"""By the number of a source, (examples, dim) unit rows of its queries, to make batches of near neighbours."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file of examples and how much of it an epoch takes.

    Args:
        path: JSON lines that ``read_examples`` reads.
        ratio: Share of the examples sampled for each epoch; 2.5 takes all of them twice, and half of them again.
        mixed: Let examples with different instructions share a batch: for synthetic data, where nearly every example
            has an instruction of its own. Not for labels, which are right or wrong only within their task.
        kept: Only keep the vectors of these texts where the teacher has them, without contrast, against forgetting.
    """

    path: Path
    ratio: float = 1.0
    mixed: bool = False
    kept: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ratio) and self.ratio > 0):
            raise InputError(
                f"{self.path}: the sample ratio is {self.ratio:g}; expected a number above 0, such as 0.5 or 2"
            )

    @classmethod
    def parse(cls, text: str) -> Source:
        """Parse FILE or FILE@SETTINGS, such as "synthetic.jsonl@2,mixed": a ratio, "mixed", "kept", or several.

        An @ before anything else belongs to the file's name.
        """
        path, at, settings = text.rpartition("@")
        words = settings.split(",")
        flags = {word for word in words if word in ("mixed", "kept")}
        numbers = [word for word in words if word not in flags]
        try:
            if not at or numbers not in ([], words[:1]) or len(words) > len(numbers) + len(flags):
                raise ValueError
            share = float(numbers[0]) if numbers else 1.0
        except ValueError:
            path, share, flags = text, 1.0, set()
        if not path:
            raise InputError(f'"{text}" names no file; write FILE, FILE@0.5, FILE@mixed, FILE@kept or FILE@0.5,mixed')
        return cls(Path(path), share, mixed="mixed" in flags, kept="kept" in flags)


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples that are each other's negatives.

    Args:
        examples: No two with the same query or the same positive.
        negatives: The hard negatives drawn for each of them; tuples may differ in length, or be empty.
        kept: Only the vectors of these texts are to be kept; see :class:`Source`.
    """

    examples: tuple[Example, ...]
    negatives: tuple[tuple[str, ...], ...]
    kept: bool = False

    def __len__(self) -> int:
        return len(self.examples)

    def part(self, positions: Sequence[int]) -> Batch:
        """The examples at the given positions, in that order, with their negatives."""
        return replace(
            self,
            examples=tuple(self.examples[i] for i in positions),
            negatives=tuple(self.negatives[i] for i in positions),
        )

    def passages(self) -> list[str]:
        """The positives in the order of the examples, then the hard negatives in the same order."""
        return [example.positive for example in self.examples] + [text for drawn in self.negatives for text in drawn]

    def duplicates(self) -> NDArray[np.bool_]:
        """Return (queries, passages) bool, True where a passage is another copy of the query's positive.

        Such a passage is not a negative and has to be masked. Copies differ in white space at most; a query's own
        positive, which is the passage at the same position, is False.
        """
        numbers: dict[str, int] = {}
        texts = np.array([numbers.setdefault(_spaced(text), len(numbers)) for text in self.passages()], dtype=np.int64)
        same: NDArray[np.bool_] = texts[: len(self), None] == texts[None, :]
        np.fill_diagonal(same, False)
        return same


class Batches:
    """The batches of every epoch, the same for the same sources, seed and epoch.

    A batch holds examples of similar length and of one task: one source with one instruction (or any, for a mixed
    source). Two examples with the same query or the same positive are never in one batch; the later one moves to a
    later batch. Leftovers of a task that do not fill a batch of the smallest size are dropped, and counted in
    ``Epoch.dropped``.

    Args:
        sources: Every source with all of its examples.
        batch_size: Largest number of examples in a batch; the last batches of a task are smaller.
        seed: Decides the samples, their order and the hard negatives.
        negatives_per_query: Hard negatives per query, drawn again for every epoch; fewer where an example has fewer.
        smallest_batch: Smallest number of examples in a batch. Texts that many examples share leave very small batches,
            and each is a full step: of 374,038 pairs from seven files in 253 batches of at most 2048, 320 pairs filled
            66 batches below 64. But a task with few labels has no larger ones.
        near: Sources whose batches hold near neighbours, other ones in each epoch, instead of examples of similar
            length.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Source, Sequence[Example]]],
        batch_size: int,
        *,
        seed: int = 0,
        negatives_per_query: int = 1,
        smallest_batch: int = 2,
        near: Near | None = None,
    ) -> None:
        if batch_size < 2:
            raise InputError(f"batch_size is {batch_size}; expected 2 or more, or a query has no negatives")
        if not 2 <= smallest_batch <= batch_size:
            raise InputError(f"smallest_batch is {smallest_batch}; expected 2 to batch_size, {batch_size}")
        if negatives_per_query < 0:
            raise InputError(f"negatives_per_query is {negatives_per_query}; expected 0 or more")
        if seed < 0:
            raise InputError(f"seed is {seed}; expected 0 or more")
        self.batch_size = batch_size
        self.seed = seed
        self.negatives_per_query = negatives_per_query
        self.smallest_batch = smallest_batch
        self._near = near or {}
        self._examples: list[Example] = []
        self._samples: list[tuple[int, int, float]] = []  # first row, row after the last, ratio
        self._tasks: list[int] = []  # of every row, as are the next three
        self._kept: list[bool] = []
        self._queries: list[int] = []
        self._positives: list[int] = []
        # Digests: the texts with normalised white space would take as much memory again.
        tasks: dict[Hashable, int] = {}
        texts: dict[Hashable, int] = {}
        for number, (source, examples) in enumerate(sources):
            first = len(self._examples)
            for example in examples:
                # With the number, since a/train.jsonl and b/train.jsonl give their examples the same source name.
                key = (number, example.source, None if source.mixed else example.instruction)
                task = tasks.setdefault(key, len(tasks))
                self._examples.append(example)
                self._tasks.append(task)
                self._kept.append(source.kept)
                self._queries.append(texts.setdefault((task, "query", _digest(example.query)), len(texts)))
                self._positives.append(texts.setdefault((task, "positive", _digest(example.positive)), len(texts)))
            self._samples.append((first, len(self._examples), source.ratio))
        self._texts = len(texts)
        self._lengths = np.array([len(example.positive) for example in self._examples], dtype=np.int64)
        if not self._examples:
            raise InputError(f"{len(sources)} sources without any examples; there is nothing to make batches of")

    def __len__(self) -> int:
        """How many examples there are, before sampling."""
        return len(self._examples)

    def epoch(self, number: int, *, skip: int = 0) -> Epoch:
        """Return the batches of an epoch without the first ``skip``; to resume, skip as many as were trained on.

        Raises:
            InputError: The epoch has no batch, or fewer than are to be skipped.
        """
        if number < 0 or skip < 0:
            raise InputError(f"epoch is {number} and skip is {skip}; expected 0 or more")
        rng = np.random.default_rng([self.seed, number, 0])
        rows = rng.permutation(np.concatenate([_sample(rng, *sample) for sample in self._samples]))
        near: list[NDArray[np.int64]] = []
        for number, vectors in self._near.items():
            first, stop, _ = self._samples[number]
            inside = (rows >= first) & (rows < stop)
            near.append(self._by_nearness(rows[inside], vectors[rows[inside] - first], rng))
            rows = rows[~inside]
        rows = np.concatenate([self._by_length(rows), *near])
        batches, dropped = self._pack([int(row) for row in rows])
        if not batches:
            raise InputError(
                f"epoch {number} has no batch: of {len(self)} examples {len(rows)} were sampled, and no "
                f"{self.smallest_batch} of them share source and instruction but neither query nor positive"
            )
        if dropped:
            logger.info("epoch %d: %d of %d examples do not fill a batch and are dropped", number, dropped, len(rows))
        if skip > len(batches):
            raise InputError(
                f"epoch {number} has {len(batches)} batches but {skip} are to be skipped; resume with the sources, "
                "ratios, batch size and seed that the run started with"
            )
        order = [batches[i] for i in rng.permutation(len(batches))]
        return Epoch(self, number, order, skip=skip, dropped=dropped)

    def _by_length(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sort by length within stretches of WINDOW batches, to save padding."""
        size = WINDOW * self.batch_size
        stretches = [rows[start : start + size] for start in range(0, len(rows), size)]
        return np.concatenate([part[np.argsort(self._lengths[part], kind="stable")] for part in stretches] or [rows])

    def _by_nearness(
        self, rows: NDArray[np.int64], vectors: NDArray[np.float32], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Order rows so that near ones follow each other: halved by which of two random rows is nearer, over and over.

        Halves hold whole batches, so that the cuts between batches are those between halves.
        """
        if len(rows) <= self.batch_size:
            return rows
        one, other = rng.choice(len(rows), 2, replace=False)
        order = np.argsort(vectors @ (vectors[other] - vectors[one]), kind="stable")
        half = len(rows) // self.batch_size // 2 * self.batch_size or self.batch_size
        parts = (order[:half], order[half:])
        return np.concatenate([self._by_nearness(rows[part], vectors[part], rng) for part in parts])

    def _pack(self, rows: list[int]) -> tuple[list[list[int]], int]:
        """Put every row in the first batch of its task after all that hold its query or its positive.

        Returns:
            The rows of every batch, and how many rows are left over.
        """
        packed: list[list[list[int]]] = [[] for _ in range(max(self._tasks) + 1)]
        full = [0] * len(packed)  # leading batches that are full
        after = [0] * self._texts  # the first batch after all that hold the text
        for row in rows:
            task, query, positive = self._tasks[row], self._queries[row], self._positives[row]
            batches = packed[task]
            number = max(full[task], after[query], after[positive])
            while number < len(batches) and len(batches[number]) == self.batch_size:
                number += 1
            if number == len(batches):  # never beyond, since a text's last batch exists
                batches.append([])
            batches[number].append(row)
            after[query] = after[positive] = number + 1
            while full[task] < len(batches) and len(batches[full[task]]) == self.batch_size:
                full[task] += 1
        kept = [batch for batches in packed for batch in batches if len(batch) >= self.smallest_batch]
        return kept, len(rows) - sum(map(len, kept))


class Epoch:
    """The batches of one epoch, made one by one while iterating.

    Attributes:
        number: As given to ``Batches.epoch``.
        examples: Number of examples in all its batches, skipped ones included.
        dropped: Number of sampled examples that are in no batch.
    """

    def __init__(self, source: Batches, number: int, rows: list[list[int]], *, skip: int, dropped: int) -> None:
        self.number = number
        self.examples = sum(map(len, rows))
        self.dropped = dropped
        self._source = source
        self._rows = rows
        self._skip = skip

    def __len__(self) -> int:
        """Number of batches after the skipped ones."""
        return len(self._rows) - self._skip

    def __iter__(self) -> Iterator[Batch]:
        for position in range(self._skip, len(self._rows)):
            # By position, so that a resumed epoch draws the same negatives.
            rng = np.random.default_rng([self._source.seed, self.number, 1, position])
            examples = tuple(self._source._examples[row] for row in self._rows[position])
            k = self._source.negatives_per_query
            drawn = tuple(_draw(rng, example.negatives, k) for example in examples)
            yield Batch(examples, drawn, kept=self._source._kept[self._rows[position][0]])


def _sample(rng: np.random.Generator, first: int, stop: int, ratio: float) -> NDArray[np.int64]:
    """Rows first..stop-1, repeated and sampled by the ratio."""
    rows = np.arange(first, stop)
    whole = int(ratio)
    part = rng.permutation(rows)[: round((ratio - whole) * len(rows))]
    return np.concatenate([*[rows] * whole, part])


def _draw(rng: np.random.Generator, negatives: tuple[str, ...], k: int) -> tuple[str, ...]:
    if len(negatives) <= k:
        return negatives
    return tuple(negatives[i] for i in rng.permutation(len(negatives))[:k])


def _digest(text: str) -> bytes:
    return blake2b(_spaced(text).encode(), digest_size=16).digest()


def _spaced(text: str) -> str:
    """A text with every run of white space as a single space."""
    return " ".join(text.split())
