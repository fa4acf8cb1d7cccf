"""A server that speaks the OpenAI protocol over real sockets, answers by a script, and misbehaves on purpose."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SYLLABLES = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "ar", "en", "il", "on", "us")]


@dataclass
class Reply:
    """What the server does with one request.

    Args:
        content: Of the message; None sends `raw` instead.
        status: Of HTTP.
        headers: More of them.
        delay: Seconds before anything is sent.
        cut: Close the connection in the middle of the body.
        raw: The whole body.
        message: More fields of the message.
        finish: Why the model ended.
        usage: Whether tokens are counted.
    """

    content: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False
    raw: bytes | None = None
    message: dict[str, Any] = field(default_factory=dict)
    finish: str = "stop"
    usage: bool = True

    def body(self, asked: dict[str, Any]) -> bytes:
        if self.raw is not None:
            return self.raw
        if self.status != 200:
            return json.dumps({"error": {"message": self.content or "no", "code": None}}).encode()
        message = {"role": "assistant", "content": self.content, **self.message}
        body: dict[str, Any] = {"id": "x", "object": "chat.completion", "created": 0, "model": asked["model"]}
        body["choices"] = [{"index": 0, "message": message, "finish_reason": self.finish}]
        if self.usage:
            body["usage"] = usage_of(asked, self.content or "")
        return json.dumps(body).encode()


def usage_of(asked: dict[str, Any], content: str) -> dict[str, int]:
    """A token a word."""
    tokens_in = sum(len(message["content"].split()) for message in asked["messages"])
    tokens_out = len(content.split())
    return {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}


Script = Callable[[dict[str, Any], int, dict[str, str]], Reply]
"""(what is asked, how often it was asked before, headers) -> what to do."""


def name_of(asked: dict[str, Any]) -> str:
    """Tells questions apart: the same messages with another seed are another one."""
    return hashlib.sha256(f"{json.dumps(asked['messages'])}{asked.get('seed', '')}".encode()).hexdigest()


def draw_of(asked: dict[str, Any]) -> random.Random:
    """Chance that depends on the question alone."""
    return random.Random(name_of(asked))


def phrase(rng: random.Random, count: int) -> str:
    """Words of no language."""
    return " ".join("".join(rng.choices(SYLLABLES, k=rng.randint(2, 3))) for _ in range(count))


def written(asked: dict[str, Any], rng: random.Random | None = None) -> dict[str, Any]:
    """A valid answer to what is asked, by the name of the schema."""
    rng = rng or draw_of(asked)
    name = asked["response_format"]["json_schema"]["name"]
    text = "\n".join(message["content"] for message in asked["messages"])
    if name == "tasks":
        return {"tasks": [f"Given {phrase(rng, 3)}, find {phrase(rng, 2)}" for _ in range(20)]}
    if name == "corpus_tasks":
        kinds = [kind for kind in ("keywords", "question", "claim", "need", "title") if f"- {kind}:" in text]
        return {"tasks": [{"kind": kind, "instruction": f"Given a {kind}, find {phrase(rng, 3)}"} for kind in kinds]}
    if name == "queries":
        kinds = [kind for kind in ("keywords", "question", "claim", "need", "title") if f"- {kind}:" in text]
        return {"queries": [{"kind": kind, "query": phrase(rng, 6)} for kind in kinds]}
    fields = list(asked["response_format"]["json_schema"]["schema"]["properties"])
    return {field: phrase(rng, 6) for field in fields}


def obedient(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
    """Always a valid answer."""
    return Reply(json.dumps(written(asked)))


def echoing(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
    """Queries made of words of the passage, in another order, so that the index finds it again."""
    text = asked["messages"][-1]["content"]
    answer = written(asked)
    if "queries" in answer:
        there = text.partition("<passage>\n")[2].partition("\n</passage>")[0].split()[2:]
        rng = draw_of(asked)
        for one in answer["queries"]:
            one["query"] = " ".join(rng.sample(there, 6))
    return Reply(json.dumps(answer))


class FakeLLM:
    """The server, in a thread of its own.

    Attributes:
        asked: How often each question came.
        delivered: Answers of status 200 that were sent to their end, with the usage of each.
        headers: Of the last request.
        peak: Most requests at once.
    """

    def __init__(self, script: Script = obedient) -> None:
        self.script = script
        self.asked: Counter[str] = Counter()
        self.delivered: list[dict[str, int]] = []
        self.headers: dict[str, str] = {}
        self.bodies: list[dict[str, Any]] = []
        self.keep_bodies = True
        self.peak = self._now = 0
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.looks = 2
        self.batch_faults: list[str] = []
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self._thread.start()
        started.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FakeLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _serve(self, started: threading.Event) -> None:
        async def main() -> None:
            self._stop = asyncio.Event()
            self._tasks: set[asyncio.Task[None]] = set()
            server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=256)
            self.port = server.sockets[0].getsockname()[1]
            started.set()
            await self._stop.wait()
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._loop.run_until_complete(main())
        self._loop.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._talk(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {
                    name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)
                }
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                self._now += 1
                self.peak = max(self.peak, self._now)
                try:
                    going_on = await self._answer(head[0], headers, content, reader, writer)
                finally:
                    self._now -= 1
                if not going_on:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    def _service(self, line: str, headers: dict[str, str], content: bytes) -> bytes:
        """The batch service: a batch is over when it has been looked at `looks` times."""
        method, path, _ = line.split(" ")
        parts = path.partition("?")[0].removeprefix("/v1/").split("/")
        match method, parts:
            case "POST", ["files"]:
                boundary = headers["content-type"].partition("boundary=")[2].encode()
                (part,) = (part for part in content.split(b"--" + boundary) if b'name="file"' in part)
                id = f"file-{len(self.files)}"
                self.files[id] = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
                return json.dumps({"id": id, "object": "file", "bytes": 1, "purpose": "batch"}).encode()
            case "GET", ["files", id, "content"]:
                return self.files[id]
            case "POST", ["batches"]:
                asked = json.loads(content)
                id = f"batch-{len(self.batches)}"
                self.batches[id] = {"id": id, "object": "batch", "status": "in_progress", **asked, "looks": 0}
                return json.dumps(self.batches[id]).encode()
            case "GET", ["batches"]:
                return json.dumps({"object": "list", "data": list(self.batches.values()), "has_more": False}).encode()
            case "GET", ["batches", id]:
                batch = self.batches[id]
                batch["looks"] += 1
                if batch["looks"] >= self.looks and batch["status"] == "in_progress":
                    self._work_off(batch)
                return json.dumps(batch).encode()
        raise ValueError(line)

    def _work_off(self, batch: dict[str, Any]) -> None:
        if self.batch_faults:
            faults = [{"code": "x", "message": fault, "line": None, "param": None} for fault in self.batch_faults]
            batch |= {"status": "failed", "errors": {"object": "list", "data": faults}}
            return
        lines: dict[str, list[Any]] = {"output_file_id": [], "error_file_id": []}
        for line in self.files[batch["input_file_id"]].decode().splitlines():
            entry = json.loads(line)
            name = name_of(entry["body"])
            reply = self.script(entry["body"], self.asked[name], {})
            self.asked[name] += 1
            body = json.loads(reply.body(entry["body"]))
            if reply.status == 200:
                self.delivered.append(body["usage"])
            answer = {"custom_id": entry["custom_id"], "response": {"status_code": reply.status, "body": body}}
            lines["output_file_id" if reply.status == 200 else "error_file_id"].append(answer)
        for name, answers in lines.items():
            if answers:
                batch[name] = f"file-{len(self.files)}"
                random.Random(0).shuffle(answers)  # in no order, as it is documented
                texts = (json.dumps(answer, ensure_ascii=False) for answer in answers)
                self.files[batch[name]] = "".join(f"{text}\n" for text in texts).encode()
        batch["status"] = "completed"

    async def _answer(
        self,
        line: str,
        headers: dict[str, str],
        content: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        if "/chat/completions" not in line:
            body = self._service(line, headers, content)
            extra = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"HTTP/1.1 200 OK\r\n{extra}\r\n".encode() + body)
            await writer.drain()
            return True
        asked = json.loads(content)
        self.headers = headers
        if self.keep_bodies:
            self.bodies.append(asked)
        name = name_of(asked)
        reply = self.script(asked, self.asked[name], headers)
        self.asked[name] += 1
        if reply.delay:
            await asyncio.sleep(reply.delay)
        body = reply.body(asked)
        extra = "".join(f"{key}: {value}\r\n" for key, value in reply.headers.items())
        start = (
            f"HTTP/1.1 {reply.status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
        )
        writer.write(start.encode() + (body[: len(body) // 2] if reply.cut else body))
        await writer.drain()
        if reply.cut or reader.at_eof():  # or the client has gone meanwhile
            return False
        if reply.status == 200 and reply.raw is None and reply.usage:
            self.delivered.append(json.loads(body)["usage"])
        return True
