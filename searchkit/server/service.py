"""What a service has: its settings, indexes, models, threads and counters; every route works on one."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from searchkit.binding import NO_MODEL
from searchkit.errors import InputError
from searchkit.models.reranker import Reranker
from searchkit.server.admission import Admission
from searchkit.server.embedding import EmbeddingQueue
from searchkit.server.errors import not_found
from searchkit.server.indexes import Indexes, ServedIndex
from searchkit.server.metrics import Metrics
from searchkit.server.pool import WorkPool
from searchkit.server.reranking import RerankQueue
from searchkit.server.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_WAIT = 1.0
"""Seconds for which a search may have to wait for those before it. More wait only where few callers do."""


class Service:
    """Open indexes and loaded models, for as long as the process runs.

    Args:
        settings: How it runs.

    Raises:
        StoreError: An index cannot be opened, or its model cannot be loaded.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.draining = False
        self.checked: tuple[float, dict[str, str]] | None = None
        """When `/readyz` last tried everything, and what failed."""
        self.indexes = Indexes(settings, self.metrics)
        patience = settings.deadline / 2
        longest_wait = min(LONGEST_WAIT, patience)
        self.models = {
            name: EmbeddingQueue(
                name,
                embedder,
                settings.threads,
                Admission(
                    "tokens",
                    settings.queue_tokens,
                    longest_wait,
                    self.metrics.queued_tokens.labels(name).set,
                    turn=embedder.token_budget,
                    longest_patience=patience,
                ),
                self.metrics,
                settings.cache_queries,
            )
            for name, embedder in self.indexes.models.items()
        }
        self.searches = WorkPool(
            settings.search_threads,
            Admission(
                "searches",
                settings.queue_searches,
                longest_wait,
                self.metrics.queued_searches.set,
                longest_patience=patience,
            ),
        )
        self.reranker: RerankQueue | None = None
        if settings.rerank is not None:
            reranker = Reranker(settings.rerank, device=settings.device)
            self.reranker = RerankQueue(reranker, settings.queue_pairs, patience)
        # Writing is slow and waits for a lock: it has a thread of its own, so that searches never wait for it.
        self.writes = WorkPool(1, Admission("writes", 32, patience, _ignore))

    def close(self) -> None:
        """Stop the threads and close the indexes."""
        self.searches.close()
        self.writes.close()
        if self.reranker is not None:
            self.reranker.close()
        for model in self.models.values():
            model.close()
        self.indexes.close()

    def model_of(self, index: ServedIndex) -> EmbeddingQueue:
        """The model of an index; InputError where it has none."""
        if index.model is None:
            raise InputError(NO_MODEL.format(index.name))
        return self.models[index.model]

    def model_named(self, name: str | None) -> tuple[EmbeddingQueue, bool]:
        """A model by the name that a client sends, and whether the name is its alias for queries.

        Args:
            name: A name, or a name with "-query" for clients that cannot send an instruction; None for the only model.
        """
        if name is None and len(self.models) == 1:
            return next(iter(self.models.values())), False
        for known, model in self.models.items():
            if name in (known, f"{known}-query"):
                return model, name != known
        names = (
            ", ".join(f"{known}, {known}-query" for known in self.models) or "none: users made the vectors it searches"
        )
        problem = "the request names no model" if name is None else "no such model"
        raise not_found("model_not_found", f"{problem}; this service has {names}")

    async def read(self, call: Callable[[], T]) -> T:
        """Read from an index in a thread, counted with the searches."""
        with self.searches.admission.admitted(1):
            return await self.searches.run(call)

    async def write(self, call: Callable[[], T]) -> T:
        """Change an index in the writing thread."""
        with self.writes.admission.admitted(1):
            return await self.writes.run(call)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Closes everything at the end."""
        try:
            yield
        finally:
            self.draining = True
            self.close()


def _ignore(_: int) -> None:
    pass


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Current = Annotated[Service, Depends(_service)]
"""The service, as routes get it."""
