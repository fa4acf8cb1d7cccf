"""What an index costs its users: latency, memory, indexing time, disk space."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np

from searchkit.compression.sample import phrases
from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.indexer.vectors import segments
from searchkit.ranking import SearchOptions
from searchkit.records import Document, Query

WARM_UP = 20
"""Searches of every thread that are not counted: the first ones read files and fill caches."""

_FEWEST, _MOST = 30, 20_000  # searches timed, however long they take
_STARTS = (3, 10)  # fewest and most new processes
_ROUNDS = 3  # of indexing
_ROUND = (16, 2048)  # fewest and most documents of a round
_PHRASES = 300  # queries made of documents, if none are given

# A small process between: the peak memory of a child is at least that of its parent when it was started.
_LAUNCHER = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"seconds": seconds, "peak": peak, "code": done.returncode, "error": done.stderr[-2000:]}))
"""


@dataclass(frozen=True, slots=True)
class Times:
    """Durations of repeated runs of the same thing.

    Args:
        seconds: The durations, in the order of the runs.
    """

    seconds: tuple[float, ...]

    def percentile(self, share: float) -> float | None:
        """The shortest duration that this share of the runs does not exceed; None if there are too few runs.

        The 99th percentile of fewer than 100 runs would be their maximum.
        """
        if len(self.seconds) * (1 - share) < 1 - 1e-9:
            return None
        return float(np.quantile(self.seconds, share, method="inverted_cdf"))

    def summary(self) -> dict[str, float | int | None]:
        """Number of runs; percentiles, mean, minimum and maximum in seconds."""
        values = {"mean": float(np.mean(self.seconds)), "least": min(self.seconds), "most": max(self.seconds)}
        shares = {f"p{round(100 * share)}": self.percentile(share) for share in (0.5, 0.95, 0.99)}
        return {"n": len(self.seconds), **shares, **values}


@dataclass(frozen=True, slots=True)
class Searches:
    """Searches one after another, each timed as a whole and in its two parts.

    Args:
        whole: From the text of a query to its hits with their texts.
        embedding: The part that embeds the query; None for lexical search.
        rest: The search without the embedding.
    """

    whole: Times
    embedding: Times | None
    rest: Times


@dataclass(frozen=True, slots=True)
class Load:
    """Searches by several threads of one process, each starting its next search as soon as the last is done.

    Args:
        threads: Number of threads.
        times: Durations of all searches.
        per_second: Searches finished per second.
    """

    threads: int
    times: Times
    per_second: float


@dataclass(frozen=True, slots=True)
class Starts:
    """The search command in new processes, from start to exit.

    Args:
        times: Duration of each process.
        peak_bytes: Largest resident memory of any of them.
    """

    times: Times
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Indexing:
    """Documents added to a new index, repeatedly.

    Args:
        documents: Documents in each round.
        per_second: Documents per second in each round.
    """

    documents: int
    per_second: tuple[float, ...]


def time_searches(
    engine: SearchEngine,
    queries: Sequence[Query],
    *,
    seconds: float,
    k: int = 10,
    instruction: str | None = None,
    options: SearchOptions | None = None,
) -> Searches:
    """Search for one query after another, for about `seconds`, and at least 30 times."""
    chosen = options or SearchOptions()
    lexical = chosen.mode == "lexical"
    runs: list[tuple[float, float]] = []  # seconds of embedding and of the rest
    until = 0.0
    for n, query in enumerate(cycle(queries), -WARM_UP):
        if n == 0:
            runs.clear()
            until = time.perf_counter() + seconds
        elif n >= _MOST or (n >= _FEWEST and time.perf_counter() >= until):
            break
        began = time.perf_counter()
        vectors = None if lexical else engine.embed([query], instruction)
        embedded = time.perf_counter()
        engine.search_many([query], instruction=instruction, k=k, options=chosen, vectors=vectors)
        runs.append((embedded - began, time.perf_counter() - embedded))
    embedding, rest = zip(*runs, strict=True)
    return Searches(Times(tuple(map(sum, runs))), None if lexical else Times(embedding), Times(rest))


