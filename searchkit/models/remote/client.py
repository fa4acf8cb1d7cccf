"""Requests to a server of embeddings: retried, limited in time, and believed only when the answer is complete."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import numpy as np

from searchkit.errors import MissingExtraError, RemoteError
from searchkit.models.remote.address import KEY_VARIABLE, RemoteModel

logger = logging.getLogger(__name__)

_LONGEST_ANSWER = 1 << 29  # bytes
_BUSY = (408, 409, 425, 429)
_TOO_LONG = re.compile(
    r"context length|too (long|large)|token limit|max\w* .*tokens|tokens?\b.*exceed|less than \d+ tok"
)
_ADVICE = {
    401: f"; the key comes from {KEY_VARIABLE}, or the variable named by #key=VARIABLE. An address that only the index "
    "names gets no key outside the local network: name the model with --model",
    404: "; check the model's name, and that the address ends as the server wants it, mostly in /v1",
}
_ADVICE[403] = _ADVICE[401]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server is waited for.

    Args:
        timeout: Seconds for one request, whatever it is doing.
        retries: Failures of a request before it is given up: lost connections, broken answers, errors of the server.
        backoff: Seconds before the first retry; doubled for each further one, at most 30.
        longest_wait: Most seconds that a server may ask to wait; more than that is an error at once.
        busy: Seconds that one request may wait in all while the server says that it is busy.
    """

    timeout: float = 120.0
    retries: int = 5
    backoff: float = 0.5
    longest_wait: float = 120.0
    busy: float = 900.0


class Embedded(NamedTuple):
    """(n, width) float32 rows as the server sent them, and how many texts were truncated."""

    rows: np.ndarray
    truncated: int


