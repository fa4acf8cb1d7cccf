"""Training examples written by a language model: request, filter, and write what is left, with a report."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from searchkit.engine import SearchEngine
from searchkit.errors import AnswerError, InputError
from searchkit.training.files import write_json
from searchkit.training.synthesis.answers import Answer
from searchkit.training.synthesis.batch import ask_in_batches
from searchkit.training.synthesis.from_nothing import Asker, FromNothing
from searchkit.training.synthesis.grounded import Grounded
from searchkit.training.synthesis.journal import Journal
from searchkit.training.synthesis.judging import Judge
from searchkit.training.synthesis.llm import Client
from searchkit.training.synthesis.output import Output
from searchkit.training.synthesis.pacing import Budget
from searchkit.training.synthesis.protocol import Endpoint, Request, answer_of
from searchkit.training.synthesis.quality import Candidate, Checks, found_again
from searchkit.training.synthesis.settings import (
    KEY_VARIABLE,
    Progress,
    SynthesisReport,
    SynthesizeConfig,
    without_secrets,
)
from searchkit.training.synthesis.user_queries import read_evaluation_queries

__all__ = ["Progress", "SynthesisReport", "SynthesizeConfig", "synthesize"]

_BATCH = 64  # examples whose documents are looked up at once
_JUDGED = 512  # examples that are graded at once
_INTERVAL = 0.1  # seconds between two progress reports


class Source(Protocol):
    """Where requests come from, and what becomes of their answers."""

    async def prepare(self, asker: Asker) -> None: ...
    def next_round(self) -> bool: ...
    def requests(self) -> Iterator[Request]: ...
    def candidates(self, request: Request, answer: Answer) -> list[Candidate]: ...
    def accept(self, candidate: Candidate) -> bool: ...
    def described(self, request: Request) -> dict[str, Any]: ...
    def asked(self, request: Request) -> list[str]: ...


def synthesize(
    config: SynthesizeConfig,
    engine: SearchEngine | None = None,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> SynthesisReport:
    """Have a language model write training examples, and write those that pass every check to ``config.out``.

    With an index the examples are queries for its passages; without one they are made from nothing, as in the paper.
    Every answer is stored in a folder beside the output as soon as it arrives: the same call, whatever stopped the last
    one, requests nothing twice, and with a higher count or budget it continues. The output depends on the answers
    alone, not on the order in which they arrived.

    Args:
        config: What to write.
        engine: The index to write queries for; None writes from nothing.
        on_progress: Called now and then.

    Raises:
        InputError: The settings are unusable, the server refuses, or no answer was usable; the message says why.
        BusyError: Another process writes the same output.
        MissingExtraError: A library of the extra "train" is missing.
    """
    out, work = Path(config.out), config.beside(".work")
    if out.exists() and not work.is_dir():
        raise InputError(f"{out} exists and was not written by synthesize; choose another file")
    config.check_use(with_index=engine is not None)
    if engine is not None and config.round_trip:
        _ = engine.embedder  # a model that does not fit the index is reported before answers are paid for
    key = _key(config)
    source: Source = FromNothing(config) if engine is None else Grounded(engine, config)
    with Journal(work) as journal:
        write_json(
            work / "config.json",
            asdict(config) | {"base_url": config.base_url and without_secrets(config.base_url)},
        )
        checks = Checks(
            likeness=config.likeness, check_language=config.check_language,
            evaluation=read_evaluation_queries(config.evaluation),
        )  # fmt: skip
        with Output(config) as output, closing(checks):
            run = _Run(config, engine, source, journal, checks, output, on_progress)
            asyncio.run(run.run(key))
    return output.report


def _key(config: SynthesizeConfig) -> str:
    """The API key, "" where none is needed."""
    name = config.key_variable
    key = os.environ.get(name, "")
    if key or (config.base_url is not None and name == KEY_VARIABLE):
        return key
    shown = name if name.isupper() else "that key_variable names"  # it may be the key itself, given by mistake
    raise InputError(
        f"no key in the environment variable {shown}; set it, or name a server that needs none with --base-url"
    )


class _Run:
    """One call of `synthesize`; as an :class:`Asker`, it sends the requests of its source."""

    def __init__(
        self,
        config: SynthesizeConfig,
        engine: SearchEngine | None,
        source: Source,
        journal: Journal,
        checks: Checks,
        output: Output,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._config, self._engine, self._source, self._journal = config, engine, source, journal
        self._checks, self._output, self._on_progress = checks, output, on_progress
        self._start, self._reported = time.monotonic(), 0.0
        self._budget = Budget(config.max_tokens, config.max_cost, config.price_in, config.price_out)
        self._endpoint = Endpoint(
            model=config.model,
            base_url=config.base_url,
            concurrency=config.concurrency,
            timeout=config.timeout,
            retries=config.retries,
            backoff=config.backoff,
            temperature=config.temperature,
            top_p=config.top_p,
            max_output_tokens=config.max_output_tokens,
        )
        self._judge: Judge | None = None
        if config.judge and engine is not None:
            self._judge = Judge(engine, depth=config.judged, folder=config.prompts_folder)
        self._stage = "tasks"
        self._examples_before = 0  # the round
        self._unjudged: list[Candidate] = []

    async def run(self, key: str) -> None:
        """Request and filter, round by round."""
        known = self._journal.answers
        async with Client(self._endpoint, key or "none", self._journal, self._budget, self._report) as self._client:
            await self._source.prepare(self)
            # After a stop the rounds continue with the answers that exist: those of earlier runs count too.
            while self._source.next_round():
                self._examples_before = self._output.report.examples - self._client.examples
                self._enter("asking")
                await self._send(self._source.requests())
                self._enter("filtering")
                self._filter(self._source.requests())
                if self._judge is not None:
                    self._enter("judging")
                    await self._grade(self._judge)
            self._enter(self._stage)
            self._finish(self._journal.answers - known)

    # Asker

    @property
    def trouble(self) -> str:
        return self._output.trouble

    @property
    def stopped(self) -> str:
        return self._client.stopped

    async def ask(self, requests: Sequence[Request]) -> list[Answer | None]:
        await self._send(requests)
        return [self._answer(request, self._source.described(request), ()) for request in requests]

    def settled(self, name: str) -> Any:
        return self._journal.settled(self._scoped(name))

    def settle(self, name: str, value: Any) -> None:
        if not self.stopped:  # with more answers it would come out differently
            self._journal.settle(self._scoped(name), value)

    def _scoped(self, name: str) -> str:
        """A name for what one model answers with one set of sampling settings."""
        endpoint = self._endpoint
        return f"{name}: {endpoint.model}, {endpoint.temperature}, {endpoint.top_p}, {endpoint.max_output_tokens}"

    # A round

    async def _send(self, requests: Iterable[Request]) -> None:
        if self._config.batch:
            await ask_in_batches(self._client, requests, poll=self._config.poll)
        else:
            await self._client.ask_all(requests)

    def _answer(self, request: Request, row: dict[str, Any], groups: Sequence[str]) -> Answer | None:
        """The answer to a request; None, with a line among the rejects, if there is none or it is of no use."""
        key = request.key(self._endpoint)
        reply = self._journal.get(key)
        row = {"prompt": request.prompt} | row
        if reply is None:
            if why := self._client.failed.get(key):
                self._output.reject("no answer", why, row, ())  # the server's fault, not the model's
            return None
        try:
            return answer_of(request, reply)
        except AnswerError as error:
            self._output.reject(error.reason, str(error), row, groups)
            return None

    def _filter(self, requests: Iterable[Request]) -> None:
        """Write the examples that pass every check."""
        passed: list[Candidate] = []
        for request in requests:
            row, groups = self._source.described(request), self._source.asked(request)
            answer = self._answer(request, row, groups)
            if answer is None:
                continue
            candidates = self._source.candidates(request, answer)
            written = {candidate.named_group for candidate in candidates}
            for group in groups:
                if group not in written:
                    reason = "not written" if written else "nothing to ask"
                    self._output.reject(reason, group, {"prompt": request.prompt} | row, [group])
            for candidate in candidates:
                if fault := self._checks.fault(candidate):
                    self._output.reject_example(*fault, candidate)
                else:
                    passed.append(candidate)
            if len(passed) >= _BATCH:
                self._keep(passed)
                passed = []
        self._keep(passed)

    def _keep(self, candidates: Sequence[Candidate]) -> None:
        """Write the examples whose positive the index finds, or put them aside for the judge."""
        k = self._config.round_trip
        found = [True] * len(candidates)
        if self._engine and k and candidates:
            found = found_again(self._engine, candidates, k)
        for candidate, is_found in zip(candidates, found, strict=True):
            if not is_found:
                self._output.reject_example("not found again", f"not among the first {k} of the index", candidate)
            elif self._judge is not None:
                self._unjudged.append(candidate)
            else:
                self._accept(candidate)
        self._report()

    async def _grade(self, judge: Judge) -> None:
        """Have the model grade what the index finds for the examples of a round, and write those that hold up."""
        waiting, self._unjudged = self._unjudged, []
        for start in range(0, len(waiting), _JUDGED):
            requests = list(judge.requests(waiting[start : start + _JUDGED]))
            await self._send(requests)
            for request in requests:
                candidate: Candidate = request.about.candidate
                answer = self._answer(request, candidate.row(self._config.model), [candidate.named_group])
                if answer is None:
                    continue
                try:
                    self._accept(judge.judged(request, answer))
                except AnswerError as error:
                    self._output.reject_example(error.reason, str(error), candidate)
            self._report()

    def _accept(self, candidate: Candidate) -> None:
        """Write an example, if its source still needs it."""
        self._output.report.outcomes.usable(candidate.named_group, candidate.prompt)
        if self._source.accept(candidate):
            self._output.write(candidate)

    # Reports

    def _enter(self, stage: str) -> None:
        """Begin a stage, and report it at once."""
        self._stage, self._reported = stage, 0.0
        self._report()

    def _report(self) -> None:
        """Report progress, but not too often."""
        now = time.monotonic()
        if self._on_progress is None or now - self._reported < _INTERVAL:
            return
        self._reported = now
        filtering = self._stage in ("filtering", "judging")
        report, client, journal = self._output.report, self._client, self._journal
        self._on_progress(
            Progress(
                self._stage,
                report.examples if filtering else self._examples_before + client.examples,
                self._config.count,
                journal.tokens_in + journal.tokens_out,
                self._budget.cost(journal.tokens_in, journal.tokens_out),
                now - self._start,
                sum(report.refused.values()) if filtering else client.refused,
            )
        )

    def _finish(self, new_answers: int) -> None:
        report, journal, stopped = self._output.report, self._journal, self._client.stopped
        report.stopped, report.out_of_budget = stopped, self._client.out_of_budget
        report.asked, report.answers = new_answers, journal.answers
        report.tokens_in, report.tokens_out, report.estimated = journal.tokens_in, journal.tokens_out, journal.estimated
        report.cost = self._budget.cost(journal.tokens_in, journal.tokens_out)
        report.troubles, report.waited = journal.totals(), journal.seconds
        report.seconds = time.monotonic() - self._start
        if not report.examples:
            rejected = ", ".join(f"{reason} ({count})" for reason, count in report.refused.items())
            rejected = rejected and f"{rejected}; the last: {self.trouble}"
            raise InputError(f"nothing was written: {stopped or rejected or 'the model gave no answer'}")
        report.save(self._config.beside(".report.json"))
