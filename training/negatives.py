"""Hard negatives from an index: passages that rank high for a query and are not its answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from searchkit.engine import SearchEngine
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
    """
    if count < 1 or depth < count:
        raise ValueError(
            f"{count} negatives of the first {depth} hits are asked for; take 1 or more, of at least as many"
        )
    stream = iter(examples)
    while batch := list(islice(stream, _BATCH)):
        queries = [Query("", example.query, example.instruction) for example in batch]
        vectors = engine.embed(queries)
        rankings = engine.rank(queries, k=depth, options=options)
        stored = engine.store.passages([item.row for ranking in rankings for item in ranking])
        texts = {row: join_title(passage.title, passage.text) for row, passage in stored.items()}
        rows_of = {folded(text): row for row, text in texts.items()}
        # Mostly the positive is found, and need not be embedded again.
        positives = [rows_of.get(folded(example.positive)) for example in batch]
        strange = [n for n, row in enumerate(positives) if row is None]
        nearness = np.empty(len(batch), dtype=np.float32)
        if strange:
            embedded = engine.embedder.encode_passages([batch[n].positive for n in strange])
            nearness[strange] = (vectors[strange] * embedded).sum(1)
        for n, row in enumerate(positives):
            if row is not None:
                nearness[n] = engine.similarities(vectors[n], np.array([row], dtype=np.int64))[0]
        limits = nearness - (1 - margin) * np.abs(nearness)  # below the positive's also where that is negative
        for example, vector, limit, ranking in zip(batch, vectors, limits, rankings, strict=True):
            rows = [item.row for item in ranking]
            similar = engine.similarities(vector, np.array(rows, dtype=np.int64))
            own = {folded(text) for text in (example.positive, example.query, *example.negatives)}
            found: list[str] = []
            for row, similarity in zip(rows, similar, strict=True):
                text = texts[row]
                if folded(text) in own or folded(stored[row].text) in own:
                    report.copies += 1
                elif similarity > limit:
                    report.too_close += 1
                elif len(found) < count:
                    found.append(text)
            report.examples += 1
            report.negatives += len(found)
            report.without += not found
            yield replace(example, negatives=(*example.negatives, *found))