class _RetryError(Exception):
    """A request failed in a way that another try may mend."""

    def __init__(self, reason: str, *, wait: float | None = None, busy: bool = False, slow: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.busy, self.slow = wait, busy, slow


class _RefusedError(Exception):
    """The server does not take these texts together, or one of them."""


class EmbeddingsClient:
    """A connection to one model of one server; threads may share it.

    Args:
        model: The server's address and the model.
        patience: How long it is waited for.

    Raises:
        InputError: The key cannot be used.
        MissingExtraError: httpx is not installed.
    """

    def __init__(self, model: RemoteModel, patience: Patience) -> None:
        try:
            import httpx
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "a model over the wire needs httpx: pip install 'searchkit[remote]'", name="httpx"
            ) from error
        self._errors = httpx.TimeoutException, (httpx.TransportError, httpx.DecodingError), httpx.InvalidURL
        self._model, self._patience = model, patience
        self._key = model.api_key()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        # Redirects are not followed: they would take the key along.
        self._http = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(patience.timeout, connect=10.0),
            verify=model.url.startswith("https:"),  # reading the certificates takes a while
        )
        weakref.finalize(self, self._http.close)
        self._lock = threading.Lock()
        self._until = 0.0
        """No thread sends anything before this time: the server asked for it."""
        self._answered = False
        self._base64 = True
        self.most_texts = 32
        """Inputs of one request: TEI takes no more by default. Halved when a server takes fewer."""

    def models(self) -> list[dict[str, Any]]:
        """What the server says about its models; empty if it says nothing."""
        try:
            status, content, _ = self._send("GET", "/models", None)
            data = json.loads(content)["data"] if status == 200 else []
            return [each for each in data if isinstance(each, dict)]
        except (_RetryError, ValueError, KeyError, TypeError):
            return []

    def embed(self, texts: Sequence[str], fields: Mapping[str, Any], width: int | None = None) -> Embedded:
        """Embed texts, in as many requests as the server wants.

        Args:
            texts: What is sent.
            fields: Further fields of the requests; lists among them have an entry a text.
            width: What a vector's width must be; None for any.

        Raises:
            RemoteError: There was no usable answer, in spite of all retries.
        """
        parts = []
        for start in range(0, len(texts), self.most_texts or 1):
            part = slice(start, start + self.most_texts)
            parts.append(self._embed(list(texts[part]), _part(fields, part), width))
            width = parts[-1].rows.shape[1]
        return Embedded(np.concatenate([part.rows for part in parts]), sum(part.truncated for part in parts))

    def _embed(self, texts: list[str], fields: dict[str, Any], width: int | None) -> Embedded:
        """Embed texts in one request; what the server refuses is halved, and a single text that is too long is cut."""
        body = {"model": self._model.name, "input": [text or " " for text in texts], **fields}
        if self._base64:
            body["encoding_format"] = "base64"
        try:
            answer = self._ask(body, alone=len(texts) == 1 or not self._answered)
        except _RefusedError as refusal:
            message = str(refusal)
            if self._base64 and "encoding_format" in message:
                self._base64 = False
                return self._embed(texts, fields, width)
            if len(texts) > 1:
                return self._halved(texts, fields, width)
            shorter = _shortened(texts[0], message)
            if shorter is None:
                raise RemoteError(f"{self._model} refused a text of {len(texts[0]):,} characters: {message}") from None
            return Embedded(self._embed([shorter], fields, width).rows, 1)
        truncated = answer.get("truncated")
        return Embedded(self._rows(answer, len(texts), width), len(truncated) if isinstance(truncated, list) else 0)

    def _halved(self, texts: list[str], fields: dict[str, Any], width: int | None) -> Embedded:
        middle = len(texts) // 2
        first = self._embed(texts[:middle], _part(fields, slice(0, middle)), width)
        second = self._embed(texts[middle:], _part(fields, slice(middle, None)), first.rows.shape[1])
        if not first.truncated + second.truncated:  # it was the number of texts that was refused, and none of them
            self.most_texts = max(1, min(self.most_texts, len(texts) - middle))
        return Embedded(np.concatenate([first.rows, second.rows]), first.truncated + second.truncated)

    # One request

    def _ask(self, body: dict[str, Any], *, alone: bool) -> dict[str, Any]:
        """The answer to a request, after as many tries as it takes."""
        failures, waited = 0, 0.0
        while True:
            try:
                return self._once(body)
            except _RetryError as error:
                if error.slow and not alone:
                    raise _RefusedError(str(error)) from None  # fewer texts may be quicker
                if not error.busy:
                    failures += 1
                pause = min(30.0, self._patience.backoff * 2.0 ** max(0, failures - 1)) * random.uniform(0.5, 1)
                pause = pause if error.wait is None else error.wait
                waited += pause if error.busy else 0.0
                tries = f"; gave up after {failures} tries" if failures > 1 else ""
                if not self._answered and not error.busy:
                    raise RemoteError(f"{self._model} cannot be reached: {error}. Is the server running?") from None
                if pause > self._patience.longest_wait:
                    raise RemoteError(f"{self._model} asks to wait {pause:.0f} s ({error}); try again then") from None
                if failures > self._patience.retries or waited > self._patience.busy:
                    raise RemoteError(f"{self._model} does not answer: {error}{tries}") from None
                logger.log(
                    logging.WARNING if pause >= 5 else logging.INFO, "%s: %s; waiting %.1f s", self._model, error, pause
                )
                if error.busy:
                    with self._lock:
                        self._until = max(self._until, time.monotonic() + pause)
                else:
                    time.sleep(pause)

    def _once(self, body: dict[str, Any]) -> dict[str, Any]:
        while (pause := self._until - time.monotonic()) > 0:
            time.sleep(pause)
        status, content, headers = self._send("POST", "/embeddings", body)
        if status == 200:
            try:
                answer = json.loads(content)
            except ValueError:
                raise _RetryError(f"its answer is no JSON: {self._shown(content)}") from None
            self._answered = True
            if not isinstance(answer, dict):
                raise RemoteError(f"{self._model} answered with no JSON object: {self._shown(content)}")
            return answer
        message = self._shown(_message(content))
        reason = f"status {status}: {message}"
        if 300 <= status < 400:
            to = headers.get("location", "nowhere").partition("?")[0]
            raise RemoteError(f"{self._model} redirects to {self._shown(to)}; give that address, if you trust it")
        if status in _BUSY or status >= 500:
            if "insufficient_quota" in message:
                raise RemoteError(f"{self._model} answered {reason}")
            if status >= 500 and _TOO_LONG.search(message.lower()):
                raise _RefusedError(message)
            wait = retry_after(headers)
            busy = status == 429 or (status == 503 and (self._answered or wait is not None))
            raise _RetryError(reason, wait=wait, busy=busy, slow=status in (408, 504))
        if status == 413:
            raise _RefusedError(f"too large: {message}")
        if status in (400, 422):
            raise _RefusedError(message or f"status {status}")
        raise RemoteError(f"{self._model} answered {reason}{_ADVICE.get(status, '')}")

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, bytes, Mapping[str, str]]:
        timeouts, losses, malformed = self._errors
        deadline = time.monotonic() + self._patience.timeout
        late = f"no answer within {self._patience.timeout:g} s"
        try:
            with self._http.stream(method, self._model.url + path, json=body) as response:
                content = bytearray()
                for part in response.iter_bytes():
                    content += part
                    if time.monotonic() > deadline:  # httpx counts from the last byte
                        raise _RetryError(late, slow=True)
                    if len(content) > _LONGEST_ANSWER:
                        raise RemoteError(f"{self._model} answered with more than {_LONGEST_ANSWER >> 20} MiB")
                return response.status_code, bytes(content), response.headers
        except timeouts as error:
            if type(error).__name__ == "ConnectTimeout":
                raise _RetryError("no connection within 10 s") from None
            raise _RetryError(late, slow=True) from None
        except malformed as error:
            raise RemoteError(f"{self._model} has no usable address: {error}") from None
        except losses as error:
            raise _RetryError(f"connection lost ({self._shown(str(error)) or type(error).__name__})") from None

    def _shown(self, text: str | bytes) -> str:
        """What the server said, short and without the key."""
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        text = " ".join(text.split())
        if self._key:
            text = text.replace(self._key, "[key]")
        return text if len(text) <= 300 else text[:300] + "..."

    # Its answer

    def _rows(self, answer: dict[str, Any], count: int, width: int | None) -> np.ndarray:
        """The vectors of an answer in the order of the texts, if there is one for each and all are sound."""

        def lied(what: str) -> RemoteError:
            return RemoteError(f"{self._model} answered with {what}; nothing of it was used")

        data = answer.get("data")
        if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
            raise lied("no list of vectors")
        if len(data) != count:
            raise lied(f"{len(data)} vectors for {count} texts")
        numbers = [item.get("index") for item in data]
        if not all(type(number) is int for number in numbers) or sorted(numbers) != list(range(count)):
            raise lied(f"the indexes {str(numbers)[:60]} for {count} texts")
        vectors: list[np.ndarray] = [np.empty(0)] * count
        for number, item in zip(numbers, data, strict=True):
            try:
                vectors[number] = _vector(item.get("embedding"))
            except (ValueError, TypeError, OverflowError, binascii.Error):
                raise lied(f"something else than numbers for text {number + 1}") from None
        widths = {len(vector) for vector in vectors}
        if len(widths) != 1 or (width is not None and widths != {width}) or not widths - {0}:
            expected = f", expected {width}" if width is not None else ""
            raise lied(f"vectors of width {', '.join(map(str, sorted(widths)))}{expected}")
        rows = np.stack(vectors)
        for fault, bad in (("not finite", ~np.isfinite(rows).all(1)), ("zero", ~rows.any(1))):
            if bad.any():
                raise lied(f"a vector that is {fault}, for text {int(bad.argmax()) + 1} of {count}")
        return rows


