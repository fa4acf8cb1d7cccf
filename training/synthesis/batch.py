"""Send requests through a server's batch service: cheaper, and answered within a day."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from searchkit.training.files import write_lines
from searchkit.training.synthesis.llm import Client
from searchkit.training.synthesis.protocol import Request, RequestForm

_LINES = 20_000  # requests of a batch; OpenAI accepts 50,000 in 200 MB
_BYTES = 150_000_000
_OVER = {"completed", "failed", "expired", "cancelled"}


async def ask_in_batches(client: Client, requests: Iterable[Request], *, poll: float = 30.0) -> None:
    """Like ``client.ask_all``, but with the requests submitted as files, one batch after the other.

    A batch that was submitted before the process was killed is recognised by its requests and not submitted again.

    Args:
        client: Has the journal and the budget.
        requests: What to send.
        poll: Seconds between two looks at a batch.
    """
    from openai import APIConnectionError, APIStatusError, InternalServerError, RateLimitError

    stream = iter(requests)
    while not client.stopped:
        pending, stream = _next(client, stream)
        if not pending:
            return
        form = client.form
        try:
            for wait in _waits(client.endpoint.retries, client.endpoint.backoff):
                try:
                    batch = await _submit(client, pending)
                    while batch.status not in _OVER:
                        await asyncio.sleep(poll)
                        batch = await client.openai.batches.retrieve(batch.id)
                    stream = chain(await _read(client, pending, batch, form), stream)
                    break
                except (APIConnectionError, InternalServerError, RateLimitError) as error:
                    client.journal.count("batch service")
                    if wait is None:
                        client.halt(f"the batch service does not answer: {client.clean(str(error))}")
                        break
                    await asyncio.sleep(wait)
        except APIStatusError as error:
            client.halt(f"the batch service answered {error.status_code}: {client.clean(str(error))}")
        finally:
            for request in pending.values():
                client.release(request)


def _waits(retries: int, backoff: float) -> Iterator[float | None]:
    """Seconds before each further try; None with the last."""
    yield from (min(60.0, backoff * 2.0**number) for number in range(retries))
    yield None


def _next(client: Client, stream: Iterator[Request]) -> tuple[dict[str, Request], Iterator[Request]]:
    """(the next requests without an answer that fit the budget, by their keys; those after them)."""
    pending: dict[str, Request] = {}
    size = 0
    for request in stream:
        key = request.key(client.endpoint)
        if key in client.journal or key.hex() in pending:
            continue
        if not client.reserve(request):
            if not pending:
                client.halt_over_budget()
            # Once these are paid, less is set aside.
            return pending, chain([request], stream)
        pending[key.hex()] = request
        size += sum(len(message["content"]) for message in request.messages)
        if len(pending) >= _LINES or size >= _BYTES:
            break
    return pending, stream


async def _submit(client: Client, pending: dict[str, Request]) -> Any:
    """Submit a batch, or return the one with the same requests that was submitted before."""
    name = _name(pending)
    known = client.journal.batches().get(name)
    if known:
        return await client.openai.batches.retrieve(known)
    if known is None:  # never read; but perhaps the process was killed between submitting and recording it
        async for batch in client.openai.batches.list(limit=100):
            if (batch.metadata or {}).get("searchkit") == name:
                client.journal.note_batch(name, batch.id)
                return batch
    file = client.journal.folder / f"batch-{name[:12]}.jsonl"
    write_lines(
        file,
        (
            {"custom_id": key, "method": "POST", "url": "/v1/chat/completions",
             "body": client.form.body(request, client.endpoint)}
            for key, request in pending.items()
        ),
    )  # fmt: skip
    with file.open("rb") as content:
        uploaded = await client.openai.files.create(file=content, purpose="batch")
    batch = await client.openai.batches.create(
        input_file_id=uploaded.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"searchkit": name},
    )
    client.journal.note_batch(name, batch.id)
    return batch


def _name(pending: dict[str, Request]) -> str:
    return hashlib.sha256("".join(pending).encode()).hexdigest()[:32]


async def _read(client: Client, pending: dict[str, Request], batch: Any, form: RequestForm) -> list[Request]:
    """Record the answers and failures of a batch that is over; returns the requests to send in another form."""
    again: list[Request] = []
    for id in (batch.output_file_id, batch.error_file_id):
        if not id:
            continue
        content = await client.openai.files.content(id)
        for line in filter(None, content.text.split("\n")):  # splitlines would cut at separators inside strings
            entry = json.loads(line)
            request = pending.get(str(entry.get("custom_id")))
            response = entry.get("response") or {}
            if request is None:
                continue
            status, body = response.get("status_code"), response.get("body")
            if not status:
                client.failed[request.key(client.endpoint)] = client.clean(f"in the batch: {entry.get('error')}"[:400])
            elif client.take(request, status, body, form):
                again.append(request)
    if batch.status in ("failed", "cancelled"):
        errors = getattr(batch.errors, "data", None) or []
        reasons = dict.fromkeys(str(getattr(error, "message", error)) for error in errors)
        why = client.clean("; ".join(reasons)[:400]) or "the service gives no reason"
        client.halt(f"the batch is {batch.status}: {why}; run the same command again to resubmit it")
    waiting = {request.key(client.endpoint) for request in again}
    for request in pending.values():
        key = request.key(client.endpoint)
        if key not in client.journal and key not in waiting:
            client.failed.setdefault(key, f"the batch is {batch.status} without an answer to this request")
    client.journal.note_batch(_name(pending), "")  # read; the same requests would be submitted again
    return again
