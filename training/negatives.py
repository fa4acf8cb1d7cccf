"""Hard negatives from an index: passages that rank high for a query and do not answer it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.indexer.documents import StoredPassage
from searchkit.ranking import SearchOptions
from searchkit.records import Query, join_title
from searchkit.training.dataset import Example
from searchkit.training.texts import folded

_BATCH = 64


@dataclass
class MineReport:
    """What mining kept and dropped.

    Attributes:
        examples: Examples read.
        negatives: Negatives added.
        copies: Passages dropped as copies of the example's own texts.
        too_close: Passages dropped as likely answers.
        without: Examples that got no negative.
    """

    examples: int = 0
    negatives: int = 0
    copies: int = 0
    too_close: int = 0
    without: int = 0


def mine(
    engine: SearchEngine,
    examples: Iterable[Example],
    report: MineReport,
    *,
    count: int = 4,
    depth: int = 50,
    margin: float = 0.95,
    options: SearchOptions | None = None,
    without: Collection[str] = (),
) -> Iterator[Example]:
    """Yield the examples with up to `count` hard negatives each, best ranked first, after those they already have.

    Many passages that rank high are answers without a label. One whose similarity to the query exceeds `margin` times
    the positive's is dropped as a likely answer (Moreira et al., 2024, arXiv 2407.15831), and counted.

    Args:
        engine: The index to mine; its model measures similarity in every mode.
        examples: Read as needed.
        report: Updated while the result is read.
        count: Negatives per example.
        depth: Passages considered per query.
        margin: Share of the positive's similarity that a negative may reach.
        options: How to rank; hybrid by default.
        without: Ids of documents to skip.

    Raises:
        InputError: `count`, `depth` or `margin` is out of range.
    """
    if count < 1 or depth < count:
        raise InputError(
            f"count is {count} and depth is {depth}; expected 1 negative or more, and a depth of at least as many"
        )
    if not 0 < margin < float("inf"):
        raise InputError(f"margin is {margin}; expected a share of the positive's similarity, such as 0.95")
    stream = iter(examples)
    while batch := list(islice(stream, _BATCH)):
        queries = [Query("", example.query, example.instruction) for example in batch]
        vectors = engine.embed(queries)
        rankings = engine.rank(queries, k=depth, options=options)
        stored = engine.store.documents.passages([item.row for ranking in rankings for item in ranking])
        passages = [[stored[item.row] for item in ranking] for ranking in rankings]
        similarities = [
            engine.similarities(vector, np.array([item.row for item in ranking], dtype=np.int64))
            for vector, ranking in zip(vectors, rankings, strict=True)
        ]
        nearness = _nearness(engine, batch, vectors, passages, similarities)
        limits = nearness - (1 - margin) * np.abs(nearness)  # below the positive's even where that is negative
        for example, limit, hits, scores in zip(batch, limits, passages, similarities, strict=True):
            own = {folded(text) for text in (example.positive, example.query, *example.negatives)}
            whole = folded(example.positive)  # the index may have cut it into passages
            negatives: list[str] = []
            for passage, similarity in zip(hits, scores, strict=True):
                text = join_title(passage.title, passage.text)
                if passage.id in without:
                    continue
                if folded(text) in own or folded(passage.text) in own or folded(passage.text) in whole:
                    report.copies += 1
                elif similarity > limit:
                    report.too_close += 1
                elif len(negatives) < count:
                    negatives.append(text)
            report.examples += 1
            report.negatives += len(negatives)
            report.without += not negatives
            yield replace(example, negatives=(*example.negatives, *negatives))


def _nearness(
    engine: SearchEngine,
    batch: Sequence[Example],
    vectors: np.ndarray,
    passages: Sequence[Sequence[StoredPassage]],
    similarities: Sequence[np.ndarray],
) -> np.ndarray:
    """The similarity of every query to its positive, (batch,); a positive is embedded only if the hits lack it."""
    nearness = np.empty(len(batch), dtype=np.float32)
    unknown = []
    for n, (example, hits, scores) in enumerate(zip(batch, passages, similarities, strict=True)):
        positive = folded(example.positive)
        known = [
            score
            for passage, score in zip(hits, scores, strict=True)
            if folded(join_title(passage.title, passage.text)) == positive
        ]
        if known:
            nearness[n] = known[0]
        else:
            unknown.append(n)
    if unknown:
        positives = engine.embedder.encode_passages([batch[n].positive for n in unknown])
        nearness[unknown] = (vectors[unknown] * positives).sum(1)
    return nearness
