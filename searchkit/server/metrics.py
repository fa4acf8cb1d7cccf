"""What Prometheus reads from `/metrics`; each service has a registry of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters, gauges and histograms of one service. Labels take values from fixed sets only, never from a client."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("searchkit_requests", "Requests answered.", ["route", "method", "status"], registry=r)
        self.duration = Histogram(
            "searchkit_request_seconds", "Time to answer a request.", ["route"], buckets=_SECONDS, registry=r
        )
        self.stages = Histogram(
            "searchkit_stage_seconds", "Time in one stage of a request.", ["stage"], buckets=_SECONDS, registry=r
        )
        self.in_flight = Gauge("searchkit_requests_in_flight", "Requests being answered.", registry=r)
        self.queued_tokens = Gauge("searchkit_queued_tokens", "Tokens that wait for a model.", ["model"], registry=r)
        self.queued_searches = Gauge("searchkit_queued_searches", "Searches that wait or run.", registry=r)
        self.refused = Counter("searchkit_refused", "Requests answered with 429.", registry=r)
        self.batch_texts = Histogram(
            "searchkit_batch_texts", "Texts in a forward pass.", ["model"], buckets=(1, 2, 4, 8, 16, 32, 64), registry=r
        )
        self.tokens = Counter("searchkit_tokens", "Tokens embedded.", ["model"], registry=r)
        self.cache = Counter("searchkit_query_cache", "Look-ups of query vectors.", ["result"], registry=r)
        self.commit = Gauge("searchkit_index_commit", "Commit that is searched.", ["index"], registry=r)
        self.documents = Gauge("searchkit_index_documents", "Documents in that commit.", ["index"], registry=r)
        self.reloads = Counter("searchkit_index_reloads", "Commits that were followed.", ["index"], registry=r)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage."""
        began = perf_counter()
        try:
            yield
        finally:
            self.stages.labels(name).observe(perf_counter() - began)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
