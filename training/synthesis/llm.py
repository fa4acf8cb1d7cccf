"""Ask a model many questions through the OpenAI protocol: many at once, patiently, within a budget, each only once."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard
from urllib.parse import unquote, urlsplit

from searchkit.errors import AnswerError, MissingExtraError
from searchkit.training.synthesis.answers import Answer, read_answer, schema_of
from searchkit.training.synthesis.journal import Journal, Reply
from searchkit.training.synthesis.pacing import Budget, Gate, retry_after
from searchkit.training.synthesis.prompting import Message

_FORMATS = ("json_schema", "json_object", "text")  # ways to ask for JSON, the strictest first
_LONGEST_PAUSE = 60.0  # seconds between two tries where the server names none
_BUSY = 50  # times that one question is put off by 429 before it is given up
_HOPELESS = 20  # first answers of which none is of use
# Errors of status 400 that are about the question, so that asking it again is in vain.
_FINAL = re.compile(r"content.?filter|content.management.policy|content policy|context.?(?:length|window|size)")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, a model, and how it is asked.

    Args:
        model: As the server calls it.
        base_url: The server's, up to and with /v1; None is OpenAI's own. A name and a password in it are sent in the
            key's place.
        concurrency: Questions at once; fewer for as long as the server says that it is too much.
        timeout: Seconds for one answer.
        retries: How often a question is asked again after a failure of the server or of the line.
        backoff: Seconds before the first of them, doubled for each further one; a Retry-After wins.
        temperature: Of the sampling.
        top_p: Of the sampling.
        max_output_tokens: Longest answer.
    """

    model: str
    base_url: str | None = None
    concurrency: int = 16
    timeout: float = 120.0
    retries: int = 6
    backoff: float = 0.5
    temperature: float = 1.0
    top_p: float = 1.0
    max_output_tokens: int = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """One question.

    Args:
        prompt: The label of its prompt.
        answer: Name of the answer's schema.
        messages: What is asked.
        draw: Tells apart questions that are put in the same words.
        about: What the asker needs to know of it later; not sent, and not part of the key.
    """

    prompt: str
    answer: str
    messages: tuple[Message, ...]
    draw: int = 0
    about: Any = None

    def key(self, endpoint: Endpoint) -> bytes:
        """What tells it from every other question, to any model."""
        sampling = [endpoint.temperature, endpoint.top_p, endpoint.max_output_tokens]
        content = [self.prompt, endpoint.model, self.messages, schema_of(self.answer), sampling, self.draw]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()


