"""Ask through a server's batch service: cheaper, and answered within a day."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

from searchkit.training.synthesis.llm import Client, Request

_LINES = 20_000  # questions of a batch; OpenAI takes 50,000 in 200 MB
_BYTES = 150_000_000
_OVER = {"completed", "failed", "expired", "cancelled"}


async def ask_in_batches(client: Client, requests: Iterable[Request], *, poll: float = 30.0) -> None:
    """Like ``client.ask_all``, but handed in as files, one batch after the other.

    A batch that was handed in before the process was killed is found again by the questions in it, and not handed in
    a second time.

    Args:
        client: Whom to ask, with the journal and the budget.
        requests: What to ask.
        poll: Seconds between two looks at a batch.
    """
    from openai import APIConnectionError, APIStatusError, InternalServerError, RateLimitError

    stream = iter(requests)
    while not client.stopped:
        asked, stream = _next(client, stream)
        if not asked:
            return
        manner = client.manner
        try:
            for wait in _waits(client.endpoint.retries, client.endpoint.backoff):
                try:
                    batch = await _hand_in(client, asked)
                    while batch.status not in _OVER:
                        await asyncio.sleep(poll)
                        batch = await client.openai.batches.retrieve(batch.id)
                    stream = chain(await _read(client, asked, batch, manner), stream)
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
            for request in asked.values():
                client.release(request)


def _waits(retries: int, backoff: float) -> Iterator[float | None]:
    """Seconds before each further try; None with the last."""
    yield from (min(60.0, backoff * 2.0**number) for number in range(retries))
    yield None


def _next(client: Client, stream: Iterator[Request]) -> tuple[dict[str, Request], Iterator[Request]]:
    """The next questions that have no answer and fit the budget, by their keys; and those after them."""
    asked: dict[str, Request] = {}
    size = 0
    for request in stream:
        key = request.key(client.endpoint)
        if key in client.journal or key.hex() in asked:
            continue
        if not client.reserve(request):
            if not asked:
                client.halt("the budget is used up")
            # When these are paid, less will be set aside.
            return asked, chain([request], stream)
        asked[key.hex()] = request
        size += sum(len(message["content"]) for message in request.messages)
        if len(asked) >= _LINES or size >= _BYTES:
            break
    return asked, stream


async def _hand_in(client: Client, asked: dict[str, Request]) -> Any:
    """Start a batch, or find the one with the same questions that was started before."""
    name = _name(asked)
    known = client.journal.batches().get(name)
    if known:
        return await client.openai.batches.retrieve(known)
    if known is None:  # not an earlier one that came to nothing; but maybe killed between handing in and writing down
        async for batch in client.openai.batches.list(limit=100):
            if (batch.metadata or {}).get("searchkit") == name:
                client.journal.note_batch(name, batch.id)
                return batch
    lines = (
        {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": client.body(request)}
        for key, request in asked.items()
    )
    file = client.journal.folder / f"batch-{name[:12]}.jsonl"
    with file.open("w", encoding="utf-8") as out:
        while part := list(islice(lines, 256)):
            out.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in part))
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


def _name(asked: dict[str, Request]) -> str:
    return hashlib.sha256("".join(asked).encode()).hexdigest()[:32]


async def _read(client: Client, asked: dict[str, Request], batch: Any, manner: tuple[int, str, bool]) -> list[Request]:
    """Keep the answers of a batch that is over, note what has none, and return what is to be asked otherwise."""
    again: list[Request] = []
    for id in (batch.output_file_id, batch.error_file_id):
        if not id:
            continue
        content = await client.openai.files.content(id)
        for line in filter(None, content.text.split("\n")):  # splitlines would cut at what strings may hold
            entry = json.loads(line)
            request = asked.get(str(entry.get("custom_id")))
            response = entry.get("response") or {}
            if request is None:
                continue
            status, body = response.get("status_code"), response.get("body")
            if status == 200:
                client.take(request, json.dumps(body))
            elif status and client.take_error(request, status, body, manner):
                again.append(request)
            elif not status:
                client.failed[request.key(client.endpoint)] = client.clean(f"in the batch: {entry.get('error')}"[:400])
    if batch.status in ("failed", "cancelled"):
        errors = getattr(batch.errors, "data", None) or []
        reasons = dict.fromkeys(str(getattr(error, "message", error)) for error in errors)
        why = client.clean("; ".join(reasons)[:400]) or "the service gives no reason"
        client.halt(f"the batch is {batch.status}: {why}; the same command hands it in anew")
    waiting = {request.key(client.endpoint) for request in again}
    for request in asked.values():
        key = request.key(client.endpoint)
        if key not in client.journal and key not in waiting:
            client.failed.setdefault(key, f"the batch is {batch.status} without an answer to it")
    client.journal.note_batch(_name(asked), "")  # read; whoever asks the same again hands it in anew
    return again
