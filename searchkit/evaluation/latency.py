"""What an index costs its users: waiting, memory, time to index, bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
"""Searches that are not counted, of every thread: the first ones read files and fill caches."""

_FEWEST, _MOST = 30, 20_000  # searches that are timed, however long or short they are
_STARTS = (3, 10)  # new processes, at least and at most
_ROUNDS = 3  # of indexing
_ROUND = (16, 2048)  # documents of one, at least and at most
_PHRASES = 300  # queries made of passages, where none are given

# A process of its own, small: what a child's peak is said to be is never less than its parent had when it started it.
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
    """How long something took, every time it was done.

    Args:
        seconds: In the order they were taken.
    """

    seconds: tuple[float, ...]

    def percentile(self, share: float) -> float | None:
        """The least time that so large a share does not exceed; None where too few were taken to tell it from the rest.

        A 99th percentile of fewer than 100 times would be their maximum.
        """
        if len(self.seconds) * (1 - share) < 1 - 1e-9:
            return None
        return float(np.quantile(self.seconds, share, method="inverted_cdf"))

    def summary(self) -> dict[str, float | int | None]:
        """The number of times, percentiles, mean, least and most, in seconds."""
        values = {"mean": float(np.mean(self.seconds)), "least": min(self.seconds), "most": max(self.seconds)}
        shares = {f"p{round(100 * share)}": self.percentile(share) for share in (0.5, 0.95, 0.99)}
        return {"n": len(self.seconds), **shares, **values}


@dataclass(frozen=True, slots=True)
class Searches:
    """Searches one after another, each timed whole and in its two parts.

    Args:
        whole: From the text of a query to its hits with their texts.
        embedding: Of it, making the query's vector; None where words alone are searched.
        rest: The search without the embedding.
    """

    whole: Times
    embedding: Times | None
    rest: Times


@dataclass(frozen=True, slots=True)
class Load:
    """Searches by several threads of one process, each beginning its next search as soon as the last is done.

    Args:
        threads: How many.
        times: Of the searches of all.
        per_second: Searches done in a second.
    """

    threads: int
    times: Times
    per_second: float


@dataclass(frozen=True, slots=True)
class Starts:
    """The command in a process of its own, from its start to its end.

    Args:
        times: A process each.
        peak_bytes: The most memory that one had, resident.
    """

    times: Times
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Indexing:
    """Documents added to a new index, some times over.

    Args:
        documents: Of every round.
        per_second: Documents a second, a round each.
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
    """Search for one query after another, for about so many seconds, and 30 times at least."""
    chosen = options or SearchOptions()
    whole, embedding, rest = [], [], []

    def search(query: Query) -> None:
        began = time.perf_counter()
        vectors = None if chosen.mode == "lexical" else engine.embed([query], instruction)
        embedded = time.perf_counter()
        engine.search_many([query], instruction=instruction, k=k, options=chosen, vectors=vectors)
        done = time.perf_counter()
        whole.append(done - began)
        embedding.append(embedded - began)
        rest.append(done - embedded)

    asked = cycle(queries)
    for query in islice(asked, WARM_UP):
        search(query)
    for times in (whole, embedding, rest):
        times.clear()
    until = time.perf_counter() + seconds
    while len(whole) < _MOST and (len(whole) < _FEWEST or time.perf_counter() < until):
        search(next(asked))
    parts = None if chosen.mode == "lexical" else Times(tuple(embedding))
    return Searches(Times(tuple(whole)), parts, Times(tuple(rest)))


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
    """Search by several threads at once, for about so many seconds, and 30 times at least."""
    barrier = Barrier(threads)
    least, most = -(-_FEWEST // threads), _MOST // threads

    def search(query: Query) -> float:
        began = time.perf_counter()
        engine.search_many([query], instruction=instruction, k=k, options=options)
        return time.perf_counter() - began

    def work(number: int) -> tuple[list[float], float, float]:
        asked = islice(cycle(queries), number * len(queries) // threads, None)
        try:
            for query in islice(asked, WARM_UP):
                search(query)
        except BaseException:
            barrier.abort()  # or the others would wait for ever
            raise
        barrier.wait()
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < most and (len(times) < least or time.perf_counter() < began + seconds):
            times.append(search(next(asked)))
        return times, began, time.perf_counter()

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(work, range(threads)))
    times = tuple(one for mine, _, _ in found for one in mine)
    span = max(ended for _, _, ended in found) - min(began for _, began, _ in found)
    return Load(threads, Times(times), len(times) / span)


def time_starts(index: Path, query: str, arguments: Sequence[str] = (), *, seconds: float) -> Starts:
    """Run `searchkit search INDEX QUERY` in new processes, for about so many seconds, 3 to 10 times.

    Files are in the system's cache: a first process, which is not counted, reads them.

    Args:
        index: The folder.
        query: What to search for.
        arguments: Options of the command.
        seconds: About how long.

    Raises:
        ValueError: The command failed.
    """
    command = [sys.executable, "-m", "searchkit.cli.main", "search", str(index), "--format", "json", *arguments]
    command += ["--", query]
    found: list[dict[str, Any]] = []
    least, most = _STARTS
    until = time.perf_counter() + seconds
    while len(found) <= least or (len(found) <= most and time.perf_counter() < until):
        done = subprocess.run([sys.executable, "-c", _LAUNCHER, *command], capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
        if found[-1]["code"]:
            raise InputError(f"a search in a process of its own failed: {found[-1]['error'].strip()}")
    counted = found[1:]
    return Starts(Times(tuple(one["seconds"] for one in counted)), max(one["peak"] for one in counted))


def time_indexing(engine: SearchEngine, *, seconds: float, seed: int = 0) -> Indexing | None:
    """Index documents of the index anew, in three rounds of about so many seconds together; None of an empty index.

    Each round takes documents of its own, as far as there are enough, into a new index beside this one: cut, embedded,
    committed to the disk and indexed by their words, as `searchkit index` does.
    """
    docs = _documents_of(engine)
    if not len(docs):
        return None
    order = np.random.default_rng(seed).permutation(docs)
    least, most = _ROUND
    trial = _index(engine, _documents(engine, order[:least]))
    count = min(max(least, int(trial * seconds / _ROUNDS)), most, len(order))
    rates = []
    for number in range(_ROUNDS):
        mine = np.take(order, range(number * count, (number + 1) * count), mode="wrap")
        rates.append(_index(engine, _documents(engine, mine)))
    return Indexing(count, tuple(rates))


def _index(engine: SearchEngine, documents: Sequence[Document]) -> float:
    """Documents a second."""
    settings = {name: engine.settings[name] for name in ("chunk_tokens", "overlap", "language")}
    with tempfile.TemporaryDirectory(dir=_place(engine.store.folder.resolve().parent), prefix=".searchkit-") as place:
        began = time.perf_counter()
        with SearchEngine.create(Path(place) / "index", model=engine.embedder, **settings) as made:
            made.add(documents)
        return len(documents) / (time.perf_counter() - began)


def _place(folder: Path) -> Path | None:
    """The folder if it can be written to, since disks differ; else the system's own for temporary files."""
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
    """Phrases of 1 to 12 words out of documents drawn at random, for want of real queries; none of an empty index."""
    docs = _documents_of(engine)
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(docs)[:count]
    return phrases([one.text if one.text.strip() else one.title for one in _documents(engine, drawn)], rng)


def bytes_per_document(engine: SearchEngine) -> dict[str, float]:
    """Bytes on disk, a document: "documents" (texts, metadata), "vectors", "words" and "all"."""
    sizes = engine.store.sizes()
    count = max(1, len(engine))
    parts = {"documents": sizes["index.db"], "vectors": sizes["segments"], "words": sizes["lexical"]}
    return {"all": sum(parts.values()) / count, **{name: size / count for name, size in parts.items()}}
