"""Training examples from JSON lines, and the batches that an epoch is made of."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from searchkit.engine import SearchEngine
from searchkit.errors import CorpusError, InputError, RowError
from searchkit.readers.corpus import read_corpus
from searchkit.readers.lines import existing, nonblank_lines
from searchkit.readers.rejects import Rejects
from searchkit.readers.values import check_storable, checked_id, json_object, quoted, typename
from searchkit.records import Document, join_title
from searchkit.tasks import find_task

logger = logging.getLogger(__name__)

WINDOW = 32
"""Batches within which examples are sorted by length; a batch is still drawn from many."""


@dataclass(frozen=True, slots=True)
class Example:
    """A query with the passage it should find.

    Args:
        query: Without its instruction.
        positive: The passage to find.
        negatives: Hard negatives, best first; may be empty.
        instruction: The task sentence put before the query; None leaves it to the model, "" is none at all.
        source: Where it comes from; examples of two sources never share a batch.
        positive_id: The document that the positive was looked up by, if it was.
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    instruction: str | None = None
    source: str = ""
    positive_id: str | None = field(default=None, compare=False)


def read_examples(
    path: Path | str, *, corpus: Path | str | SearchEngine | None = None, rejects: Rejects | None = None
) -> Iterator[Example]:
    """Yield the training examples of a JSON-lines file, in its order.

    A row has "query", "positive", maybe "negatives" (a list) or "negative", maybe "instruction" or a named "task",
    maybe "source" (else the file's name without its suffixes). "positive_id" and "negative_ids" stand for documents of
    ``corpus``. What is written out wins over what has to be looked up: "positive" over "positive_id", "instruction"
    over "task". A negative that comes twice in a row counts once. Null is as good as missing, other keys are ignored.

    Args:
        path: JSON lines, maybe gzipped.
        corpus: Anything ``read_corpus`` reads, the folder of an index, or an index that is open; only the documents
            that the rows name are held.
        rejects: Where bad rows of both go; None raises on the first.

    Raises:
        CorpusError: At once for a path that is not there; on the way for bad rows, damaged files, ids without a corpus
            and a file without a single example.
    """
    path = existing(path)
    rejects = Rejects() if rejects is None else rejects
    if rejects.path is not None and rejects.path.exists() and rejects.path.samefile(path):
        raise CorpusError(f"{path}: refused rows would overwrite the examples themselves; name another file")
    name = str(corpus.store.folder if isinstance(corpus, SearchEngine) else corpus)
    return _read_examples(path, None if corpus is None else _documents(corpus, rejects), name, rejects)


def _documents(corpus: Path | str | SearchEngine, rejects: Rejects) -> Iterator[Document]:
    if isinstance(corpus, SearchEngine):
        return corpus.documents()
    if (Path(corpus) / "index.db").is_file():
        return _of_index(Path(corpus))
    return read_corpus(corpus, rejects=rejects)


def _of_index(folder: Path) -> Iterator[Document]:
    with SearchEngine.open(folder) as engine:
        yield from engine.documents()


def _read_examples(
    path: Path, documents: Iterator[Document] | None, corpus: str, rejects: Rejects
) -> Iterator[Example]:
    texts = {} if documents is None else _texts(documents, _wanted(path), rejects)
    source = Path(path.name.removesuffix(".gz")).stem
    rows = good = 0
    first = ""
    for place, line, fault in nonblank_lines(path):
        rows += 1
        try:
            if fault:
                raise RowError(fault)
            values = json_object(line)
            if documents is None and (ids := _ids(values)):
                raise CorpusError(
                    f'{place}: names document "{ids[0]}" but no corpus came to look it up in; '
                    "give the corpus that the ids belong to"
                )
            example = _example(values, source, texts, corpus)
        except RowError as error:
            first = first or f"{place}: {error}"
            rejects.refuse(place, str(error), line)
        else:
            good += 1
            yield example
    if not good:
        raise CorpusError(f"{path}: no examples in it" + (f"; all {rows} rows were refused ({first})" if rows else ""))


def _ids(values: dict[str, Any]) -> list[object]:
    """The ids that stand for text in a row."""
    ids = []
    if values.get("positive") is None and values.get("positive_id") is not None:
        ids.append(values["positive_id"])
    if values.get("negatives") is None and values.get("negative") is None:
        negatives = values.get("negative_ids")
        ids += negatives if isinstance(negatives, list) else []
    return ids


