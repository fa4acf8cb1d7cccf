"""Routes that say whether the service lives, whether it can answer, and what it has done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from time import monotonic

from fastapi import APIRouter, Response

from searchkit.server.embedding import Text
from searchkit.server.errors import as_server_error, json_response
from searchkit.server.search import SearchParameters, search
from searchkit.server.service import Current, Service

router = APIRouter(tags=["health"])

_PATIENCE = 5.0
_FRESH = 1.0


@router.head("/livez", include_in_schema=False)  # load balancers ask so
@router.get("/livez")
async def live() -> Response:
    """The process answers."""
    return json_response({"status": "ok"})


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz")
async def ready(service: Current) -> Response:
    """Every model embeds a text, and every index answers a search, just now."""
    if service.draining:
        return json_response({"status": "stopping"}, status=503)
    checked = service.checked
    if checked is None or monotonic() - checked[0] > _FRESH:  # anybody may ask, which must not cost much
        checked = service.checked = monotonic(), await _failures(service)
    if checked[1]:
        return json_response({"status": "failing", "failures": checked[1]}, status=503)
    return json_response({"status": "ok"})


async def _failures(service: Service) -> dict[str, str]:
    """What does not work, by its name."""
    # As a passage: the vectors of queries may come out of the cache.
    checks: dict[str, Awaitable[object]] = {
        f"model {name}": model.embed([Text("readiness")]) for name, model in service.models.items()
    }
    for index in service.indexes:
        checks[f"index {index.name}"] = search(service, index, SearchParameters(query="readiness", k=1))
    outcomes = await asyncio.gather(*map(_outcome, checks.values()))
    failures = {name: outcome for name, outcome in zip(checks, outcomes, strict=True) if outcome}
    return failures | {f"index {index.name}": index.stale for index in service.indexes if index.stale}


async def _outcome(check: Awaitable[object]) -> str:
    try:
        async with asyncio.timeout(_PATIENCE):
            await check
    except Exception as error:
        failure = as_server_error(error)
        return "" if failure.status_code == 429 else str(failure.detail)  # busy is not broken
    return ""


@router.get("/metrics")
async def metrics(service: Current) -> Response:
    """Counters for Prometheus."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")
