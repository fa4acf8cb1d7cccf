"""Send many requests to a language model: concurrently, with retries, within a budget, and each one only once."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from searchkit.errors import AnswerError, MissingExtraError
from searchkit.training.synthesis.answers import Answer
from searchkit.training.synthesis.journal import Journal, Reply
from searchkit.training.synthesis.pacing import Budget, Gate
from searchkit.training.synthesis.protocol import (
    Endpoint,
    Failure,
    Refusal,
    Request,
    RequestForm,
    answer_of,
    cut_while_thinking,
    error_message,
    failure_of,
    meaning_of,
    read_reply,
    split_login,
)

_LONGEST_PAUSE = 60.0  # seconds between two tries where the server names none
_BUSY = 50  # 429 responses to one request before it is given up
_HOPELESS = 20  # unusable answers at the start that end the run
_ADVICE = {
    401: "; is the key in the environment the right one?",
    404: "; does the server know the model {model}?",
}


class Client:
    """Sends requests and writes the answers into a journal.

    Args:
        endpoint: The server and the model.
        api_key: Never written anywhere, and removed from what the server says.
        journal: Where answers go; what it already holds is not requested again.
        budget: Spending limit.
        on_answer: Called after each answer.

    Attributes:
        stopped: Why no more requests are sent; empty while they are.
        out_of_budget: The reason is the budget.
        failed: Request key -> why the request was given up.
        examples: Examples in the answers so far, before filtering, those of earlier runs included.
        refused: Unusable answers of this run.
        form: How requests are put at present.
        openai: The library's client, for the server's other services.
    """

    def __init__(
        self, endpoint: Endpoint, api_key: str, journal: Journal, budget: Budget, on_answer: Callable[[], None]
    ) -> None:
        try:
            from openai import AsyncOpenAI
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"calling a language model needs {error.name}: pip install 'searchkit[train]'", name=error.name
            ) from error
        url, login = split_login(endpoint.base_url)
        # Retries are counted here, so the library makes none.
        self.openai = AsyncOpenAI(
            api_key=api_key, base_url=url, max_retries=0, timeout=endpoint.timeout,
            default_headers={"Authorization": f"Basic {login[-1]}"} if login else None,
        )  # fmt: skip
        self._secrets = [secret for secret in (api_key, *login) if len(secret) >= 8]
        self.endpoint, self.journal, self._budget = endpoint, journal, budget
        self._on_answer = on_answer
        self._gate = Gate(endpoint.concurrency, self._pause, patience=endpoint.timeout / 4)
        self._in_flight: dict[bytes, asyncio.Task[None]] = {}
        self._landed = asyncio.Event()
        self._stop = asyncio.Event()
        self.form = RequestForm()
        self._form_works = False
        self._heard = False  # the server has responded at least once
        self._given_up = 0  # requests given up since the last answer
        self._usable = 0
        self._reasons: Counter[str] = Counter()
        self.stopped = ""
        self.out_of_budget = False
        self.failed: dict[bytes, str] = {}
        self.examples = 0
        self.refused = 0

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.openai.close()

    async def ask_all(self, requests: Iterable[Request]) -> None:
        """Send the requests that have no answer yet; returns when each is answered or given up, or at a stop."""
        try:
            for request in requests:
                if self.stopped:
                    break
                key = request.key(self.endpoint)
                if (known := self.journal.get(key)) is not None:
                    self.examples += _examples_of(request, known)
                    continue
                if key in self._in_flight:
                    continue
                if not await self._room(request):
                    break
                task = asyncio.create_task(self._ask(request, key))
                self._in_flight[key] = task
                task.add_done_callback(partial(self._land, request, key))
            while self._in_flight:
                await self._wait()
        finally:
            for task in self._in_flight.values():
                task.cancel()

    def halt(self, why: str) -> None:
        """Send no more requests."""
        self.stopped = self.stopped or why
        self._gate.open()
        self._stop.set()

    def halt_over_budget(self) -> None:
        """Send no more requests, since the next one does not fit the budget."""
        self.out_of_budget = not self.stopped
        self.halt("the budget is used up")

    def reserve(self, request: Request) -> bool:
        """Set aside the most that a request can cost; False when that exceeds the budget for now."""
        return self._budget.reserve(self.journal, request.max_tokens(), self.endpoint.max_output_tokens)

    def release(self, request: Request) -> None:
        """Return what was set aside."""
        self._budget.release(request.max_tokens(), self.endpoint.max_output_tokens)

    def take(self, request: Request, status: int, body: object, form: RequestForm) -> bool:
        """Record the response to a request that was sent in a batch.

        Args:
            request: The request.
            status: HTTP status of its response.
            body: Parsed body of its response.
            form: How the request was put.

        Returns:
            Whether it should be sent again, in the form that the client now uses.
        """
        key = request.key(self.endpoint)
        outcome: Reply | Failure | None
        if status == 200:
            reply = read_reply(request, json.dumps(body))
            outcome = None if self._limited(request, reply, form) else self._clean_reply(reply, 0.0)
        else:
            error = body.get("error", body) if isinstance(body, dict) else body
            outcome = self._refusal(status, {}, self.clean(error_message(error, json.dumps(body))), form)
        if isinstance(outcome, Reply):
            self._keep(request, key, outcome)
        elif outcome is not None:
            self.failed[key] = str(outcome)
        return outcome is None and not self.stopped

    async def _room(self, request: Request) -> bool:
        """Wait until one more request may be sent; False when that will never be."""
        while not self.stopped:
            if len(self._in_flight) < self.endpoint.concurrency:
                if self.reserve(request):
                    return True
                if not self._in_flight:
                    self.halt_over_budget()
                    break
            await self._wait()
        return False

    async def _wait(self) -> None:
        self._landed.clear()
        await self._landed.wait()

    def _land(self, request: Request, key: bytes, task: asyncio.Task[None]) -> None:
        self.release(request)
        del self._in_flight[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            self.halt(f"{type(error).__name__}: {self.clean(str(error))}")
        self._landed.set()

    async def _ask(self, request: Request, key: bytes) -> None:
        """Send one request until it is answered or given up."""
        failures = busy = 0
        while not self.stopped:
            form = self.form
            async with self._gate():
                outcome = None if self.stopped else await self._send(request, form)
                if isinstance(outcome, Reply):
                    self._gate.speed_up(outcome.seconds)
            if isinstance(outcome, Reply):
                self._keep(request, key, outcome)
                return
            if outcome is None:
                continue
            self.journal.count(outcome.name)
            if outcome.final:
                self._give_up(key, f"the server answered {str(outcome).removeprefix('status ')}")
                return
            if outcome.wait is not None and outcome.busy:
                busy += 1
            else:
                failures += 1
            if failures > self.endpoint.retries or busy > _BUSY:
                self._give_up(key, f"given up after {failures + busy} tries: {outcome}")
                return
            pause = min(_LONGEST_PAUSE, self.endpoint.backoff * 2.0 ** max(0, failures + busy - 1))
            pause *= random.uniform(0.5, 1)  # so that retries do not arrive together
            if outcome.busy or outcome.name == "timeout":
                self._gate.slow_down(pause if outcome.wait is None else outcome.wait)
            await self._pause(pause if outcome.wait is None else outcome.wait)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return

    async def _send(self, request: Request, form: RequestForm) -> Reply | Failure | None:
        """One try: a reply, a failure to retry after, or None when it is to be sent in another form."""
        from openai import APIConnectionError, APIStatusError

        began = time.monotonic()
        try:
            async with asyncio.timeout(self.endpoint.timeout):
                # As text: the library's own response model accepts malformed responses, and is slow.
                body = form.body(request, self.endpoint)
                text = await self.openai.post("/chat/completions", cast_to=str, body=body)
                self._heard = True
                reply = read_reply(request, text)
                if self._limited(request, reply, form):
                    return None
                return self._clean_reply(reply, time.monotonic() - began)
        except TimeoutError:
            return Failure("timeout", f"no answer within {self.endpoint.timeout:g} s; allow more with --timeout")
        except APIStatusError as error:
            self._heard = True
            message = self.clean(error_message(error.body, error.message))
            return self._refusal(error.status_code, error.response.headers, message, form)
        except APIConnectionError as error:
            cause = error.__cause__
            return Failure("timeout" if "Timeout" in type(cause).__name__ else "connection lost")

    def _refusal(self, status: int, headers: Any, message: str, form: RequestForm) -> Reply | Failure | None:
        """What to do after an error of the server: keep it as the reply, retry, or (None) send another form."""
        refusal = meaning_of(status, message)
        if refusal is Refusal.CONTENT:
            return Reply("refused", message)
        if refusal is Refusal.RETRY:
            return failure_of(status, headers, message)
        if refusal is Refusal.FORM:
            if form != self.form:  # another request has found out already
                return None
            if (other := form.without(message, proven=self._form_works)) is not None:
                self.form = other
                return None
            if self._form_works or self._usable:  # the request may be accepted another time
                return Failure(f"status {status}", message or "no reason given", final=status < 500)
        self.halt(f"the server answered {status}: {message}{_ADVICE.get(status, '').format(model=self.endpoint.model)}")
        return None

    def _limited(self, request: Request, reply: Reply | Failure, form: RequestForm) -> bool:
        """Whether the low limit of a short answer cut a model off that thinks first; it gets the whole limit then."""
        limit = form.limit(request, self.endpoint)
        if isinstance(reply, Failure) or not cut_while_thinking(reply) or limit == self.endpoint.max_output_tokens:
            return False
        self.journal.count("cut while thinking")
        self.form = replace(self.form, thoughtful=True)
        return True

    def _clean_reply(self, reply: Reply | Failure, seconds: float) -> Reply | Failure:
        return reply._replace(text=self.clean(reply.text), seconds=seconds) if isinstance(reply, Reply) else reply

    def _keep(self, request: Request, key: bytes, reply: Reply) -> None:
        self.journal.put(key, request.prompt, self.endpoint.model, reply)
        self._form_works = self._form_works or reply.status == "ok"
        self._given_up = 0
        try:
            self.examples += _examples_in(answer_of(request, reply))
            self._usable += 1
        except AnswerError as error:
            self.refused += 1
            self._reasons[error.reason] += 1
            if not self._usable and self.refused >= _HOPELESS:
                reasons = ", ".join(f"{reason} ({count})" for reason, count in self._reasons.items())
                self.halt(f"none of the first {self.refused} answers was usable: {reasons}; try another model")
        self._on_answer()

    def _give_up(self, key: bytes, why: str) -> None:
        self.failed[key] = why
        self._given_up += 1
        if self._given_up >= max(3, self.endpoint.concurrency) or not self._heard:
            what = "keeps failing" if self._heard else "does not answer"
            self.halt(f"the server {what} ({why}); run the same command again to resume")
        self._on_answer()

    def clean(self, text: str) -> str:
        """A text without the key and the password."""
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        return text


def _examples_of(request: Request, reply: Reply) -> int:
    try:
        return _examples_in(answer_of(request, reply))
    except AnswerError:
        return 0


def _examples_in(answer: Answer) -> int:
    values = answer.model_dump()
    return len(values["queries"]) if "queries" in values else int(not values.keys() & {"tasks", "grades"})
