"""The queue before a model: texts of all requests, embedded together where they fit in one batch."""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from functools import lru_cache
from itertools import count
from threading import Condition, Lock, Thread
from typing import NamedTuple

import numpy as np

from searchkit.errors import InputError, RemoteError
from searchkit.models.embedder import Embedder
from searchkit.server.admission import Admission
from searchkit.server.metrics import Metrics

_LONGEST_CACHED = 2_000
"""Characters of the longest query whose vector is kept, so that the cache has a bound in bytes."""


class Text(NamedTuple):
    """A text to embed: a passage if its instruction is None, else a query; "" is a query without an instruction.

    A raw passage does not get the prefix of passages.
    """

    text: str
    instruction: str | None = None
    raw: bool = False


class Embedded(NamedTuple):
    """What became of some texts: (n, dim) float32 unit rows, the tokens of each, and the numbers of truncated ones."""

    rows: np.ndarray
    tokens: list[int]
    truncated: list[int]


class _Job(NamedTuple):
    """Texts that are embedded in one batch, perhaps with other jobs'. Ordered by `tag`, then `number`."""

    tag: float
    number: int
    texts: list[Text]
    tokens: int
    future: Future[list[_Row]]


class _Row(NamedTuple):
    vector: np.ndarray
    tokens: int
    truncated: bool