def _vector(value: object) -> np.ndarray:
    """A vector of numbers, or of float32 in base64."""
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float32)
    if not isinstance(value, list) or any(type(number) not in (float, int) for number in value):
        raise ValueError
    with np.errstate(over="ignore"):
        return np.array(value, np.float64).astype(np.float32)


def _part(fields: Mapping[str, Any], part: slice) -> dict[str, Any]:
    return {name: value[part] if isinstance(value, list) else value for name, value in fields.items()}


def _message(content: bytes) -> str:
    """What an error says, in one of the forms that servers use."""
    try:
        found = json.loads(content)
    except ValueError:
        return content.decode(errors="replace")
    while isinstance(found, dict):
        inner = next((found[name] for name in ("error", "message", "detail") if found.get(name)), None)
        if inner is None:
            break
        found = inner
    return found if isinstance(found, str) else json.dumps(found)


def _shortened(text: str, message: str) -> str | None:
    """The text cut to what a server says that it takes, or by a quarter; None if it complains of something else."""
    if len(text) < 2 or not _TOO_LONG.search(message.lower()):
        return None
    share = 0.75
    numbers = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", message)]
    if len(numbers) > 1 and 1 < min(numbers) < max(numbers):
        share = min(0.95, max(0.05, 0.95 * min(numbers) / max(numbers)))
    return text[: max(1, int(len(text) * share))]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, at most an hour; None if it does not say."""
    readings: tuple[tuple[str, Callable[[str], float]], ...] = (
        ("retry-after-ms", lambda value: float(value) / 1000),
        ("retry-after", float),
        ("retry-after", lambda value: (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()),
    )
    for name, read in readings:
        try:
            seconds = read(headers[name])
        except (KeyError, ValueError, TypeError):
            continue
        if seconds == seconds:
            return min(3600.0, max(0.0, seconds))
    return None