def _wanted(path: Path) -> set[str]:
    """Every id that the rows of a file name."""
    wanted: set[str] = set()
    for _, line, fault in nonblank_lines(path):
        try:
            values = {} if fault else json_object(line)
        except RowError:
            continue  # reported when the rows themselves are read
        wanted.update(str(id) for id in _ids(values) if isinstance(id, str | int))
    return wanted


def _texts(documents: Iterator[Document], wanted: Collection[str], rejects: Rejects) -> dict[str, str]:
    texts: dict[str, str] = {}
    for document in documents:
        if document.id in wanted:
            text = join_title(document.title, document.text)
            if texts.setdefault(document.id, text) != text:
                rejects.refuse(document.place, f'document id "{document.id}" came before with another text')
    return texts


def _example(values: dict[str, Any], source: str, texts: Mapping[str, str], corpus: str) -> Example:
    if values.get("query") is None:
        raise RowError(f'no "query" among {quoted(values)}')
    query = _text("query", values["query"])
    positive_id = None
    if values.get("positive") is not None:
        positive = _text("positive", values["positive"])
    elif values.get("positive_id") is not None:
        positive = _looked_up("positive_id", values["positive_id"], texts, corpus)
        positive_id = str(values["positive_id"])
    else:
        raise RowError(f'no "positive" and no "positive_id" among {quoted(values)}')
    negatives = tuple(dict.fromkeys(_negatives(values, texts, corpus)))
    if folded(query) == folded(positive):
        raise RowError("the query is its own positive; there is nothing to learn from it")
    if negatives and folded(positive) in map(folded, negatives):
        raise RowError("a negative is the positive itself; one of the two is wrong")
    source = _text("source", values.get("source") or source)
    return Example(query, positive, negatives, _instruction(values), source, positive_id)


def _negatives(values: dict[str, Any], texts: Mapping[str, str], corpus: str) -> list[str]:
    given = {name: values[name] for name in ("negatives", "negative") if values.get(name) is not None}
    if len(given) == 2:
        raise RowError('both "negatives" and "negative"; give one of them')
    if "negative" in given:
        return [_text("negative", given["negative"])]
    name = "negatives" if given else "negative_ids"
    many = values.get(name)
    if many is None:
        return []
    if not isinstance(many, list):
        raise RowError(f"{name} is {typename(many)}; it must be a list")
    if given:
        return [_text("a negative", one) for one in many]
    return [_looked_up(name, one, texts, corpus) for one in many]


def _instruction(values: dict[str, Any]) -> str | None:
    instruction, task = values.get("instruction"), values.get("task")
    if instruction is not None:
        return _text("instruction", instruction, blank=True)
    if task is None:
        return None
    if (known := find_task(_text("task", task))) is None:
        raise RowError(f'no task is called "{task}"; write its sentence as "instruction"')
    return known.instruction


def _text(name: str, value: object, *, blank: bool = False) -> str:
    if not isinstance(value, str):
        raise RowError(f"{name} is {typename(value)}; it must be a string")
    check_storable(name, value)
    text = value.strip()
    if not text and not blank:
        raise RowError(f"{name} is blank")
    return text


def _looked_up(name: str, value: object, texts: Mapping[str, str], corpus: str) -> str:
    try:
        id = checked_id(value)
    except RowError as error:
        raise RowError(f"{name}: {error}") from None
    if id not in texts:
        raise RowError(f'{name}: no document "{id}" in {corpus}')
    return _text(f'document "{id}"', texts[id])


def folded(text: str) -> str:
    """A text without case and white space."""
    return "".join(text.casefold().split())


def _spaced(text: str) -> str:
    """A text with every stretch of white space a single space."""
    return " ".join(text.split())


