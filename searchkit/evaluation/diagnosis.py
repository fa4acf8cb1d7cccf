"""Where a ranking loses: by rank, by query length, by what the model does not read, by gaps in the judgements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from math import isnan
from typing import Any, TypeVar

import numpy as np

from searchkit.evaluation.evaluate import Evaluation, judged_queries, make_ranker
from searchkit.metrics import top
from searchkit.ranking import SearchOptions
from searchkit.records import Judgements, Qrels, Query, Run, join_title
from searchkit.scripts import WORD
from searchkit.searcher import Searcher
from searchkit.significance import confidence_interval

T = TypeVar("T")

DEEPEST = 1000
"""Deepest rank of the recall curve, if the index holds that many documents."""

METRIC = "ndcg@10"
_BATCH = 256  # queries whose deep rankings are in memory at a time
_TEXTS = 1024  # documents whose tokens are counted at a time
_BINS, _FEWEST = 5, 20  # most groups of query lengths, and about the fewest queries of a group


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over queries with its 95 % confidence interval by Student's t, clipped to 0 to 1; NaN for one query."""

    mean: float
    low: float
    high: float

    def summary(self) -> dict[str, float | None]:
        """For JSON, which has no NaN."""
        ends = {"low": self.low, "high": self.high}
        return {"mean": self.mean, **{name: None if isnan(value) else value for name, value in ends.items()}}


