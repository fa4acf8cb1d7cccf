"""OpenAI's chat protocol: what is sent, what a reply holds, and what an error of the server means."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, TypeGuard
from urllib.parse import unquote, urlsplit

from searchkit.errors import AnswerError
from searchkit.models.remote.client import retry_after
from searchkit.training.synthesis.answers import Answer, read_answer, schema_of
from searchkit.training.synthesis.journal import Reply
from searchkit.training.synthesis.prompting import Message

# Ways to request JSON, the strictest first. llama-cpp-python and llama.cpp take the schema inside json_object.
_FORMATS = ("json_schema", "json_object with schema", "json_object", "text")
# Errors about the content of a request, which fail again however often it is sent.
_CONTENT = re.compile(r"content.?filter|content.management.policy|content policy|context.?(?:length|window|size)")
# Parameters that a server may not accept, and how a server says so. llama-cpp-python, for one, answers an unknown
# response_format with status 500 and a validation error in the body.
_PARAMETER = re.compile(r"response_format|json_schema|max_(?:completion_)?tokens|temperature|top_p|\bseed\b")
_REJECTED = re.compile(
    r"validation error|literal_error|extra_forbidden|input should be|not (?:be )?(?:supported|permitted|allowed)"
    r"|(?:does|do)(?: not|n't) support|unsupported|unrecogni[sz]ed|unknown|invalid|unexpected"
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, a model, and how requests are made.

    Args:
        model: As the server calls it.
        base_url: The server's address, up to and including /v1; None is OpenAI's. A user name and password in it are
            sent in place of the key.
        concurrency: Requests in flight; fewer while the server reports that it has too many.
        timeout: Seconds to wait for one answer.
        retries: How often a request is repeated after a failure of the server or the connection.
        backoff: Seconds before the first retry, doubled for each further one; a Retry-After header takes precedence.
        temperature: Sampling temperature.
        top_p: Nucleus sampling threshold.
        max_output_tokens: Token limit of one answer. Answers that are short by nature get a lower one, unless the model
            thinks before it answers.
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
    """One request to the model.

    Args:
        prompt: Label of its prompt.
        answer: Name of the answer's schema.
        messages: The chat messages.
        draw: Distinguishes requests with the same messages.
        kinds: The kinds of query that the messages ask for, if any; not part of the key either.
        about: What the caller needs when the answer is in; neither sent nor part of the key.
    """

    prompt: str
    answer: str
    messages: tuple[Message, ...]
    draw: int = 0
    kinds: tuple[str, ...] = ()
    about: Any = None

    @property
    def schema(self) -> dict[str, Any]:
        """What the answer has to be."""
        return schema_of(self.answer, self.kinds)

    def key(self, endpoint: Endpoint) -> bytes:
        """Identifies the request, the model and its sampling settings."""
        sampling = [endpoint.temperature, endpoint.top_p, endpoint.max_output_tokens]
        content = [self.prompt, endpoint.model, self.messages, schema_of(self.answer), sampling, self.draw]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()

    @property
    def enough(self) -> int | None:
        """Tokens that any sensible answer fits into, in any language; None where it may be long.

        Small models sometimes write on without end.
        """
        match self.answer:
            case "queries":
                return 128 * (1 + max(1, len(self.kinds)))
            case "corpus-tasks" | "grades":
                return 1024
        return None

    def max_tokens(self) -> int:
        """An upper bound of its tokens: none is shorter than a byte, and every message adds a few of its own."""
        texts = sum(len(message["content"].encode()) + 16 for message in self.messages)
        return texts + len(json.dumps(self.schema))


@dataclass(frozen=True, slots=True)
class RequestForm:
    """Which parameters requests carry; `without` drops those that a server does not accept.

    Args:
        format: How JSON is requested.
        limit_name: What the server calls the token limit of an answer.
        sampling: Send temperature and top_p.
        seeded: Send a seed with a request that was drawn before: some servers answer the same question alike each time.
        thoughtful: The model thinks before it answers, so that short answers need many tokens too.
    """

    format: str = _FORMATS[0]
    limit_name: str = "max_tokens"
    sampling: bool = True
    seeded: bool = True
    thoughtful: bool = False

    def limit(self, request: Request, endpoint: Endpoint) -> int:
        """Token limit of the answer to a request."""
        enough = None if self.thoughtful else request.enough
        return endpoint.max_output_tokens if enough is None else min(enough, endpoint.max_output_tokens)

    def body(self, request: Request, endpoint: Endpoint) -> dict[str, Any]:
        """The JSON body of a request."""
        body: dict[str, Any] = {"model": endpoint.model, "messages": list(request.messages)}
        body[self.limit_name] = self.limit(request, endpoint)
        if self.sampling:
            body |= {"temperature": endpoint.temperature, "top_p": endpoint.top_p}
        if self.seeded and request.draw:
            body["seed"] = request.draw % (1 << 31)
        if self.format == "json_schema":
            schema = {"name": request.answer.replace("-", "_"), "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self.format == "json_object with schema":
            body["response_format"] = {"type": "json_object", "schema": request.schema}
        elif self.format == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def without(self, message: str, *, proven: bool) -> RequestForm | None:
        """The form to try after a rejection; None when there is none left.

        Args:
            message: What the server said.
            proven: It has accepted this format before, so the format is not the reason.
        """
        words = message.lower()
        named = "response_format" in words or "json_schema" in words
        if self.limit_name in words and self.limit_name == "max_tokens" and not named:
            return replace(self, limit_name="max_completion_tokens")
        if self.sampling and ("temperature" in words or "top_p" in words) and not named:
            return replace(self, sampling=False)
        if self.seeded and "seed" in words and not named:
            return replace(self, seeded=False)
        if not proven and self.format != _FORMATS[-1]:
            return replace(self, format=_FORMATS[_FORMATS.index(self.format) + 1])
        return None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no answer yet.

    Args:
        name: A few words; failures are counted by it.
        message: What the server said.
        wait: Seconds after which the server wants to be asked again.
        busy: The server has too many requests.
        final: Retrying is pointless for now.
    """

    name: str
    message: str = ""
    wait: float | None = None
    busy: bool = False
    final: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" if self.message else self.name


