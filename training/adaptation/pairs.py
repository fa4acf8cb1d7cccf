"""Pairs of a query and a document of an index: read, set aside with a reason, and split by query."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.indexer.documents import StoredPassage
from searchkit.ranking import SearchOptions
from searchkit.readers.rejects import Rejects
from searchkit.records import Judgements, Qrels, Query, join_title
from searchkit.training.adaptation.config import AdaptConfig
from searchkit.training.dataset import Example, read_examples
from searchkit.training.files import remove
from searchkit.training.texts import fingerprint

FEWEST_PAIRS = 50
FEWEST_HELD_OUT = 10  # queries
_BATCH = 256


@dataclass(frozen=True, slots=True)
class SortedPairs:
    """What becomes of the pairs.

    Args:
        training: Examples to train on.
        held_out: Examples that judge the result; empty where the user gave judgements.
        read: Pairs read, bad rows included.
        set_aside: Pairs that are in neither part.
    """

    training: list[Example]
    held_out: list[Example]
    read: int
    set_aside: int

    def counts(self) -> dict[str, int]:
        """The numbers, by their names in the report."""
        return {
            "read": self.read,
            "trained_on": len(self.training),
            "held_out": len(self.held_out),
            "set_aside": self.set_aside,
        }


def sort_pairs(
    config: AdaptConfig, engine: SearchEngine, judgements: Judgements | None, set_aside: Path
) -> SortedPairs:
    """Read the pairs, and divide them into those to train on and those that judge.

    Args:
        config: Names the files, and how much is held out.
        engine: The index.
        judgements: The user's own, if any; then nothing is held out.
        set_aside: Where pairs that are in neither part go, with the reason.

    Raises:
        InputError: Too few pairs are left.
    """
    remove(set_aside)
    held_out: list[Example] = []
    with Rejects(set_aside) as rejects:
        examples = read_pairs(config.pairs, engine, rejects)
        read = len(examples) + rejects.count
        judging = {fingerprint(query.text) for query in judgements.queries} if judgements else set()
        training = list(filter_pairs(examples, engine, judging, rejects, depth=config.depth))
        if judgements is None:
            training, held_out = split(training, share=config.held_out, most=config.most_held_out, seed=config.seed)
        count = rejects.count
    queries = len({fingerprint(example.query) for example in held_out})
    if len(training) < FEWEST_PAIRS or (judgements is None and queries < FEWEST_HELD_OUT):
        there, needed = f"{len(training)} of {read} are left to train on", f"at least {FEWEST_PAIRS} pairs"
        advice = "give more pairs"
        if judgements is None:
            there += f", and {queries} held-out queries to judge by"
            needed += f" and {FEWEST_HELD_OUT} held-out queries"
            advice += ", or judgements of your own (--queries and --qrels, or --beir), so that none are held out"
            if unknown := sum(example.positive_id is None for example in training):
                advice += (
                    f"; the positives of {unknown} pairs are no documents of the index, so they cannot be held out: "
                    "name documents by positive_id"
                )
        aside = f". Set aside: {count}, with reasons in {set_aside}" if count else ""
        raise InputError(f"too few pairs: {there}; {needed} are needed; {advice}{aside}")
    return SortedPairs(sorted(training, key=lambda example: example.positive_id or ""), held_out, read, count)


def read_pairs(files: Iterable[Path], engine: SearchEngine, rejects: Rejects) -> list[Example]:
    """Read examples, and find the document of the index that each positive is.

    Args:
        files: JSON lines that `read_examples` reads.
        engine: The index that a `positive_id` refers to, and whose documents a `positive` may equal.
        rejects: Where bad rows go.

    Returns:
        The examples; `positive_id` is None where the positive is not in the index.
    """
    examples = [example for file in files for example in read_examples(file, corpus=engine, rejects=rejects)]
    if all(example.positive_id for example in examples):
        return examples
    unknown = {fingerprint(example.positive) for example in examples if not example.positive_id}
    ids: dict[bytes, str] = {}
    for document in engine.documents():
        for text in (join_title(document.title, document.text), document.text):
            if (mark := fingerprint(text)) in unknown:
                ids.setdefault(mark, document.id)
    return [
        example if example.positive_id else replace(example, positive_id=ids.get(fingerprint(example.positive)))
        for example in examples
    ]


def filter_pairs(
    examples: Sequence[Example], engine: SearchEngine, judging: Collection[bytes], rejects: Rejects, *, depth: int
) -> Iterator[Example]:
    """Yield the examples that are worth training on, and set the others aside with the reason.

    Set aside are repeated examples, those whose query is one of the judgements', and those whose document is not among
    the first hits for its own query, as such a pair is usually wrong. Where the document has several passages, the
    positive becomes the passage that is nearest to the query.

    Args:
        examples: As `read_pairs` returns them.
        engine: The index, searched with its default options.
        judging: Fingerprints of the judgements' queries.
        rejects: Where the others go.
        depth: Number of hits to look at.
    """
    seen: set[tuple[bytes, bytes]] = set()
    new = []
    for number, example in enumerate(examples, start=1):
        query, positive = fingerprint(example.query), fingerprint(example.positive)
        location = f"{example.source}, example {number}"
        if query in judging:
            rejects.refuse(location, "its query is one of those that judge the result", example.query)
        elif (query, positive) in seen:
            rejects.refuse(location, "it repeats an earlier pair", example.query)
        else:
            seen.add((query, positive))
            new.append((location, example))
    for start in range(0, len(new), _BATCH):
        yield from _retrieved(new[start : start + _BATCH], engine, rejects, depth)


def split(examples: Sequence[Example], *, share: float, most: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Divide the examples by query into (those to train on, those held out): queries of one text stay together.

    Only queries whose documents are all in the index can be held out.

    Args:
        examples: All of them.
        share: Share of the queries to hold out.
        most: Largest number of queries to hold out.
        seed: Decides which.
    """
    marks = [fingerprint(example.query) for example in examples]
    unjudged = {mark for mark, example in zip(marks, examples, strict=True) if example.positive_id is None}
    queries = sorted(set(marks) - unjudged)
    random.Random(seed).shuffle(queries)
    chosen = set(queries[: min(most, round(share * len(queries)))])
    parts: tuple[list[Example], list[Example]] = ([], [])
    for mark, example in zip(marks, examples, strict=True):
        parts[mark in chosen].append(example)
    return parts


