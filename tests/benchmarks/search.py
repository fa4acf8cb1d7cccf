"""What an index costs on top of bare FAISS: searching, building, memory, opening, and hybrid search.

    python tests/benchmarks/search.py [--vectors 20000] [--dim 384] [--recipes flat int8 ivf-pq hnsw] [--rounds 5]

Vectors are drawn around centres and texts from a Zipf vocabulary, so nothing is embedded; `Store.commit` writes them in
batches of 1,024. Every part runs in its own process. Both sides of a search take turns in one process with the same
index and queries; times are medians and ratios are medians over pairs, so that a busy machine slows both equally. On a
very busy one, `--threads 1 --cpu-time` measures CPU time, which other processes hardly affect.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from searchkit.engine import COMMIT_EVERY, SearchEngine
from searchkit.folder_ranker import FolderRanker
from searchkit.indexer.documents import NewDocument
from searchkit.indexer.lexical import LexicalIndex
from searchkit.indexer.store import Store
from searchkit.indexer.vectors import faiss_index
from searchkit.indexer.vectors.faiss_library import faiss_module
from searchkit.indexer.vectors.recipes import RECIPES, Tuning, plan
from searchkit.indexer.vectors.search import search as search_segments
from searchkit.lexical_sync import LexicalSync
from searchkit.ranking import SearchOptions, SearchRequest

WORDS = 50_000
STOPPED = 100
"""Words in the vocabulary, and the number of more frequent ones left out, as stop words are."""

LENGTHS = (20, 60)
"""Words of a passage; the words of a query are drawn from the same distribution."""


def batches(count: int, dim: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, (at most COMMIT_EVERY, dim) float32 unit rows around centres), the same in every call."""
    centres = np.random.default_rng(0).standard_normal((max(16, count // 500), dim), dtype=np.float32)
    for start in range(0, count, COMMIT_EVERY):
        rng = np.random.default_rng(1 + start)
        size = min(COMMIT_EVERY, count - start)
        rows = centres[rng.integers(len(centres), size=size)]
        rows += 0.7 * rng.standard_normal((size, dim), dtype=np.float32)
        yield start, rows / np.linalg.norm(rows, axis=1, keepdims=True)


def queries(count: int, dim: int, number: int) -> np.ndarray:
    """(number, dim) float32 unit rows, each near a vector of the index."""
    _, rows = next(batches(count, dim))
    near = rows[:number] + 0.3 / dim**0.5 * np.random.default_rng(7).standard_normal((number, dim), dtype=np.float32)
    return np.asarray(near / np.linalg.norm(near, axis=1, keepdims=True), dtype=np.float32)


def texts(number: int, lengths: tuple[int, int], seed: int) -> list[str]:
    """Texts of so many words, drawn by Zipf's law."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(STOPPED + 1, STOPPED + WORDS + 1)
    drawn = rng.choice(WORDS, p=shares / shares.sum(), size=(number, lengths[1])).tolist()
    ends = rng.integers(lengths[0], lengths[1], size=number, endpoint=True).tolist()
    return [" ".join(f"w{word}" for word in words[:end]) for words, end in zip(drawn, ends, strict=True)]


clock: Callable[[], float] = time.perf_counter


def timed(work: Callable[[], Any]) -> float:
    """Seconds of some work, by the clock chosen for this process."""
    began = clock()
    work()
    return clock() - began


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))


def resident_mib() -> float:
    """Current resident memory of this process; NaN where the system does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * resource.getpagesize() / 2**20 if status.is_file() else float("nan")


# Parts: each runs in its own process and returns its share of the report.


def grow(folder: Path, count: int, dim: int, words: bool) -> dict[str, Any]:
    """Write the index commit by commit, as `SearchEngine.add` does, without embedding."""
    seconds = 0.0
    settings = {"model": {"model": "none", "adapter": None, "dim": dim}, "language": "none"}
    with Store.create(folder, {**settings, "chunk_tokens": 0, "overlap": 0}, dim=dim) as store:
        lexical = LexicalIndex(store.lexical.folder, "none")
        for start, rows in batches(count, dim):
            passages = texts(len(rows), LENGTHS, start) if words else ["fake"] * len(rows)
            documents = [
                NewDocument(str(row), "", text, json.dumps({"year": 1990 + row % 30}), "0", [(0, len(text))])
                for row, text in enumerate(passages, start)
            ]

            def commit(documents: list[NewDocument] = documents, rows: np.ndarray = rows) -> None:
                store.commit(documents, rows)
                store.merge_small_segments()

            seconds += timed(commit)
            if words:
                lexical.add(enumerate(passages, start))
        store.lexical.commit()
        size = store.sizes()["segments"] / 2**20
    return {"seconds": seconds, "segments_mib": round(size), "peak_mib": round(peak_mib())}


def bare_grow(folder: Path, count: int, dim: int) -> dict[str, Any]:
    """The same vectors added to a flat index in memory, and written once."""
    import faiss

    index = faiss.IndexFlatIP(dim)
    seconds = sum(timed(lambda rows=rows: index.add(rows)) for _, rows in batches(count, dim))
    written = timed(lambda: faiss.write_index(index, str(folder)))
    return {"add_seconds": seconds, "write_seconds": written, "peak_mib": round(peak_mib())}


def store_as(folder: Path, recipe: str) -> dict[str, Any]:
    """Store the index by another recipe: train, encode, write, sync, commit."""
    with SearchEngine.open(folder, writable=True) as engine:
        before = resident_mib()
        seconds = timed(lambda: engine.store_as(recipe))
        return {
            "seconds": seconds,
            "segments_mib": round(engine.store.sizes()["segments"] / 2**20),
            "before_mib": round(before),
            "peak_mib": round(peak_mib()),
        }


def bare_store_as(folder: Path, count: int, dim: int, recipe: str) -> dict[str, Any]:
    """The same vectors in a FAISS index, trained on the same sample."""
    import faiss

    chosen = plan(recipe, dim, count)
    vectors = np.concatenate([rows for _, rows in batches(count, dim)])
    sample = vectors[np.sort(np.random.default_rng(0).permutation(count)[: chosen.wanted])]
    index = faiss.index_factory(dim, chosen.factory, faiss.METRIC_INNER_PRODUCT)
    seconds = timed(lambda: index.train(sample)) if chosen.wanted else 0.0
    seconds += timed(lambda: index.add(vectors))
    written = timed(lambda: faiss.write_index(index, str(folder)))
    peak = round(peak_mib())
    synced = timed(lambda: _sync(folder))
    found = {"train_add_seconds": seconds, "write_seconds": written, "sync_seconds": synced, "peak_mib": peak}
    if not RECIPES[chosen.recipe].faithful:  # ours also keeps half-precision vectors, for re-ranking and later recipes
        halves = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        halved = timed(lambda: halves.add(vectors))
        found["halves_seconds"] = halved + timed(lambda: faiss.write_index(halves, str(folder)))
        found["sync_seconds"] += timed(lambda: _sync(folder))
    return found


def _sync(file: Path) -> None:
    """Force a file to the disk, which FAISS does not."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def open_once(folder: Path) -> dict[str, Any]:
    """Opening alone, then the first search, which reads and checks every file it needs."""
    before = resident_mib()
    found: list[SearchEngine] = []
    seconds = timed(lambda: found.append(SearchEngine.open(folder)))
    with found[0] as engine:
        added = resident_mib() - before
        store = engine.store
        ranker = FolderRanker(store, store.snapshot())
        vector = queries(ranker.passages, ranker.plan.dim, 1)
        first, second = (
            timed(lambda: ranker.rank(SearchRequest([""], vector, 10, SearchOptions(mode="dense")))) for _ in range(2)
        )
    return {
        "documents": ranker.documents,
        "open_ms": round(1e3 * seconds, 1),
        "open_added_mib": round(added, 1),
        "first_search_ms": round(1e3 * first, 1),
        "second_search_ms": round(1e3 * second, 1),
    }


def search(folder: Path, rounds: int, k: int) -> dict[str, Any]:
    """Our search and FAISS's own over the same index, for 64 queries at once and for one at a time."""
    import faiss

    with Store(folder) as store:
        ranker = FolderRanker(store, store.snapshot())
        chosen, parts = ranker.plan, ranker.segments
        if len(parts) == 1:
            bare = faiss_index.read(parts[0].folder / "dense.faiss", chosen)
        elif chosen.recipe == "flat":
            bare = faiss.IndexFlatIP(chosen.dim)
            for part in parts:
                for some in part.batches(np.ones(part.count, bool)):
                    bare.add(some)
        else:  # FAISS's own way of searching several indexes
            bare = faiss.IndexShards(chosen.dim, False, True)
            for part in parts:
                bare.add_shard(part.index.raw)
        many = queries(ranker.passages, chosen.dim, 64)
        options = SearchOptions(mode="dense")
        found: dict[str, Any] = {"recipe": chosen.spelling, "segments": len(parts)}
        for rerank in sorted({0, ranker.tuning.rerank}):
            tuning = Tuning(probes=ranker.tuning.probes, ef=ranker.tuning.ef, rerank=rerank)
            ranker.tuning = tuning
            params = faiss_index.parameters(chosen, tuning)
            depth = k * max(1, rerank)
            sides: dict[str, Callable[[np.ndarray], Any]] = {
                "faiss": lambda rows, depth=depth, params=params: bare.search(rows, depth, params=params),
                "search": lambda rows, tuning=tuning: search_segments(parts, rows, k, tuning=tuning),
                "Ranker.rank": lambda rows: ranker.rank(SearchRequest([""] * len(rows), rows, k, options)),
            }
            if rerank and isinstance(bare, faiss_index.SignIndex):
                del sides["faiss"]  # cannot re-rank it
            elif rerank:
                sides["faiss"] = _refined(bare, ranker, params, rerank, k)
            name = f"rerank {rerank}" if rerank else "no rerank"
            found[name] = {
                "batch of 64": _compared(sides, lambda side: side(many), 1, rounds),
                "one query": _compared(sides, lambda side: [side(many[n : n + 1]) for n in range(64)], 64, rounds),
            }
        return found


def _refined(bare: Any, ranker: FolderRanker, params: Any, rerank: int, k: int) -> Callable[[np.ndarray], Any]:
    """FAISS's own re-ranking by half-precision vectors."""
    import faiss

    exact = faiss.IndexScalarQuantizer(ranker.plan.dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    for part in ranker.segments:
        for some in part.batches(np.ones(part.count, bool)):
            exact.add(some)
    refined = faiss.IndexRefine(bare, exact)
    both = faiss.IndexRefineSearchParameters(k_factor=rerank, base_index_params=params)
    return lambda rows: (refined.search(rows, k, params=both), exact)  # holds `exact`, which `refined` only points to


def _compared(
    sides: dict[str, Callable[[np.ndarray], Any]], call: Callable[[Any], Any], per: int, rounds: int
) -> dict[str, Any]:
    """Milliseconds of each side, and what ours adds to FAISS, pair by pair."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for number in range(rounds + 1):
        for name in order:
            taken = timed(lambda side=sides[name]: call(side)) / per
            if number:  # the first round warms up
                seconds[name].append(taken)
        order.append(order.pop(0))  # the order affects the times
    base = seconds.get("faiss")
    found: dict[str, Any] = {"ms": {name: round(1e3 * median(taken), 3) for name, taken in seconds.items()}}
    for name in sides.keys() - {"faiss"} if base else ():
        pairs = list(zip(seconds[name], base, strict=True))
        found[name] = {
            "over faiss": round(median(ours / theirs for ours, theirs in pairs), 3),
            "added ms": round(1e3 * median(ours - theirs for ours, theirs in pairs), 3),
        }
    return found


FILTERS = {"": None, ", a third allowed": {"year": {"$gte": 2010}}, ", a thirtieth": {"year": 2010}}


def hybrid(folder: Path, rounds: int, k: int) -> dict[str, Any]:
    """One query at a time in every mode, without embedding; the first query of a filter reads all metadata."""
    with Store(folder) as store:
        ranker = FolderRanker(store, store.snapshot(), LexicalSync(store, "none"))
        vectors = queries(ranker.passages, ranker.plan.dim, min(16 * rounds, COMMIT_EVERY))
        asked = texts(len(vectors), (5, 5), 99)
        found: dict[str, Any] = {"recipe": ranker.plan.spelling, "passages": ranker.passages}
        for mode, (name, where) in product(("dense", "lexical", "hybrid"), FILTERS.items()):
            options = SearchOptions(mode=mode, where=where)
            taken = [
                timed(
                    lambda n=n, options=options: ranker.rank(SearchRequest([asked[n]], vectors[n : n + 1], k, options))
                )
                for n in range(len(vectors))
            ]
            ms = np.percentile(1e3 * np.array(taken[1:]), [50, 95]).round(2).tolist()
            found[mode + name] = {"first_ms": round(1e3 * taken[0], 1), "p50_ms": ms[0], "p95_ms": ms[1]}
        return found


def in_process(settings: tuple[int | None, bool], part: str, *values: Any) -> dict[str, Any]:
    """Run a part in a new process, so that its peak memory is its own."""
    call = json.dumps([part, *settings, *[str(value) if isinstance(value, Path) else value for value in values]])
    done = subprocess.run([sys.executable, __file__, "--child", call], check=True, stdout=subprocess.PIPE, text=True)
    print(part, *values[1:], done.stdout.strip(), file=sys.stderr, flush=True)
    return dict(json.loads(done.stdout))


def child(part: str, threads: int | None, cpu_time: bool, folder: str, *values: Any) -> None:
    """Run a part, as requested by `in_process`."""
    global clock
    clock = time.process_time if cpu_time else time.perf_counter
    parts: dict[str, Callable[..., dict[str, Any]]] = {
        function.__name__: function
        for function in (grow, bare_grow, store_as, bare_store_as, open_once, search, hybrid)
    }
    if threads:
        faiss_module().omp_set_num_threads(threads)
    print(json.dumps(parts[part](Path(folder), *values)))


def report(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    count, dim, index, scratch = arguments.vectors, arguments.dim, folder / "index", folder / "bare.faiss"
    settings, words = (arguments.threads, arguments.cpu_time), "hybrid" in arguments.parts
    found: dict[str, Any] = {"vectors": count, "dim": dim, "threads": settings[0], "cpu_time": settings[1]}
    ours = in_process(settings, "grow", index, count, dim, words)
    if "build" in arguments.parts:
        theirs = in_process(settings, "bare_grow", scratch, count, dim)
        found["commits of 1,024, flat"] = _built(ours, theirs)
    if "open" in arguments.parts:
        found["open"] = in_process(settings, "open_once", index)
    recipes = []
    for recipe in arguments.recipes:
        line: dict[str, Any] = {"recipe": recipe}
        if "search" in arguments.parts and recipe == "flat":
            line["search, as it grew"] = in_process(settings, "search", index, arguments.rounds, arguments.k)
        rewritten = in_process(settings, "store_as", index, recipe)
        if "build" in arguments.parts:
            theirs = in_process(settings, "bare_store_as", scratch, count, dim, recipe)
            line["store_as"] = _built(rewritten, theirs)
        if "search" in arguments.parts:
            line["search"] = in_process(settings, "search", index, arguments.rounds, arguments.k)
        if "hybrid" in arguments.parts:
            line["hybrid"] = in_process(settings, "hybrid", index, arguments.rounds, arguments.k)
        recipes.append(line)
    return {**found, "recipes": recipes}


def _built(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    added = theirs.get("train_add_seconds") or theirs["add_seconds"]
    return {
        "searchkit": {name: round(value, 2) for name, value in ours.items()},
        "faiss": {name: round(value, 2) for name, value in theirs.items()},
        "over faiss in memory": round(ours["seconds"] / added, 2),
        "over faiss with its file": round(ours["seconds"] / (added + theirs["write_seconds"]), 2),
        "over faiss with both files": round(
            ours["seconds"] / (added + theirs["write_seconds"] + theirs.get("halves_seconds", 0)), 2
        ),
        "over faiss with both files on the disk": round(
            ours["seconds"]
            / (added + sum(theirs.get(name, 0) for name in ("write_seconds", "halves_seconds", "sync_seconds"))),
            2,
        ),
        "peak over 1.5 x index + 500": round(ours["peak_mib"] / (1.5 * ours["segments_mib"] + 500), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--recipes", nargs="+", default=["flat", "int8", "ivf-pq", "hnsw"])
    parser.add_argument("--parts", nargs="+", default=["build", "open", "search", "hybrid"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--threads", type=int, help="threads of FAISS [default: its own]")
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time instead of wall time")
    parser.add_argument("--folder", type=Path, help="folder for the index [default: a temporary one]")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*json.loads(arguments.child))
        return
    if unnamed := [name for name in arguments.recipes if not plan(name, arguments.dim, arguments.vectors).factory]:
        parser.error(f"{', '.join(unnamed)}: FAISS has no factory string for it to compare with")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print(json.dumps(report(arguments, Path(folder)), indent=1))


if __name__ == "__main__":
    main()
