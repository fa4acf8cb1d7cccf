"""The reranker of a service, in a thread of its own, so that searches do not wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from searchkit.models.reranker import Reranker
from searchkit.records import Hit, Query
from searchkit.reranking import rerank_hits
from searchkit.server.admission import Admission
from searchkit.server.pool import WorkPool


class RerankQueue:
    """Reads pairs of query and document, one request at a time.

    Args:
        reranker: The model.
        limit: Pairs that may wait before further requests are answered with 429.
        longest_wait: Seconds that the last in the queue may have to wait.
    """

    def __init__(self, reranker: Reranker, limit: int, longest_wait: float) -> None:
        self.name = Path(reranker.name).name  # clients need not know where it lies
        self.reranker = reranker
        self._pool = WorkPool(1, Admission("pairs", limit, longest_wait, lambda _: None))

    async def scores(self, query: str, documents: Sequence[str], instruction: str | None) -> np.ndarray:
        """The score of each document, (n,) float32 from 0 to 1."""
        with self._pool.admission.admitted(len(documents)):
            return await self._pool.run(lambda: self.reranker.scores(query, documents, instruction))

    async def hits(
        self, queries: Sequence[Query], found: Sequence[Sequence[Hit]], instruction: str | None, depth: int
    ) -> list[list[Hit]]:
        """The first `depth` hits of each query in the reranker's order."""
        read = sum(min(len(hits), depth) for hits in found)
        with self._pool.admission.admitted(max(1, read)):
            return await self._pool.run(
                lambda: [
                    rerank_hits(self.reranker, query, hits, instruction, depth)
                    for query, hits in zip(queries, found, strict=True)
                ]
            )

    def close(self) -> None:
        """Finish what runs, and drop what waits."""
        self._pool.close()