class Refusal(Enum):
    """What a server's error status and body say about a request that it did not answer."""

    RETRY = "the server failed"
    CONTENT = "this request can never be answered"
    FORM = "a parameter is not accepted"
    FATAL = "no request will be answered"


def meaning_of(status: int, message: str) -> Refusal:
    """Tell what a server refuses from what it fails at, by the status and the message of an error."""
    words = message.lower()
    if status in (408, 409, 425) or (status == 429 and "insufficient_quota" not in words):
        return Refusal.RETRY
    if (status in (400, 422) or status >= 500) and _CONTENT.search(words):
        return Refusal.CONTENT
    if status in (400, 422):
        return Refusal.FORM
    if status >= 500:
        return Refusal.FORM if _PARAMETER.search(words) and _REJECTED.search(words) else Refusal.RETRY
    return Refusal.FATAL


def failure_of(status: int, headers: Any, message: str) -> Failure:
    """The failure behind an error that is worth a retry."""
    return Failure(f"status {status}", message, retry_after(headers), busy=status in (429, 503))


def error_message(body: object, default: str) -> str:
    """A server's error in one line."""
    if isinstance(body, dict):
        parts = [body.get("code"), body.get("message") or body.get("detail") or body.get("error"), body.get("param")]
        default = " · ".join(str(part) for part in parts if part) or default
    return " ".join(default.encode(errors="replace").decode().split())[:400]


def cut_while_thinking(reply: Reply) -> bool:
    """Whether an answer was cut off before it had begun."""
    return reply.status == "cut" and ("<think" in reply.text[:100] or "{" not in reply.text)


def read_reply(request: Request, text: str) -> Reply | Failure:
    """Parse the body of a response of status 200."""
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
        return Failure("malformed response")
    estimated = False
    if not (tokens_in and _is_count(tokens_in) and _is_count(tokens_out)):
        estimated, tokens_in = True, request.max_tokens() // 4
        tokens_out = len(content.encode(errors="replace")) // 4
    status = {"length": "cut", "content_filter": "refused"}.get(str(finish), "ok")
    if refusal:
        status, content = "refused", str(refusal)
    return Reply(status, content.encode(errors="replace").decode(), tokens_in, tokens_out, estimated)


def answer_of(request: Request, reply: Reply) -> Answer:
    """The answer that a reply holds.

    Raises:
        AnswerError: The reply was cut off, is a refusal, or is not of the request's schema.
    """
    if reply.status == "cut":
        if request.answer == "queries":
            try:
                answer = read_answer(request.answer, reply.text, cut=True)
                if getattr(answer, "queries", ()):
                    return answer
            except AnswerError:
                pass
        raise AnswerError("cut at the most tokens", f"after {reply.tokens_out} tokens: {reply.text[-100:]}")
    if reply.status != "ok":
        raise AnswerError("refused by the model", reply.text[:200])
    return read_answer(request.answer, reply.text)


def split_login(url: str | None) -> tuple[str | None, tuple[str, ...]]:
    """(the address without user name and password, which libraries would log; the password, the Basic credentials)."""
    parts = urlsplit(url or "")
    if url is None or "@" not in parts.netloc:
        return url, ()
    name, password = unquote(parts.username or ""), unquote(parts.password or "")
    credentials = base64.b64encode(f"{name}:{password}".encode()).decode()
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), (password, credentials)


def _is_count(value: object) -> TypeGuard[int]:
    """Whether a server's token count is plausible; others are estimated, or they could overdraw a budget."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40