def as_judgements(examples: Iterable[Example]) -> tuple[list[Query], Qrels]:
    """Held-out examples as queries and qrels; a query that several documents answer is one query."""
    queries: dict[tuple[bytes, str | None], Query] = {}
    qrels: Qrels = {}
    for example in examples:
        key = fingerprint(example.query), example.instruction
        query = queries.setdefault(key, Query(f"held-{len(queries) + 1}", example.query, example.instruction))
        qrels.setdefault(query.id, {})[str(example.positive_id)] = 1
    return list(queries.values()), qrels


def _retrieved(
    batch: Sequence[tuple[str, Example]], engine: SearchEngine, rejects: Rejects, depth: int
) -> Iterator[Example]:
    """The examples whose document is among the hits for their query, with the nearest passage as the positive."""
    queries = [Query("", example.query, example.instruction) for _, example in batch]
    rankings = engine.rank(queries, k=depth, options=SearchOptions())
    ids = engine.ids_of(rankings)
    passages = _passages(engine, {example.positive_id for _, example in batch if example.positive_id})
    vectors = engine.embed(queries) if any(len(rows) > 1 for rows in passages.values()) else None
    for n, (location, example) in enumerate(batch):
        if example.positive_id is None:  # the index knows nothing of a text from outside it
            yield example
        elif example.positive_id not in {ids[item.doc] for item in rankings[n]}:
            rejects.refuse(location, f"its document is not among the first {depth} hits for its query", example.query)
        elif vectors is None or len(passages[example.positive_id]) == 1:
            yield example
        else:
            own = passages[example.positive_id]
            similarities = engine.similarities(vectors[n], np.array([item.row for item in own], dtype=np.int64))
            nearest = own[int(similarities.argmax())]
            yield replace(example, positive=join_title(nearest.title, nearest.text))


def _passages(engine: SearchEngine, ids: Collection[str]) -> dict[str, list[StoredPassage]]:
    """The passages of some documents, by document id."""
    rows: list[int] = []
    for doc in engine.store.documents.positions_of(sorted(ids)):
        first, document = engine.store.documents.document(doc)
        rows += range(first, first + len(document.spans))
    passages: dict[str, list[StoredPassage]] = {}
    for passage in engine.store.documents.passages(rows).values():
        passages.setdefault(passage.id, []).append(passage)
    return passages