@dataclass(frozen=True, slots=True)
class Source:
    """A file of examples and how much of it an epoch takes.

    Args:
        path: JSON lines that ``read_examples`` reads.
        ratio: Share of the examples drawn anew for every epoch; 2.5 takes all of them twice and a half of them again.
        instruction: Instead of the examples' own; None keeps those, "" is none at all.
        mixed: Let examples with different instructions share a batch: for synthetic data, where nearly every example
            has an instruction of its own. Not for labels, which are right or wrong only within their task.
        kept: Only keep the vectors of these texts as the teacher has them: no contrast. Against forgetting.
    """

    path: Path
    ratio: float = 1.0
    instruction: str | None = None
    mixed: bool = False
    kept: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ratio) and self.ratio > 0):
            raise InputError(f"{self.path}: the sample ratio is {self.ratio:g}; it must be above 0, such as 0.5 or 2")

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read FILE or FILE@SETTINGS, such as "synthetic.jsonl@2,mixed": a ratio, "mixed", "kept", or some of these.

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
        negatives: The hard negatives drawn for each of them; may be of different lengths, or empty.
        kept: Of a source whose vectors are only kept as they are.
    """

    examples: tuple[Example, ...]
    negatives: tuple[tuple[str, ...], ...]
    kept: bool = False

    def __len__(self) -> int:
        return len(self.examples)

    def part(self, positions: Sequence[int]) -> Batch:
        """The examples at some positions, in that order, with their negatives."""
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

        Such a passage is no negative and has to be masked. Copies differ in white space at most; a query's own
        positive, which is the passage of the same position, is False.
        """
        numbers: dict[str, int] = {}
        texts = np.array([numbers.setdefault(_spaced(text), len(numbers)) for text in self.passages()], dtype=np.int64)
        same: NDArray[np.bool_] = texts[: len(self), None] == texts[None, :]
        np.fill_diagonal(same, False)
        return same


class Batches:
    """The batches of every epoch, the same for the same sources, seed and epoch.

    A batch holds examples of like length and of one task: one source with one instruction (or any, for a mixed source).
    Two examples with the same query or the same positive text are never in one batch; the later one moves to a later
    batch. What is left of a task and fills no batch of the smallest size is dropped and counted in ``Epoch.dropped``.

    Args:
        sources: Every source with all of its examples.
        batch_size: Most examples of a batch; the last batches of a task are smaller.
        seed: Decides the samples, their order and the hard negatives drawn.
        negatives_per_query: How many hard negatives each query brings, drawn anew for every epoch; fewer where an
            example has fewer.
        smallest_batch: Texts that many examples share leave very small batches, each as much a step as a full one: of
            374,038 pairs from seven files in 253 batches of at most 2048, 320 pairs filled 66 batches below 64. But a
            task of few labels has no larger ones.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Source, Sequence[Example]]],
        batch_size: int,
        *,
        seed: int = 0,
        negatives_per_query: int = 1,
        smallest_batch: int = 2,
    ) -> None:
        if batch_size < 2:
            raise InputError(f"batch_size is {batch_size}; a batch takes 2 examples or more, or there are no negatives")
        if not 2 <= smallest_batch <= batch_size:
            raise InputError(f"smallest_batch is {smallest_batch}; it must be between 2 and batch_size, {batch_size}")
        if negatives_per_query < 0:
            raise InputError(f"negatives_per_query is {negatives_per_query}; it must be 0 or more")
        if seed < 0:
            raise InputError(f"seed is {seed}; it must be 0 or more")
        self.batch_size = batch_size
        self.seed = seed
        self.negatives_per_query = negatives_per_query
        self.smallest_batch = smallest_batch
        self._examples: list[Example] = []
        self._samples: list[tuple[int, int, float]] = []  # first row, row after the last, ratio
        self._tasks: list[int] = []  # of every row, as are the next three
        self._kept: list[bool] = []
        self._queries: list[int] = []
        self._positives: list[int] = []
        # Digests, as the texts without their extra white space would take as much memory again.
        tasks: dict[Hashable, int] = {}
        texts: dict[Hashable, int] = {}
        for number, (source, examples) in enumerate(sources):
            first = len(self._examples)
            for example in examples:
                if source.instruction is not None:
                    example = replace(example, instruction=source.instruction)
                # The number too: a/train.jsonl and b/train.jsonl give their examples the same source.
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
            raise InputError(f"{len(sources)} sources with no examples in them; there is nothing to make batches of")

    def __len__(self) -> int:
        """How many examples there are, before sampling."""
        return len(self._examples)

    def epoch(self, number: int, *, skip: int = 0) -> Epoch:
        """Return the batches of an epoch without the first ``skip``: to resume, skip as many as were trained on.

        Raises:
            ValueError: The epoch has no batch at all, or fewer than are to be skipped.
        """
        if number < 0 or skip < 0:
            raise InputError(f"epoch {number} and skip {skip} must be 0 or more")
        rng = np.random.default_rng([self.seed, number, 0])
        rows = rng.permutation(np.concatenate([_sample(rng, *sample) for sample in self._samples]))
        rows = self._like_lengths(rows)
        batches, dropped = self._pack([int(row) for row in rows])
        if not batches:
            raise InputError(
                f"epoch {number} has no batch: {len(self)} examples came, {len(rows)} were drawn, and no "
                f"{self.smallest_batch} of them share source and instruction but neither query nor positive"
            )
        if dropped:
            logger.info("epoch %d: %d of %d examples are dropped, too few share a batch", number, dropped, len(rows))
        if skip > len(batches):
            raise InputError(
                f"epoch {number} has {len(batches)} batches but {skip} are to be skipped; resume with the sources, "
                "ratios, batch size and seed that the run began with"
            )
        order = [batches[place] for place in rng.permutation(len(batches))]
        return Epoch(self, number, order, skip=skip, dropped=dropped)

    def _like_lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Put examples of like length beside each other, within stretches of WINDOW batches, to save padding."""
        size = WINDOW * self.batch_size
        stretches = [rows[start : start + size] for start in range(0, len(rows), size)]
        return np.concatenate([part[np.argsort(self._lengths[part], kind="stable")] for part in stretches])

    def _pack(self, rows: list[int]) -> tuple[list[list[int]], int]:
        """Put every row in the first batch of its task after those that hold its query or its positive."""
        packed: list[list[list[int]]] = [[] for _ in range(max(self._tasks) + 1)]
        full = [0] * len(packed)  # batches at the front that take no more
        after = [0] * self._texts  # the first batch behind all that hold the text
        for row in rows:
            task, query, positive = self._tasks[row], self._queries[row], self._positives[row]
            batches = packed[task]
            place = max(full[task], after[query], after[positive])
            while place < len(batches) and len(batches[place]) == self.batch_size:
                place += 1
            # One behind the last at most: a text's last batch is there.
            if place == len(batches):
                batches.append([])
            batches[place].append(row)
            after[query] = after[positive] = place + 1
            while full[task] < len(batches) and len(batches[full[task]]) == self.batch_size:
                full[task] += 1
        kept = [batch for batches in packed for batch in batches if len(batch) >= self.smallest_batch]
        return kept, len(rows) - sum(map(len, kept))