class Client:
    """Asks questions and writes the answers into a journal.

    Args:
        endpoint: Whom and how.
        api_key: Never written anywhere, and taken out of what the server says.
        journal: Where answers go; what it holds already is not asked again.
        budget: What may be spent.
        on_answer: Called after each answer.

    Attributes:
        stopped: Why no further question is asked; empty while there is no reason.
        failed: Key -> why a question was given up.
        examples: Examples in the answers so far, before they are sifted; of earlier runs too.
        openai: The library's client, for other services of the server.
        refused: Answers of this run that were of no use.
    """

    def __init__(
        self, endpoint: Endpoint, api_key: str, journal: Journal, budget: Budget, on_answer: Callable[[], None]
    ) -> None:
        try:
            from openai import AsyncOpenAI
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"asking a model needs {error.name}: pip install 'searchkit[train]'", name=error.name
            ) from error
        # Tries are counted here, so the library makes none by itself.
        url, login = _login(endpoint.base_url)
        self.openai = AsyncOpenAI(
            api_key=api_key, base_url=url, max_retries=0, timeout=endpoint.timeout,
            default_headers={"Authorization": f"Basic {login[-1]}"} if login else None,
        )  # fmt: skip
        self._secrets = [one for one in (api_key, *login) if len(one) >= 8]
        self.endpoint, self.journal, self._budget = endpoint, journal, budget
        self._on_answer = on_answer
        self._gate = Gate(endpoint.concurrency, self._pause)
        self._flying: dict[bytes, asyncio.Task[None]] = {}
        self._landed = asyncio.Event()
        self._stop = asyncio.Event()
        self._format = 0
        self._proven = False  # that the server takes what it is asked in this way
        self._limit_name = "max_tokens"
        self._sampled = True
        self._heard = False  # anything at all from the server
        self._lost = 0  # questions given up since the last answer
        self._usable = 0
        self._why: dict[str, int] = {}
        self.stopped = ""
        self.failed: dict[bytes, str] = {}
        self.examples = 0
        self.refused = 0

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.openai.close()

    async def ask_all(self, requests: Iterable[Request]) -> None:
        """Ask what the journal has no answer to; returns when each question is answered or given up, or at a stop."""
        try:
            for request in requests:
                if self.stopped:
                    break
                key = request.key(self.endpoint)
                if (there := self.journal.get(key)) is not None:
                    self.examples += _examples_of(request, there)
                    continue
                if key in self._flying:
                    continue
                if not await self._room(request):
                    break
                task = asyncio.create_task(self._ask(request, key))
                self._flying[key] = task
                task.add_done_callback(partial(self._land, request, key))
            while self._flying:
                await self._wait()
        finally:
            for task in self._flying.values():
                task.cancel()

    def halt(self, why: str) -> None:
        """Ask nothing any more."""
        self.stopped = self.stopped or why
        self._gate.open()
        self._stop.set()

    def reserve(self, request: Request) -> bool:
        """Set aside what a question may cost at most; False when that does not fit now."""
        return self._budget.reserve(self.journal, _longest(request), self.endpoint.max_output_tokens)

    def release(self, request: Request) -> None:
        """Give back what was set aside."""
        self._budget.release(_longest(request), self.endpoint.max_output_tokens)

    def body(self, request: Request) -> dict[str, Any]:
        """What is sent."""
        return self._body(request, (self._format, self._limit_name, self._sampled))

    def take(self, request: Request, body: str) -> None:
        """Keep an answer that came in another way, or note that it is none."""
        key = request.key(self.endpoint)
        reply = self._reply(request, body)
        if isinstance(reply, Reply):
            self._keep(request, key, reply)
        else:
            self.failed[key] = reply.name

    @property
    def manner(self) -> tuple[int, str, bool]:
        """How questions are asked for now: with which format, limit and sampling."""
        return self._format, self._limit_name, self._sampled

    def take_error(self, request: Request, status: int, body: object, manner: tuple[int, str, bool]) -> bool:
        """Note an error that came in another way to a question asked in that manner; True: ask it anew in another."""
        error = body.get("error", body) if isinstance(body, dict) else body
        said = self.clean(_said(error, json.dumps(body)))
        outcome = self._status(status, {}, said, manner)
        if isinstance(outcome, Reply):
            self._keep(request, request.key(self.endpoint), outcome)
        elif outcome is not None:
            self.failed[request.key(self.endpoint)] = f"status {status}: {said}"
        return outcome is None and not self.stopped

    async def _room(self, request: Request) -> bool:
        """Wait until one more question may be asked; False when that will not be."""
        while not self.stopped:
            if len(self._flying) < self.endpoint.concurrency:
                if self.reserve(request):
                    return True
                if not self._flying:
                    self.halt("the budget is used up")
                    break
            await self._wait()
        return False

    async def _wait(self) -> None:
        self._landed.clear()
        await self._landed.wait()

    def _land(self, request: Request, key: bytes, task: asyncio.Task[None]) -> None:
        self.release(request)
        del self._flying[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            self.halt(f"{type(error).__name__}: {self.clean(str(error))}")
        self._landed.set()

    async def _ask(self, request: Request, key: bytes) -> None:
        """Ask one question until it is answered or given up."""
        failures = busy = 0
        while not self.stopped:
            used = (self._format, self._limit_name, self._sampled)
            async with self._gate():
                outcome = None if self.stopped else await self._send(request, used)
            if isinstance(outcome, Reply):
                self._keep(request, key, outcome)
                return
            if isinstance(outcome, _Fault):
                self.journal.count(outcome.name)
                if outcome.said:
                    self._give_up(key, f"the server answered {outcome.name.removeprefix('status ')}: {outcome.said}")
                    return
                if outcome.wait is not None and outcome.busy:
                    busy += 1
                else:
                    failures += 1
                if failures > self.endpoint.retries or busy > _BUSY:
                    self._give_up(key, f"given up after {failures + busy} tries: {outcome.name}")
                    return
                pause = min(_LONGEST_PAUSE, self.endpoint.backoff * 2.0 ** max(0, failures + busy - 1))
                pause *= random.uniform(0.5, 1)  # not all at once
                if outcome.busy:
                    self._gate.slow_down(pause if outcome.wait is None else outcome.wait)
                await self._pause(pause if outcome.wait is None else outcome.wait)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return

    async def _send(self, request: Request, used: tuple[int, str, bool]) -> Reply | _Fault | None:
        """One try: an answer, a fault after which to try again, or None when it is to be asked in another way."""
        from openai import APIConnectionError, APIStatusError

        try:
            async with asyncio.timeout(self.endpoint.timeout):
                # As text: the library's own model of an answer lets through what is none, and takes its time.
                text = await self.openai.post("/chat/completions", cast_to=str, body=self._body(request, used))
                self._heard = True
                return self._reply(request, text)
        except TimeoutError:
            return _Fault("timeout")
        except APIStatusError as error:
            self._heard = True
            return self._status(
                error.status_code, error.response.headers, self.clean(_said(error.body, error.message)), used
            )
        except APIConnectionError as error:
            cause = error.__cause__
            return _Fault("timeout" if "Timeout" in type(cause).__name__ else "connection lost")

    def _body(self, request: Request, used: tuple[int, str, bool]) -> dict[str, Any]:
        format, limit_name, sampled = used
        body: dict[str, Any] = {"model": self.endpoint.model, "messages": list(request.messages)}
        body[limit_name] = self.endpoint.max_output_tokens
        if sampled:
            body |= {"temperature": self.endpoint.temperature, "top_p": self.endpoint.top_p}
        if _FORMATS[format] == "json_schema":
            schema = {"name": request.answer.replace("-", "_"), "strict": True, "schema": schema_of(request.answer)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif _FORMATS[format] == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def _reply(self, request: Request, text: str) -> Reply | _Fault:
        """What is in the body of an answer."""
        try:
            body = json.loads(text)
            choice = body["choices"][0]
            message = choice["message"]
            content, refusal = message.get("content") or "", message.get("refusal")
            usage = body.get("usage") or {}
            tokens_in, tokens_out = usage.get("prompt_tokens"), usage.get("completion_tokens")
            finish = choice.get("finish_reason")
            if not isinstance(content, str):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return _Fault("malformed response")
        estimated = False
        if not (tokens_in and _is_count(tokens_in) and _is_count(tokens_out)):
            estimated, tokens_in = True, _longest(request) // 4
            tokens_out = len(content.encode(errors="replace")) // 4
        status = {"length": "cut", "content_filter": "refused"}.get(str(finish), "ok")
        if refusal:
            status, content = "refused", str(refusal)
        content = self.clean(content.encode(errors="replace").decode())
        return Reply(status, content, tokens_in, tokens_out, estimated)

    def _status(self, status: int, headers: Any, said: str, used: tuple[int, str, bool]) -> Reply | _Fault | None:
        """What an error of the server means."""
        words = said.lower()
        if status == 429 and "insufficient_quota" not in words:
            return _Fault("status 429", retry_after(headers), busy=True)
        if status in (408, 409, 425) or status >= 500:
            return _Fault(f"status {status}", retry_after(headers), busy=status == 503)
        if status in (400, 422):
            if _FINAL.search(words):
                return Reply("refused", said)
            if self._ask_differently(words, used):
                return None
            if self._proven or self._usable:
                return _Fault(f"status {status}", said=said or "no reason")  # another time it may take the question
        advice = {
            401: "; is the key in the environment the right one?",
            404: f"; does the server know the model {self.endpoint.model}?",
        }
        self.halt(f"the server answered {status}: {said}{advice.get(status, '')}")
        return None

    def _ask_differently(self, words: str, used: tuple[int, str, bool]) -> bool:
        """After a 400: give up what the server does not take. False when it cannot be that."""
        if used != (self._format, self._limit_name, self._sampled):
            return True  # another question has found out already
        if self._limit_name in words and self._limit_name == "max_tokens":
            self._limit_name = "max_completion_tokens"
        elif self._sampled and ("temperature" in words or "top_p" in words):
            self._sampled = False
        elif not self._proven and self._format < len(_FORMATS) - 1:
            self._format += 1
        else:
            return False
        return True

    def _keep(self, request: Request, key: bytes, reply: Reply) -> None:
        self.journal.put(key, request.prompt, self.endpoint.model, reply)
        self._gate.speed_up()
        self._proven = self._proven or reply.status == "ok"
        self._lost = 0
        try:
            self.examples += _examples_in(answer_of(request, reply))
            self._usable += 1
        except AnswerError as error:
            self.refused += 1
            self._why[error.reason] = self._why.get(error.reason, 0) + 1
            if not self._usable and self.refused >= _HOPELESS:
                why = ", ".join(f"{reason} ({count})" for reason, count in self._why.items())
                self.halt(f"none of the first {self.refused} answers was of use: {why}; try another model")
        self._on_answer()

    def _give_up(self, key: bytes, why: str) -> None:
        self.failed[key] = why
        self._lost += 1
        if self._lost >= max(3, self.endpoint.concurrency) or not self._heard:
            self.halt(f"the server does not answer ({why}); the same command goes on from here")
        self._on_answer()

    def clean(self, text: str) -> str:
        """A text without the key and the password."""
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        return text


@dataclass(frozen=True, slots=True)
class _Fault:
    """Why a question has no answer.

    Args:
        name: In a few words that are counted.
        wait: Seconds after which the server wants to be asked again.
        busy: It has too much to do.
        said: Why asking again would be in vain for now.
    """

    name: str
    wait: float | None = None
    busy: bool = False
    said: str = ""


def answer_of(request: Request, reply: Reply) -> Answer:
    """The answer that a reply holds.

    Raises:
        AnswerError: It holds none.
    """
    if reply.status == "cut":
        raise AnswerError("cut at the most tokens", f"after {reply.tokens_out} tokens: {reply.text[-100:]}")
    if reply.status != "ok":
        raise AnswerError("refused by the model", reply.text[:200])
    return read_answer(request.answer, reply.text)


def _examples_of(request: Request, reply: Reply) -> int:
    try:
        return _examples_in(answer_of(request, reply))
    except AnswerError:
        return 0


def _examples_in(answer: Answer) -> int:
    values = answer.model_dump()
    return len(values["queries"]) if "queries" in values else int(not values.keys() & {"tasks", "grades"})


def _longest(request: Request) -> int:
    """No fewer tokens than a question has: no token is shorter than a byte, and each message has a few around it."""
    texts = sum(len(message["content"].encode()) + 16 for message in request.messages)
    return texts + len(json.dumps(schema_of(request.answer)))


def _said(body: object, message: str) -> str:
    """A server's error in one line."""
    if isinstance(body, dict):
        parts = [body.get("code"), body.get("message") or body.get("detail") or body.get("error"), body.get("param")]
        message = " · ".join(str(part) for part in parts if part) or message
    return " ".join(message.encode(errors="replace").decode().split())[:400]


def _login(url: str | None) -> tuple[str | None, tuple[str, ...]]:
    """(an address without name and password, which libraries would log; the password and both as HTTP sends them)."""
    parts = urlsplit(url or "")
    if url is None or "@" not in parts.netloc:
        return url, ()
    name, password = unquote(parts.username or ""), unquote(parts.password or "")
    both = base64.b64encode(f"{name}:{password}".encode()).decode()
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), (password, both)


def _is_count(value: object) -> TypeGuard[int]:
    """Whether a server's number of tokens can be one; others are guessed, lest they let a budget be overdrawn."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40
