"""Hard negatives from an index: passages that rank high for a query and are not its answer."""

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
from searchkit.training.dataset import Example, folded

_BATCH = 64


@dataclass
class MineReport:
    """What mining kept and dropped."""

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
    """Yield the examples with `count` hard negatives each, best ranked first; those they had are kept before them.

    Most passages that rank high and are not labelled are answers all the same. One whose similarity to the query is
    above `margin` times the positive's is dropped as such (Moreira et al., 2024, arXiv 2407.15831), and counted.

    Args:
        engine: The index to mine; its model judges similarity in every mode.
        examples: Read as they are needed.
        report: Filled while the result is read.
        count: Negatives wanted of the index; an example may get fewer.
        depth: Passages looked at for each query.
        margin: Share of the positive's similarity that a negative may reach.
        options: How to rank; hybrid by default.
        without: Ids of documents that are not taken.

    Raises:
        ValueError: Too little depth for so many negatives, or a margin that is no share.
    """
    if count < 1 or depth < count:
        raise InputError(
            f"{count} negatives of the first {depth} hits are asked for; take 1 or more, of at least as many"
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
        limits = nearness - (1 - margin) * np.abs(nearness)  # below the positive's also where that is negative
        for example, limit, found_passages, similar in zip(batch, limits, passages, similarities, strict=True):
            own = {folded(text) for text in (example.positive, example.query, *example.negatives)}
            whole = folded(example.positive)  # an index may have cut it into passages
            found: list[str] = []
            for passage, similarity in zip(found_passages, similar, strict=True):
                text = join_title(passage.title, passage.text)
                if passage.id in without:
                    continue
                if folded(text) in own or folded(passage.text) in own or folded(passage.text) in whole:
                    report.copies += 1
                elif similarity > limit:
                    report.too_close += 1
                elif len(found) < count:
                    found.append(text)
            report.examples += 1
            report.negatives += len(found)
            report.without += not found
            yield replace(example, negatives=(*example.negatives, *found))


def _nearness(
    engine: SearchEngine,
    batch: Sequence[Example],
    vectors: np.ndarray,
    passages: Sequence[Sequence[StoredPassage]],
    similarities: Sequence[np.ndarray],
) -> np.ndarray:
    """The similarity of every query to its positive, (batch,): what the index has, before anything is embedded."""
    nearness = np.empty(len(batch), dtype=np.float32)
    unknown = []
    for n, (example, found, similar) in enumerate(zip(batch, passages, similarities, strict=True)):
        wanted = folded(example.positive)
        known = [
            value
            for passage, value in zip(found, similar, strict=True)
            if folded(join_title(passage.title, passage.text)) == wanted
        ]
        if known:
            nearness[n] = known[0]
        else:
            unknown.append(n)
    if unknown:
        positives = engine.embedder.encode_passages([batch[n].positive for n in unknown])
        nearness[unknown] = (vectors[unknown] * positives).sum(1)
    return nearness