class Epoch:
    """The batches of one epoch, made one by one as they are iterated over.

    Attributes:
        number: As given to ``Batches.epoch``.
        examples: How many examples all its batches hold, skipped ones included.
        dropped: How many were drawn but had too few to share a batch with.
    """

    def __init__(self, source: Batches, number: int, rows: list[list[int]], *, skip: int, dropped: int) -> None:
        self.number = number
        self.examples = sum(map(len, rows))
        self.dropped = dropped
        self._source = source
        self._rows = rows
        self._skip = skip

    def __len__(self) -> int:
        """How many batches are left after the skipped ones."""
        return len(self._rows) - self._skip

    def __iter__(self) -> Iterator[Batch]:
        for position in range(self._skip, len(self._rows)):
            # By position, so that a resumed epoch draws what the whole one would have.
            rng = np.random.default_rng([self._source.seed, self.number, 1, position])
            examples = tuple(self._source._examples[row] for row in self._rows[position])
            k = self._source.negatives_per_query
            drawn = tuple(_draw(rng, example.negatives, k) for example in examples)
            yield Batch(examples, drawn, kept=self._source._kept[self._rows[position][0]])


def _sample(rng: np.random.Generator, first: int, stop: int, ratio: float) -> NDArray[np.int64]:
    """Rows first..stop-1, as often as the ratio says."""
    rows = np.arange(first, stop)
    whole = int(ratio)
    part = rng.permutation(rows)[: round((ratio - whole) * len(rows))]
    return np.concatenate([*[rows] * whole, part])


def _draw(rng: np.random.Generator, negatives: tuple[str, ...], k: int) -> tuple[str, ...]:
    if len(negatives) <= k:
        return negatives
    return tuple(negatives[place] for place in rng.permutation(len(negatives))[:k])


def _digest(text: str) -> bytes:
    return blake2b(_spaced(text).encode(), digest_size=16).digest()
