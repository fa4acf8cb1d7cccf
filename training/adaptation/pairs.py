"""Pairs of a query and a document of an index: read, set aside with a reason, and split by document."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from searchkit.engine import SearchEngine
from searchkit.indexer.documents import StoredPassage
from searchkit.ranking import SearchOptions
from searchkit.readers.rejects import Rejects
from searchkit.records import Document, Qrels, Query, join_title
from searchkit.training.contamination import fingerprint
from searchkit.training.dataset import Example, read_examples

_BATCH = 256


def read_pairs(files: Iterable[Path], engine: SearchEngine, rejects: Rejects) -> list[Example]:
    """The examples of some files, each with the id of the document that its positive is, where it is one.

    Args:
        files: JSON lines that `read_examples` reads.
        engine: The index that a `positive_id` names a document of, and that a `positive` may be a document of.
        rejects: Where bad rows go.
    """
    found = [example for file in files for example in read_examples(file, corpus=engine, rejects=rejects)]
    if all(example.positive_id for example in found):
        return found
    wanted = {fingerprint(example.positive) for example in found if not example.positive_id}
    ids: dict[bytes, str] = {}
    for document in engine.documents():
        for key in _fingerprints(document):
            if key in wanted:
                ids.setdefault(key, document.id)
    return [
        example if example.positive_id else replace(example, positive_id=ids.get(fingerprint(example.positive)))
        for example in found
    ]


def sieve(
    examples: Sequence[Example], engine: SearchEngine, judging: Collection[bytes], rejects: Rejects, *, depth: int
) -> Iterator[Example]:
    """Yield the examples that are worth training on; the others are set aside with the reason.

    Set aside are those that came before, those that ask what the judgements ask, and those whose document is not
    among the first hits for its own query: such a pair is mostly wrong. The positive of a document of several
    passages becomes the passage that is nearest to the query.

    Args:
        examples: As `read_pairs` gives them.
        engine: The index; it searches as it does by default.
        judging: Fingerprints of the queries that judge.
        rejects: Where the others go.
        depth: How many hits are looked at.
    """
    seen: set[tuple[bytes, bytes]] = set()
    fresh = []
    for number, example in enumerate(examples, start=1):
        query, positive = fingerprint(example.query), fingerprint(example.positive)
        place = f"{example.source}, example {number}"
        if query in judging:
            rejects.refuse(place, "its query is one of those that judge the result", example.query)
        elif (query, positive) in seen:
            rejects.refuse(place, "it came before", example.query)
        else:
            seen.add((query, positive))
            fresh.append((place, example))
    for start in range(0, len(fresh), _BATCH):
        yield from _found(fresh[start : start + _BATCH], engine, rejects, depth)


def split(
    examples: Sequence[Example], *, share: float, most: int, seed: int
) -> tuple[list[Example], list[Example], list[Example]]:
    """Divide the examples by document into (those to train on, those held out, those in neither part).

    No document and no query is in both parts: an example that asks a held-out query of another document, or has a
    copy of a held-out document, is in neither. Only documents of the index can be held out.

    Args:
        examples: All of them.
        share: Of the documents that are held out.
        most: Documents held out.
        seed: Decides which.
    """
    documents = sorted({example.positive_id for example in examples if example.positive_id})
    random.Random(seed).shuffle(documents)
    held = set(documents[: min(most, round(share * len(documents)))])
    judging = [example for example in examples if example.positive_id in held]
    asked = {fingerprint(example.query) for example in judging}
    texts = {fingerprint(example.positive) for example in judging}
    parts: tuple[list[Example], list[Example]] = [], []
    for example in examples:
        if example.positive_id not in held:
            touches = fingerprint(example.query) in asked or fingerprint(example.positive) in texts
            parts[touches].append(example)
    return parts[0], judging, parts[1]


def as_judgements(examples: Iterable[Example]) -> tuple[list[Query], Qrels]:
    """Held-out examples as queries and judgements; one query of several documents is one query."""
    queries: dict[tuple[bytes, str | None], Query] = {}
    qrels: Qrels = {}
    for example in examples:
        key = fingerprint(example.query), example.instruction
        query = queries.setdefault(key, Query(f"held-{len(queries) + 1}", example.query, example.instruction))
        qrels.setdefault(query.id, {})[str(example.positive_id)] = 1
    return list(queries.values()), qrels


def _found(
    batch: Sequence[tuple[str, Example]], engine: SearchEngine, rejects: Rejects, depth: int
) -> Iterator[Example]:
    queries = [Query("", example.query, example.instruction) for _, example in batch]
    rankings = engine.rank(queries, k=depth, options=SearchOptions())
    ids = engine.ids_of(rankings)
    passages = _passages(engine, {example.positive_id for _, example in batch if example.positive_id})
    vectors = engine.embed(queries) if any(len(rows) > 1 for rows in passages.values()) else None
    for n, (place, example) in enumerate(batch):
        if example.positive_id is None:  # of a text from elsewhere the index knows nothing
            yield example
        elif example.positive_id not in {ids[item.doc] for item in rankings[n]}:
            rejects.refuse(place, f"its document is not among the first {depth} hits for its query", example.query)
        elif vectors is None or len(passages[example.positive_id]) == 1:
            yield example
        else:
            own = passages[example.positive_id]
            similar = engine.similarities(vectors[n], np.array([item.row for item in own], dtype=np.int64))
            best = own[int(similar.argmax())]
            yield replace(example, positive=join_title(best.title, best.text))


def _passages(engine: SearchEngine, ids: Collection[str]) -> dict[str, list[StoredPassage]]:
    """The passages of some documents, by the documents' ids."""
    rows: list[int] = []
    for doc in engine.store.documents.positions_of(sorted(ids)):
        first, document = engine.store.documents.document(doc)
        rows += range(first, first + len(document.spans))
    found: dict[str, list[StoredPassage]] = {}
    for passage in engine.store.documents.passages(rows).values():
        found.setdefault(passage.id, []).append(passage)
    return found


def _fingerprints(document: Document) -> tuple[bytes, bytes]:
    return fingerprint(join_title(document.title, document.text)), fingerprint(document.text)