class EmbeddingQueue:
    """One model behind a queue, called from a few threads.

    Requests take turns: each gets one batch before any gets its next, so that a single query does not wait for all of
    a large request. Jobs that wait at the same time share a batch as far as the model's token budget goes.

    Args:
        name: The model's name in the service.
        embedder: The model.
        threads: Forward passes at the same time; None for what its runtime suggests.
        admission: Counts the tokens that wait.
        metrics: Where batches, tokens and cache look-ups are counted.
        cache: Query vectors kept.
    """

    def __init__(
        self, name: str, embedder: Embedder, threads: int | None, admission: Admission, metrics: Metrics, cache: int
    ) -> None:
        self.name, self.embedder, self.admission = name, embedder, admission
        self._metrics, self._cache = metrics, _Cache(cache)
        self._resolved = lru_cache(1024)(embedder.resolved_instruction)
        self._jobs: list[_Job] = []
        self._numbers = count()
        self._turn = 0.0
        self._changed, self._closed = Condition(), False
        self._workers = threads or embedder.runtime.workers
        self._threads = [
            Thread(target=self._work, name=f"embed-{number}", daemon=True) for number in range(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop the threads; jobs that wait are cancelled."""
        with self._changed:
            self._closed = True
            for job in self._jobs:
                job.future.cancel()
            self._jobs.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def resolved(self, instruction: str | None) -> str:
        """The instruction, or the model's default for None; "" is none.

        Raises:
            InputError: It leaves no room for a query.
        """
        return self._resolved(instruction)

    def estimate(self, texts: Sequence[Text]) -> int:
        """About how many tokens some texts have, without tokenizing them."""
        longest, repeats = self.embedder.max_length, self.embedder.conventions.query_repeats
        total = 0
        for text, instruction, _ in texts:
            length = len(text) if instruction is None else repeats * len(text)
            if instruction and not self.embedder.shifts_queries:
                length += len(instruction)
            total += min(longest, 8 + length // 4) + length // 256  # all of a long text is tokenized
        return total

    async def embed(self, texts: Sequence[Text]) -> Embedded:
        """Embed texts, in as many batches as they need.

        Raises:
            ServerError: Too much waits already (429).
            InputError: The model cannot embed one of them; the message says which.
        """
        rows: list[_Row | None] = [self._cache.get(text) for text in texts]
        queries = sum(text.instruction is not None for text in texts)
        hits = sum(row is not None for row in rows)
        self._metrics.cache.labels("hit").inc(hits)
        self._metrics.cache.labels("miss").inc(queries - hits)
        missing = [number for number, row in enumerate(rows) if row is None]
        if missing:
            with self.admission.admitted(self.estimate([texts[number] for number in missing])):
                batches = self._batches(texts, missing)
                futures = self._submit([[texts[number] for number in batch] for batch in batches])
                try:
                    for batch, future in zip(batches, futures, strict=True):
                        done = await asyncio.wrap_future(future)
                        for number, row in zip(batch, done, strict=True):
                            rows[number] = row
                            self._cache.put(texts[number], row)
                except _TextError as error:
                    where = f"text {batch[error.position] + 1} of {len(texts)}: " if len(texts) > 1 else ""
                    raise InputError(f"{where}{error}") from error
                finally:
                    for future in futures:
                        future.cancel()
        complete = [row for row in rows if row is not None]
        vectors = np.stack([row.vector for row in complete]) if complete else np.empty((0, self.embedder.dim), "f4")
        truncated = [number for number, row in enumerate(complete) if row.truncated]
        return Embedded(vectors, [row.tokens for row in complete], truncated)

    def _batches(self, texts: Sequence[Text], numbers: list[int]) -> list[list[int]]:
        """Numbers of texts in batches of similar length that fit the model's token budget."""
        lengths = {number: self.estimate([texts[number]]) for number in numbers}
        batches: list[list[int]] = []
        for number in sorted(numbers, key=lengths.__getitem__, reverse=True):
            if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= self.embedder.token_budget:
                batches[-1].append(number)
            else:
                batches.append([number])
        return batches

    def _submit(self, batches: list[list[Text]]) -> list[Future[list[_Row]]]:
        futures: list[Future[list[_Row]]] = [Future() for _ in batches]
        with self._changed:
            if self._closed:
                raise RuntimeError("the embedding queue is closed")
            for turn, (batch, future) in enumerate(zip(batches, futures, strict=True), start=1):
                job = _Job(self._turn + turn, next(self._numbers), batch, self.estimate(batch), future)
                heapq.heappush(self._jobs, job)
            self._changed.notify(len(batches))
        return futures

    # In the threads

    def _work(self) -> None:
        while jobs := self._next_jobs():
            texts = [text for job in jobs for text in job.texts]
            results = self._results(texts)
            for job in jobs:
                mine, results = results[: len(job.texts)], results[len(job.texts) :]
                failed = next(((n, one) for n, one in enumerate(mine) if isinstance(one, Exception)), None)
                if failed is None:
                    job.future.set_result([one for one in mine if isinstance(one, _Row)])
                else:
                    number, error = failed
                    job.future.set_exception(_TextError(number, error) if isinstance(error, InputError) else error)

    def _next_jobs(self) -> list[_Job]:
        """The next job, and those after it that fit in the same batch; empty when the queue is closed."""
        with self._changed:
            while True:
                jobs: list[_Job] = []
                longest = texts = 0
                while self._jobs:
                    job = self._jobs[0]
                    wide = max(longest, job.tokens // len(job.texts))
                    if jobs and wide * (texts + len(job.texts)) > self.embedder.token_budget:
                        break
                    heapq.heappop(self._jobs)
                    if job.future.set_running_or_notify_cancel():
                        jobs.append(job)
                        longest, texts = wide, texts + len(job.texts)
                        self._turn = max(self._turn, job.tag)
                if jobs or self._closed:
                    return jobs
                self._changed.wait()

    def _results(self, texts: list[Text]) -> list[_Row | Exception]:
        """A row for each text; if the batch fails, each is tried alone, and only those that fail get an exception."""
        try:
            return list(self._rows(texts))
        except RemoteError as error:  # it was tried often enough
            return [error] * len(texts)
        except Exception as error:
            if len(texts) == 1:
                return [error]
        return [self._results([text])[0] for text in texts]

    def _rows(self, texts: list[Text]) -> list[_Row]:
        embedder = self.embedder
        self._metrics.batch_texts.labels(self.name).observe(len(texts))
        tokens: list[list[int]] = [[] for _ in texts]
        queries = [number for number, text in enumerate(texts) if text.instruction is not None]
        passages = [number for number, text in enumerate(texts) if text.instruction is None]
        prefix = embedder.conventions.document_prefix
        written = [texts[n].text if texts[n].raw else prefix + texts[n].text for n in passages]
        for number, ids in zip(passages, embedder.tokenize(written), strict=True):
            tokens[number] = ids
        prompts = [texts[number].text for number in queries]
        instructions = [texts[number].instruction or "" for number in queries]
        for number, ids in zip(queries, embedder.tokenize_queries(prompts, instructions), strict=True):
            tokens[number] = ids
        vectors = embedder.encode_tokens(tokens, [text.instruction or "" for text in texts])
        self._metrics.tokens.labels(self.name).inc(sum(map(len, tokens)))
        full = embedder.max_length
        return [_Row(row, len(ids), len(ids) >= full) for row, ids in zip(vectors, tokens, strict=True)]


class _TextError(InputError):
    """The model cannot embed one text of a batch, by its position there."""

    def __init__(self, position: int, error: Exception) -> None:
        super().__init__(str(error))
        self.position = position


class _Cache:
    """Vectors of the queries that came last, by the whole text and instruction, so that none can stand for another."""

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, Lock()
        self._rows: OrderedDict[Text, _Row] = OrderedDict()

    def get(self, text: Text) -> _Row | None:
        if text.instruction is None:
            return None
        with self._lock:
            row = self._rows.get(text)
            if row is not None:
                self._rows.move_to_end(text)
            return row

    def put(self, text: Text, row: _Row) -> None:
        if text.instruction is None or len(text.text) + len(text.instruction) > _LONGEST_CACHED or not self._size:
            return
        with self._lock:
            self._rows[text] = row
            self._rows.move_to_end(text)
            while len(self._rows) > self._size:
                self._rows.popitem(last=False)
