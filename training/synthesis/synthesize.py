"""Training examples written by a language model: ask, sift, and write what is left, with a report."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TextIO

from searchkit.engine import SearchEngine
from searchkit.errors import AnswerError, CorpusError, InputError
from searchkit.readers.judgements import read_beir_split, read_queries
from searchkit.readers.lines import existing, json_lines
from searchkit.readers.values import quoted
from searchkit.tasks import find_task
from searchkit.training.synthesis.answers import Answer
from searchkit.training.synthesis.batch import ask_in_batches
from searchkit.training.synthesis.from_nothing import Asker, FromNothing
from searchkit.training.synthesis.grounded import Grounded
from searchkit.training.synthesis.journal import Journal
from searchkit.training.synthesis.judging import Judge
from searchkit.training.synthesis.llm import Client, Endpoint, Request, answer_of
from searchkit.training.synthesis.pacing import Budget
from searchkit.training.synthesis.prompting import load_mix
from searchkit.training.synthesis.quality import Candidate, Languages, Seen, copied, found_again, malformed
from searchkit.training.synthesis.settings import (
    KEY_VARIABLE,
    Progress,
    SynthesisReport,
    SynthesizeConfig,
    without_secrets,
)

__all__ = ["Progress", "SynthesisReport", "SynthesizeConfig", "synthesize"]

_BATCH = 64  # examples that are looked up in the index at once
_JUDGED = 512  # examples that are graded before the next ones are looked up
_SAMPLES = 1000  # queries of the user's own that are read
_OFTEN = 0.1  # seconds between two reports of progress


class Source(Protocol):
    """Where questions come from, and what becomes of their answers."""

    async def prepare(self, asker: Asker) -> None: ...
    def rounds(self) -> Iterator[Callable[[], Iterator[Request]]]: ...
    def candidates(self, request: Request, answer: Answer) -> list[Candidate]: ...
    def accept(self, one: Candidate) -> bool: ...
    def described(self, request: Request) -> dict[str, Any]: ...


def synthesize(
    config: SynthesizeConfig,
    engine: SearchEngine | None = None,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> SynthesisReport:
    """Have a model write training examples, and write those that pass every check to ``config.out``.

    With an index the examples are queries for its passages, without one they are made from nothing, as in the paper.
    Every answer is kept in a folder beside the output the moment it comes: the same call, after whatever stopped the
    last one, asks nothing twice, and with a higher count or budget it goes on. The output follows from the answers
    alone, not from the order in which they came.

    Args:
        config: What is wanted.
        engine: The index to ask about; None writes from nothing.
        on_progress: Called now and then.

    Raises:
        ValueError: The server refuses, or nothing that it wrote was of use; the message says why.
        BusyError: Another process writes the same output.
        ImportError: A library of the extra "train" is missing.
    """
    out = Path(config.out)
    work = config.beside(".work")
    if out.exists() and not work.is_dir():
        raise InputError(f"{out} is there and was not written by synthesize; name another file")
    config.check_use(of_an_index=engine is not None)
    key = _key(config)
    source = _source(config, engine)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(work))
        values = asdict(config) | {"base_url": config.base_url and without_secrets(config.base_url)}
        (work / "config.json").write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        run = stack.enter_context(_Run(config, key, engine, source, journal, on_progress or (lambda progress: None)))
        asyncio.run(run.run())
    return run.report


def _key(config: SynthesizeConfig) -> str:
    """The key, "" where none is needed."""
    name = config.key_variable
    key = os.environ.get(name, "")
    if key or (config.base_url is not None and name == KEY_VARIABLE):
        return key
    shown = name if name.isupper() else "that key_variable names"  # it may be the key itself, given by mistake
    raise InputError(
        f"no key in the environment variable {shown}; set it, or name a server that needs none with --base-url"
    )


def _source(config: SynthesizeConfig, engine: SearchEngine | None) -> Source:
    folder = None if config.prompts is None else Path(config.prompts)
    mix = load_mix(folder)
    if engine is None:
        return FromNothing(
            mix.only(config.groups, config.languages),
            count=config.count,
            seed=config.seed,
            tries=config.tries,
            examples_per_task=config.examples_per_task,
            folder=folder,
        )
    samples = [] if config.samples is None else _samples(Path(config.samples))
    return Grounded(
        engine,
        dict(mix.names),
        count=config.count,
        seed=config.seed,
        per_passage=config.queries_per_passage,
        kinds=config.kinds,
        instruction=config.instruction,
        samples=samples,
        min_words=config.min_words,
        tries=config.tries,
        folder=folder,
    )


class _Run:
    """One call of `synthesize`."""

    def __init__(
        self,
        config: SynthesizeConfig,
        key: str,
        engine: SearchEngine | None,
        source: Source,
        journal: Journal,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._config, self._key, self._engine, self._source, self._journal = config, key, engine, source, journal
        self._on_progress = on_progress
        self._began, self._told = time.monotonic(), 0.0
        self._budget = Budget(config.max_tokens, config.max_cost, config.price_in, config.price_out)
        self._stage, self._before = "tasks", 0
        self._languages = Languages() if config.check_language else None
        self._seen, self._judging = Seen(config.likeness), Seen(config.likeness)
        for query in _evaluation_queries(config.evaluation):
            self._judging.add(query)
        self._judge = None
        if config.judge and engine is not None:
            folder = None if config.prompts is None else Path(config.prompts)
            self._judge = Judge(engine, depth=config.judged, folder=folder)
        self._unjudged: list[Candidate] = []
        self._files = ExitStack()
        self.trouble = ""
        self.report = SynthesisReport(wanted=config.count, model=config.model, seed=config.seed)

    def __enter__(self) -> _Run:
        self._out = self._files.enter_context(_replacing(Path(self._config.out)))
        self._rejects = self._files.enter_context(_replacing(self._config.beside(".rejects.jsonl"), always=True))
        return self

    def __exit__(self, *error: Any) -> None:
        self._seen.close()
        self._judging.close()
        self._files.__exit__(*error)

    async def run(self) -> None:
        """Ask and sift, round by round."""
        config = self._config
        endpoint = Endpoint(
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
        there = self._journal.answers
        async with Client(endpoint, self._key or "none", self._journal, self._budget, self._tell) as client:
            self._client, self._endpoint = client, endpoint
            await self._source.prepare(self)
            for requests in self._source.rounds():
                self._before = self.report.examples - client.examples
                self._enter("asking")
                await self._ask_all(requests())
                self._enter("sifting")
                self._sift(requests())
                if self._judge is not None:
                    self._enter("judging")
                    await self._look_again(self._judge)
                # After a stop the rounds go on with the answers that are there: those of earlier runs count too.
            self._enter(self._stage)
            self._finish(client.stopped, self._journal.answers - there)

    async def _ask_all(self, requests: Iterable[Request]) -> None:
        if self._config.batch:
            await ask_in_batches(self._client, requests, poll=self._config.poll)
        else:
            await self._client.ask_all(requests)

    async def _look_again(self, judge: Judge) -> None:
        """Have the model grade what the index finds for the examples of a round, and take those that stand."""
        waiting, self._unjudged = self._unjudged, []
        for start in range(0, len(waiting), _JUDGED):
            requests = list(judge.requests(waiting[start : start + _JUDGED]))
            await self._ask_all(requests)
            for request in requests:
                one = request.about[0]
                answer = self._answer(request, one.row(self._config.model))
                if answer is None:
                    continue
                try:
                    self._accept(judge.judged(request, answer))
                except AnswerError as error:
                    self._refuse(error.reason, str(error), one.row(self._config.model))
            self._tell()

    @property
    def stopped(self) -> str:
        return self._client.stopped

    async def ask(self, requests: Sequence[Request]) -> list[Answer | None]:
        await self._ask_all(requests)
        return [self._answer(request) for request in requests]

    def settled(self, name: str) -> Any:
        return self._journal.settled(self._scoped(name))

    def settle(self, name: str, value: Any) -> None:
        if not self.stopped:  # with more answers it would come out otherwise
            self._journal.settle(self._scoped(name), value)

    def _scoped(self, name: str) -> str:
        """A name for what one model says when it is sampled in one way."""
        one = self._endpoint
        return f"{name}: {one.model}, {one.temperature}, {one.top_p}, {one.max_output_tokens}"

    def _answer(self, request: Request, row: dict[str, Any] | None = None) -> Answer | None:
        """What the journal holds for a question; None, and a line among the refused, when it is of no use."""
        key = request.key(self._endpoint)
        reply = self._journal.get(key)
        described = (self._source.described(request) if row is None else row) | {"prompt": request.prompt}
        if reply is None:
            if why := self._client.failed.get(key):
                self._refuse("no answer", why, described)
            return None
        try:
            return answer_of(request, reply)
        except AnswerError as error:
            self._refuse(error.reason, str(error), described)
            return None

    def _sift(self, requests: Iterable[Request]) -> None:
        """Write the examples that pass every check."""
        waiting: list[Candidate] = []
        for request in requests:
            answer = self._answer(request)
            if answer is None:
                continue
            candidates = self._source.candidates(request, answer)
            if not candidates:
                self._refuse("nothing to ask", "no query of a kind that was asked for", self._source.described(request))
            for one in candidates:
                if fault := self._fault(one):
                    self._refuse(*fault, one.row(self._config.model))
                else:
                    waiting.append(one)
            if len(waiting) >= _BATCH:
                self._take(waiting)
                waiting = []
        self._take(waiting)

    def _fault(self, one: Candidate) -> tuple[str, str] | None:
        """(reason, detail) why an example is left out; one that is not is remembered, to know its copies."""
        if reason := malformed(one):
            return reason, ""
        if one.group not in ("long-short", "bitext") and (run := copied(one.query, one.positive)):
            return "copied from the passage", run
        if self._languages is not None:
            sides = [(one.query, one.language)]
            if one.group != "grounded":  # there the positive is the user's own
                sides.append((one.positive, one.target_language or one.language))
            for text, expected in sides:
                if other := self._languages.wrong(text, expected):
                    return "wrong language", f"{other} instead of {expected}"
        if self._judging.match(one.query):
            return "an evaluation query", ""
        if reason := self._seen.match(one.query):
            return reason, ""
        self._seen.add(one.query)
        return None

    def _take(self, candidates: Sequence[Candidate]) -> None:
        """Write those whose positive the index finds."""
        k = self._config.round_trip
        found = (
            found_again(self._engine, candidates, k) if self._engine and k and candidates else [True] * len(candidates)
        )
        for one, there in zip(candidates, found, strict=True):
            if not there:
                self._refuse("not found again", f"not among the first {k} of the index", one.row(self._config.model))
            elif self._judge is not None:
                self._unjudged.append(one)
            else:
                self._accept(one)
        self._tell()

    def _accept(self, one: Candidate) -> None:
        """Write an example, if its source has a place for it."""
        if self._source.accept(one):
            self._out.write(json.dumps(one.row(self._config.model), ensure_ascii=False) + "\n")
            self.report.add(one)

    def _refuse(self, reason: str, detail: str, row: dict[str, Any]) -> None:
        self.report.refused[reason] = self.report.refused.get(reason, 0) + 1
        self.trouble = f"{reason}: {detail}" if detail else reason
        values = {"reason": reason, "detail": detail, **row}
        self._rejects.write(json.dumps(values, ensure_ascii=False) + "\n")

    def _enter(self, stage: str) -> None:
        """Begin a stage, and report it at once."""
        self._stage, self._told = stage, 0.0
        self._tell()

    def _tell(self) -> None:
        """Report the progress, but not too often."""
        now = time.monotonic()
        if now - self._told < _OFTEN:
            return
        self._told = now
        sifting = self._stage in ("sifting", "judging")
        self._on_progress(
            Progress(
                self._stage,
                self.report.examples if sifting else self._before + self._client.examples,
                self._config.count,
                self._journal.tokens_in + self._journal.tokens_out,
                self._budget.cost(self._journal.tokens_in, self._journal.tokens_out),
                now - self._began,
                sum(self.report.refused.values()) if sifting else self._client.refused,
            )
        )

    def _finish(self, stopped: str, asked: int) -> None:
        report, journal = self.report, self._journal
        report.stopped, report.asked, report.answers = stopped, asked, journal.answers
        report.tokens_in, report.tokens_out, report.estimated = journal.tokens_in, journal.tokens_out, journal.estimated
        report.cost = self._budget.cost(journal.tokens_in, journal.tokens_out)
        report.troubles = journal.totals()
        report.seconds = time.monotonic() - self._began
        if not report.examples:
            refused = ", ".join(f"{reason} ({count})" for reason, count in report.refused.items())
            refused = refused and f"{refused}; the last: {self.trouble}"
            raise InputError(f"nothing was written: {stopped or refused or 'the model gave no answer'}")
        report.save(self._config.beside(".report.json"))


def _samples(file: Path) -> list[str]:
    """The first queries of a file: pairs, or queries as BEIR has them."""
    found = []
    for place, values in json_lines(existing(file)):
        text = values.get("query") or values.get("text")
        if not isinstance(text, str) or not text.strip():
            raise CorpusError(f'{place}: expected a query as "query" or "text"; the keys are {quoted(values)}')
        found.append(text)
        if len(found) == _SAMPLES:
            break
    if not found:
        raise CorpusError(f"{file}: no queries in it")
    return found


def _evaluation_queries(sources: Sequence[str]) -> Iterator[str]:
    """The queries of BEIR folders, as FOLDER or FOLDER:SPLIT, and of files."""
    for source in sources:
        folder, _, split = source.rpartition(":")
        if Path(source).is_file():
            found = read_queries(source)
        elif Path(source).is_dir():
            task = find_task(Path(source).name)
            found = read_beir_split(source, task.split if task else "test")[0]
        else:
            found = read_beir_split(folder or source, split or "test")[0]
        yield from (query.text for query in found)


class _replacing:
    """A text file that takes its name when it is complete; after an error, unless `always`, the older one stays."""

    def __init__(self, file: Path, *, always: bool = False) -> None:
        self._file, self._always = file, always
        self._part = file.with_name(file.name + ".part")

    def __enter__(self) -> TextIO:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._part.open("w", encoding="utf-8")
        return self._stream

    def __exit__(self, kind: object, *_: object) -> None:
        self._stream.close()
        if kind is None or self._always:
            self._part.replace(self._file)
        else:
            self._part.unlink(missing_ok=True)
