"""A second look: the first hits of a search, in the order of a model that reads query and document together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from searchkit.models.reranker import Reranker
from searchkit.records import Hit, Query, join_title

RERANK_DEPTH = 50
"""Hits of a search that are read again unless the caller says otherwise."""


def rerank_hits(
    reranker: Reranker, query: Query, hits: Sequence[Hit], instruction: str | None, depth: int
) -> list[Hit]:
    """The first `depth` hits in the reranker's order and with its scores, without those that follow.

    A hit is judged by the passage that it is shown by, with its title. A query's own instruction comes before the given
    one.
    """
    read = hits[:depth]
    own = query.instruction if query.instruction is not None else instruction
    order = reranker.rerank(query.text, [join_title(hit.title, hit.text) for hit in read], own)
    return [replace(read[index], score=score, rank=rank) for rank, (index, score) in enumerate(order, start=1)]