def time_load(
    engine: SearchEngine,
    queries: Sequence[Query],
    threads: int,
    *,
    seconds: float,
    k: int = 10,
    instruction: str | None = None,
    options: SearchOptions | None = None,
) -> Load:
    """Search with several threads at once, for about `seconds`, and at least 30 times."""
    search = partial(_timed_search, engine, k=k, instruction=instruction, options=options)
    start = Barrier(threads)
    orders = (islice(cycle(queries), n * len(queries) // threads, None) for n in range(threads))
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(_client, search, order, start, seconds) for order in orders]
        clients = [future.result() for future in futures]
    times = tuple(duration for durations, _, _ in clients for duration in durations)
    span = max(ended for _, _, ended in clients) - min(began for _, began, _ in clients)
    return Load(threads, Times(times), len(times) / span)


def _timed_search(
    engine: SearchEngine, query: Query, *, k: int, instruction: str | None, options: SearchOptions | None
) -> float:
    began = time.perf_counter()
    engine.search_many([query], instruction=instruction, k=k, options=options)
    return time.perf_counter() - began


def _client(
    search: Callable[[Query], float], queries: Iterator[Query], start: Barrier, seconds: float
) -> tuple[list[float], float, float]:
    """The searches of one thread: durations, when the first began and when the last ended."""
    fewest, most = -(-_FEWEST // start.parties), _MOST // start.parties
    try:
        for query in islice(queries, WARM_UP):
            search(query)
    except BaseException:
        start.abort()  # or the other threads would wait forever
        raise
    start.wait()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < most and (len(times) < fewest or time.perf_counter() < began + seconds):
        times.append(search(next(queries)))
    return times, began, time.perf_counter()


def time_starts(index: Path, query: str, arguments: Sequence[str] = (), *, seconds: float) -> Starts:
    """Run `searchkit search INDEX QUERY` in new processes, for about `seconds`, 3 to 10 times.

    Files are in the system's cache: a first process, which is not counted, reads them.

    Args:
        index: The index folder.
        query: The query.
        arguments: Options of the command.
        seconds: Approximate duration.

    Raises:
        InputError: The command failed.
    """
    command = [sys.executable, "-m", "searchkit.cli.main", "search", str(index), "--format", "json", *arguments]
    command += ["--", query]
    runs: list[dict[str, Any]] = []
    fewest, most = _STARTS
    until = time.perf_counter() + seconds
    while len(runs) <= fewest or (len(runs) <= most and time.perf_counter() < until):
        done = subprocess.run([sys.executable, "-c", _LAUNCHER, *command], capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout))
        if runs[-1]["code"]:
            raise InputError(f"a search in a new process failed: {runs[-1]['error'].strip()}")
    return Starts(Times(tuple(run["seconds"] for run in runs[1:])), max(run["peak"] for run in runs[1:]))


def time_indexing(engine: SearchEngine, *, seconds: float, seed: int = 0) -> Indexing | None:
    """Index a sample of the documents again, in three rounds of about `seconds` together; None for an empty index.

    Each round adds other documents, as far as there are enough, to a new index beside this one. They are split,
    embedded, committed and indexed lexically, as `searchkit index` does.
    """
    docs = _documents_of(engine)
    if not len(docs):
        return None
    order = np.random.default_rng(seed).permutation(docs)
    fewest, most = _ROUND
    trial = _index(engine, _documents(engine, order[:fewest]))
    count = min(max(fewest, int(trial * seconds / _ROUNDS)), most, len(order))
    rates = []
    for number in range(_ROUNDS):
        drawn = np.take(order, range(number * count, (number + 1) * count), mode="wrap")
        rates.append(_index(engine, _documents(engine, drawn)))
    return Indexing(count, tuple(rates))


def _index(engine: SearchEngine, documents: Sequence[Document]) -> float:
    """Documents per second."""
    settings = {name: engine.settings[name] for name in ("chunk_tokens", "overlap", "language")}
    with tempfile.TemporaryDirectory(
        dir=_writable(engine.store.folder.resolve().parent), prefix=".searchkit-"
    ) as folder:
        began = time.perf_counter()
        with SearchEngine.create(Path(folder) / "index", model=engine.embedder, **settings) as new:
            new.add(documents)
        return len(documents) / (time.perf_counter() - began)


def _writable(folder: Path) -> Path | None:
    """The folder if it is writable, since disks differ in speed; else None, the system's temporary folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


def _documents_of(engine: SearchEngine) -> np.ndarray:
    """Positions of all living documents, (n,) int64."""
    snapshot = engine.store.snapshot()
    parts = snapshot.segments
    if not parts:
        return np.empty(0, dtype=np.int64)
    living = ~np.isin(segments.all_rows(parts), snapshot.dead)
    return np.asarray(np.unique(np.concatenate([part.docs for part in parts])[living]))


def _documents(engine: SearchEngine, docs: np.ndarray) -> list[Document]:
    stored = (engine.store.documents.document(int(doc))[1] for doc in docs)
    return [Document(one.id, one.text, title=one.title, metadata=json.loads(one.metadata)) for one in stored]


def made_queries(engine: SearchEngine, *, count: int = _PHRASES, seed: int = 0) -> list[Query]:
    """Phrases of 1 to 12 words from random documents, in place of real queries; empty for an empty index."""
    docs = _documents_of(engine)
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(docs)[:count]
    texts = [document.text if document.text.strip() else document.title for document in _documents(engine, drawn)]
    return phrases(texts, rng)


def bytes_per_document(engine: SearchEngine) -> dict[str, float]:
    """Bytes per document on disk: "documents" (texts, metadata), "vectors", "words" (lexical index) and "all"."""
    sizes = engine.store.sizes()
    count = max(1, len(engine))
    parts = {"documents": sizes["index.db"], "vectors": sizes["segments"], "words": sizes["lexical"]}
    return {"all": sum(parts.values()) / count, **{name: size / count for name, size in parts.items()}}