@dataclass(frozen=True, slots=True)
class Group:
    """Queries that have something in common.

    Args:
        name: What they have in common.
        queries: Their ids; never empty.
        scores: Their nDCG@10 in every mode.
    """

    name: str
    queries: tuple[str, ...]
    scores: dict[str, Interval]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of documents or queries in tokens, including special tokens, prefix and instruction.

    Args:
        texts: Number of texts.
        room: Most tokens of one input.
        longer: Number of texts with more.
        longest: Tokens of the longest text.
        tokens: Tokens of all texts.
        beyond: Tokens past the room of their text, which are lost if texts are cut.
    """

    texts: int
    room: int
    longer: int
    longest: int
    tokens: int
    beyond: int


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Result of :func:`diagnose`.

    Args:
        recall: Mode -> recall@1, @2 ... down to the deepest rank, mean over all judged queries.
        first: Mode -> {query id: rank of the first relevant document}, None if there is none down to the deepest rank;
            without queries that have no relevant document.
        judged: Mode -> judged@10: the share of the first ten documents that are judged for their query, mean over the
            queries with hits.
        judgements: Counts: queries, relevant, not_relevant, unknown (documents missing from the index),
            queries_without_relevant.
        by_words: Queries by their number of words, short ones first.
        cut: Whether documents that are too long for the model are cut, as in an index of whole documents; otherwise
            they are split into passages.
        documents: Lengths of documents.
        queries: Lengths of queries with their instructions; long queries are always cut.
        by_document: Queries by whether their relevant documents are too long for the model.
        by_query: Queries by whether they are too long themselves; empty if none is.
    """

    recall: dict[str, list[float]]
    first: dict[str, dict[str, int | None]]
    judged: dict[str, float]
    judgements: dict[str, int]
    by_words: list[Group]
    cut: bool
    documents: Lengths
    queries: Lengths
    by_document: list[Group]
    by_query: list[Group]

    def unfound(self, mode: str) -> int:
        """Number of queries with relevant documents but none among their hits."""
        return sum(rank is None for rank in self.first[mode].values())

    def summary(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        groups = {"by_words": self.by_words, "by_document": self.by_document, "by_query": self.by_query}
        return {
            "judgements": self.judgements,
            "recall": self.recall,
            "first_relevant": self.first,
            "judged@10": {mode: None if isnan(share) else share for mode, share in self.judged.items()},
            "long_documents_are": "cut" if self.cut else "split into passages",
            "documents": {name: getattr(self.documents, name) for name in Lengths.__slots__},
            "queries": {name: getattr(self.queries, name) for name in Lengths.__slots__},
            **{
                name: [
                    {
                        "name": group.name,
                        "queries": len(group.queries),
                        METRIC: {mode: score.summary() for mode, score in group.scores.items()},
                    }
                    for group in members
                ]
                for name, members in groups.items()
            },
        }


def diagnose(
    engine: Searcher,
    judgements: Judgements,
    evaluations: Sequence[Evaluation],
    *,
    options: SearchOptions | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Analyse where the queries of an evaluation lose.

    Every mode is searched again, deeply, for the recall curve; everything else comes from the evaluation.

    Args:
        engine: The index that was evaluated.
        judgements: The judgements of the evaluation.
        evaluations: What `searchkit.evaluation.evaluate.evaluate` returned.
        options: The options of the evaluation.
        on_step: Called with a message before each step.

    Raises:
        InputError: Judgements and index do not belong together.
        MissingExtraError: scipy is missing.
    """
    announce = on_step or (lambda step: None)
    queries, qrels = judged_queries(engine, judgements), judgements.qrels
    scores = {item.mode: item.per_query[METRIC] for item in evaluations}
    groups = Grouping(scores)  # first, so that a missing library is reported before anything is searched
    recall, first = {}, {}
    for mode in scores:
        announce(f"searching {mode} for {min(DEEPEST, len(engine))} documents a query")
        ranker = make_ranker(engine, mode, judgements, options)
        curve = RecallCurve(qrels, min(DEEPEST, max(1, len(engine))))
        for batch in _batches(queries, _BATCH):
            curve.add(ranker.run(batch, curve.depth))
        recall[mode], first[mode] = curve.values(), curve.first
    announce("counting tokens")
    relevant = relevant_documents(qrels)
    documents, long = _document_lengths(engine, set().union(*relevant.values()))
    lengths, long_queries = _query_lengths(engine, queries, judgements.instruction)
    cut = engine.settings["chunk_tokens"] == 0
    return Diagnosis(
        recall=recall,
        first=first,
        judged={item.mode: judged_at(item.run, qrels, 10) for item in evaluations},
        judgements=_judgements(engine, qrels),
        by_words=groups.of(_by_words(queries)),
        cut=cut,
        documents=documents,
        queries=lengths,
        by_document=groups.of(_by_document(relevant, long, "cut" if cut else "split")),
        by_query=groups.of(_by_query(queries, long_queries)),
    )


class RecallCurve:
    """Recall at every rank of a run that is added in parts.

    Args:
        qrels: All judgements; as in trec_eval, a query without a relevant document has a recall of 0.
        depth: The deepest rank.

    Attributes:
        first: Rank of the first relevant document of every query that has any; None until it is added.
    """

    def __init__(self, qrels: Qrels, depth: int) -> None:
        self.depth = depth
        self._count = len(qrels)
        self._relevant = relevant_documents(qrels)
        self._gained = np.zeros(depth)
        self.first: dict[str, int | None] = {query: None for query, documents in self._relevant.items() if documents}

    def add(self, run: Run) -> None:
        """Add the rankings of some queries; each query must be added once."""
        for query, documents in run.items():
            relevant = self._relevant.get(query, set())
            if not relevant & documents.keys():
                continue
            positions = [position for position, id in enumerate(top(documents, self.depth)) if id in relevant]
            self._gained[positions] += 1 / len(relevant)
            self.first[query] = positions[0] + 1

    def values(self) -> list[float]:
        """Recall@1, @2 ... @depth, means over all judged queries."""
        return [float(value) for value in np.cumsum(self._gained) / self._count]


def relevant_documents(qrels: Qrels) -> dict[str, set[str]]:
    """Query id -> documents with a gain above 0."""
    return {query: {id for id, gain in gains.items() if gain > 0} for query, gains in qrels.items()}


class Grouping:
    """Means of groups of queries, mode by mode.

    Args:
        scores: Mode -> {query id: value}.
    """

    def __init__(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        self._scores = scores
        confidence_interval(np.zeros(2))  # raises if scipy is missing

    def of(self, groups: Iterable[tuple[str, Sequence[str]]]) -> list[Group]:
        """Groups of (name, query ids) without the empty ones."""
        return [Group(name, tuple(ids), self.means(ids)) for name, ids in groups if ids]

    def means(self, queries: Sequence[str]) -> dict[str, Interval]:
        """Mode -> mean over one or more queries."""
        return {mode: _interval([values[id] for id in queries]) for mode, values in self._scores.items()}


def _interval(values: Sequence[float]) -> Interval:
    array = np.array(values, dtype=np.float64)
    low, high = (float(np.clip(end, 0, 1)) for end in confidence_interval(array))
    return Interval(float(array.mean()), low, high)


def judged_at(run: Run, qrels: Qrels, k: int) -> float:
    """The share of each query's first k documents that are judged, mean over the queries with hits; NaN if none has."""
    shares = []
    for query, documents in run.items():
        shown = top(documents, k)
        if shown and query in qrels:
            shares.append(len(shown.keys() & qrels[query].keys()) / len(shown))
    return sum(shares) / len(shares) if shares else float("nan")


def count_words(text: str) -> int:
    """Number of words; in scripts without spaces every character is a word."""
    return sum(1 for _ in WORD.finditer(text))


def bins(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(shortest, longest) of up to five groups of about equal size, without gaps."""
    order = sorted(lengths)
    wanted = min(_BINS, max(1, len(order) // _FEWEST))
    starts = sorted({order[n * len(order) // wanted] for n in range(wanted)} | {order[0]})
    return [(low, high - 1) for low, high in pairwise([*starts, order[-1] + 1])]


def _by_words(queries: Sequence[Query]) -> list[tuple[str, list[str]]]:
    words = {query.id: count_words(query.text) for query in queries}
    return [
        (f"{low}" if low == high else f"{low} to {high}", [id for id, count in words.items() if low <= count <= high])
        for low, high in bins(list(words.values()))
    ]


def _document_lengths(engine: Searcher, relevant: set[str]) -> tuple[Lengths, dict[str, bool]]:
    """Lengths of all documents, and whether each relevant one in the index is longer than one passage."""
    embedder, settings = engine.embedder, engine.settings
    room = embedder.max_length
    if settings["chunk_tokens"]:
        room = min(room, settings["chunk_tokens"] + embedder.special_tokens)
    counts, long = [np.empty(0, np.int64)], {}
    for batch in _batches(engine.documents(), _TEXTS):
        tokens = embedder.passage_tokens([join_title(document.title, document.text) for document in batch])
        counts.append(np.array(tokens, dtype=np.int64))
        counted = zip(batch, tokens, strict=True)
        long.update({document.id: count > room for document, count in counted if document.id in relevant})
    return _lengths(np.concatenate(counts), room), long


def _query_lengths(engine: Searcher, queries: Sequence[Query], instruction: str | None) -> tuple[Lengths, set[str]]:
    """Lengths of the queries, and the ids of those that are cut."""
    embedder, room = engine.embedder, engine.embedder.max_length
    tokens = [
        embedder.query_tokens([query.text], instruction if query.instruction is None else query.instruction)[0]
        for query in queries
    ]
    counts = np.array(tokens, dtype=np.int64)
    return _lengths(counts, room), {query.id for query, count in zip(queries, counts, strict=True) if count > room}


def _lengths(counts: np.ndarray, room: int) -> Lengths:
    beyond = np.maximum(counts - room, 0)
    longest = int(counts.max(initial=0))
    return Lengths(len(counts), room, int((beyond > 0).sum()), longest, int(counts.sum()), int(beyond.sum()))


def _by_document(relevant: Mapping[str, set[str]], long: Mapping[str, bool], done: str) -> list[tuple[str, list[str]]]:
    """Queries by how many of their relevant documents in the index are too long."""
    names = (f"none {done}", f"some {done}", f"all {done}")
    groups: dict[str, list[str]] = {name: [] for name in names}
    for query, documents in relevant.items():
        indexed = [long[id] for id in documents if id in long]
        if indexed:
            groups[names[2 if all(indexed) else int(any(indexed))]].append(query)
    return list(groups.items())


def _by_query(queries: Sequence[Query], long: set[str]) -> list[tuple[str, list[str]]]:
    if not long:
        return []
    ids = [query.id for query in queries]
    return [("read whole", [id for id in ids if id not in long]), ("cut", [id for id in ids if id in long])]


def _judgements(engine: Searcher, qrels: Qrels) -> dict[str, int]:
    gains = [gain for judged in qrels.values() for gain in judged.values()]
    documents = sorted({document for judged in qrels.values() for document in judged})
    return {
        "queries": len(qrels),
        "relevant": sum(gain > 0 for gain in gains),
        "not_relevant": sum(gain <= 0 for gain in gains),
        "unknown": len(documents) - len(engine.known_ids(documents)),
        "queries_without_relevant": sum(all(gain <= 0 for gain in judged.values()) for judged in qrels.values()),
    }


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    stream = iter(items)
    while batch := list(islice(stream, size)):
        yield batch
