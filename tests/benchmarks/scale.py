"""How an index grows: building, disk, opening, searching, filtering and changing, at any number of passages.

    python tests/benchmarks/scale.py --passages 1_000_000 [--recipe ivf-pq:48+rerank] [--folder scale/] [--steps ...]
    python tests/benchmarks/scale.py --table --folder scale/

Passages are those of `passages.py`. Nothing is embedded while the index is built.

Results are written to the folder after every step, and a build that was stopped goes on where it was: run the same
command again. `--steps` runs some steps anew. Every step has a process of its own; `cpu` is CPU time, which a busy
machine hardly changes. Rivals are measured where they are installed: `pip install lancedb 'pymilvus[milvus_lite]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from costs import anonymous_mib, costs, each, peak_mib
from growth import growth
from passages import BLOCK, FILTERS, QUERIES, K, blocks, queries, seeds
from rivals import Job, lancedb, milvus

from searchkit.engine import SearchEngine
from searchkit.indexer.rewriting import rewrite
from searchkit.indexer.vectors import faiss_index
from searchkit.indexer.vectors.faiss_library import faiss_module
from searchkit.indexer.vectors.recipes import RECIPES, Tuning, default_tuning, plan
from searchkit.indexer.vectors.search import candidates
from searchkit.ranking import SearchOptions
from searchkit.records import Document

STEPS = ("build", "disk", "open", "search", "callers", "filters", "facets", "bare", "change", "lancedb", "milvus")


# Steps: each runs in its own process and returns its share of the report.


def build(job: Job) -> dict[str, Any]:
    """Train the recipe on the first passages, add the others, and merge all segments."""
    source, parts = seeds(job.folder), {}
    spelling, _, rerank = job.recipe.partition("+")
    with SearchEngine.create(job.index, dim=source.vectors.shape[1], exist_ok=True) as engine:
        chosen = plan(spelling, engine.dim, job.passages)
        if job.lists and chosen.lists:
            chosen = type(chosen)(chosen.recipe, chosen.dim, chosen.code, job.lists, chosen.width)
        first = min(job.passages, max(BLOCK, -(-chosen.wanted // BLOCK) * BLOCK))
        made = 0.0

        def add(stop: int) -> float:
            """Seconds of CPU that drawing the passages took."""
            nonlocal made
            made = 0.0
            start = len(engine)
            for low in range(start, stop, 64 * BLOCK):

                def drawn(low: int = low) -> Iterator[Document]:
                    nonlocal made
                    began = time.process_time()
                    for documents, vectors in blocks(source, low, min(stop, low + 64 * BLOCK)):
                        made += time.process_time() - began
                        for document, vector in zip(documents, vectors, strict=True):
                            object.__setattr__(document, "vector", vector)
                            yield document
                        began = time.process_time()

                engine.add(drawn(), commit_every=job.commit)
                print(f"{len(engine):,} passages, {peak_mib():,.0f} MiB", file=sys.stderr, flush=True)
            return made

        if engine.storage.plan != chosen:
            with costs() as cost:
                drawing = add(first)
            parts["add the first"] = {**cost.rounded(), "passages": first, "of it drawing, cpu_s": round(drawing, 1)}
            with costs() as cost:
                template = engine.store.backend.train(chosen, engine.sample(chosen.wanted))
            parts["train"] = cost.rounded()
            with costs() as cost:
                tuning = default_tuning(chosen, keep_vectors=bool(rerank))
                rewrite(engine.store, template, keep_vectors=bool(rerank), tuning=tuning)
                engine.reload()
            parts["encode the first"] = cost.rounded()
        before = len(engine)
        with costs() as cost:
            drawing = add(job.passages)
        parts["add"] = {
            **cost.rounded(), "passages": job.passages - before, "of it drawing, cpu_s": round(drawing, 1)
        }  # fmt: skip
        segments = len(engine.snapshot.segments)
        with costs() as cost:
            engine.compact()
        parts["merge the segments"] = {**cost.rounded(), "segments": segments, "left": len(engine.snapshot.segments)}
        return {
            **parts,
            "plan": chosen.factory,
            "commit_every": job.commit,
            "wall_s": round(sum(part["wall_s"] for part in parts.values())),
            "cpu_s": round(sum(part["cpu_s"] for part in parts.values())),
            "peak_mib": round(peak_mib()),
            "anonymous_mib": round(max(part["anonymous_mib"] for part in parts.values())),
        }


def disk(job: Job) -> dict[str, Any]:
    with SearchEngine.open(job.index) as engine:
        return {name: round(size / 2**20) for name, size in engine.store.sizes().items()}


def open(job: Job) -> dict[str, Any]:
    """Opening, and the first search of each mode, which verifies the files it needs."""
    texts, vectors = queries(seeds(job.folder))
    before = anonymous_mib()
    with costs() as cost:
        engine = SearchEngine.open(job.index)
    with engine:
        found: dict[str, Any] = {"open": {"ms": round(1e3 * cost.wall, 1), "cpu_ms": round(1e3 * cost.cpu, 1)}}
        for mode in ("dense", "lexical", "hybrid"):
            with costs() as cost:
                engine.search(texts[0], vector=vectors[0], mode=mode)
            found[f"first {mode}"] = {"ms": round(1e3 * cost.wall, 1), "cpu_ms": round(1e3 * cost.cpu, 1)}
        lookups = {
            "get": lambda n: engine.get(f"p{n * 37 % job.passages}"),
            "known id": lambda n: f"p{n * 41 % job.passages}" in engine,
            "unknown id": lambda n: f"unknown {n}" in engine,
            "length": lambda _: len(engine),
            "reopen": lambda _: SearchEngine.open(job.index).close(),
        }
        for name, work in lookups.items():
            with costs() as cost:
                work(0)
            found[name] = {"first_cpu_ms": round(1e3 * cost.cpu, 1), **each(work, 20, warm=0)}
        found["added_mib"] = round(anonymous_mib() - before)
    return found


def search(job: Job) -> dict[str, Any]:
    """One query at a time."""
    texts, vectors = queries(seeds(job.folder))
    with SearchEngine.open(job.index) as engine:
        found: dict[str, Any] = {}
        for mode in ("dense", "lexical", "hybrid"):
            found[mode] = each(lambda n, mode=mode: engine.search(texts[n], vector=vectors[n], mode=mode), QUERIES)
        found["recall@10 of dense"] = _recall(engine, vectors[:50])
        return found


def _recall(engine: SearchEngine, vectors: np.ndarray) -> float:
    """Share of the K nearest documents, found by comparing every vector, that a dense search returns."""
    best_scores, best_rows = np.empty((len(vectors), 0), np.float32), np.empty((len(vectors), 0), np.int64)
    for part in engine.snapshot.segments:
        rows = np.arange(part.first_row, part.first_row + part.count) if part.rows is None else part.rows
        start = 0
        for batch in part.batches(np.ones(part.count, bool)):
            scores = np.concatenate([best_scores, vectors @ batch.T], axis=1)
            owner = np.broadcast_to(rows[start : start + len(batch)], (len(vectors), len(batch)))
            owner = np.concatenate([best_rows, owner], axis=1)
            start += len(batch)
            top = np.argpartition(-scores, K - 1, axis=1)[:, :K]
            best_scores, best_rows = np.take_along_axis(scores, top, 1), np.take_along_axis(owner, top, 1)
    options = SearchOptions(mode="dense")
    rankings = engine.rank(["-"] * len(vectors), vectors=vectors, k=K, options=options)
    found = [
        len({hit.row for hit in mine} & set(true.tolist())) / K for mine, true in zip(rankings, best_rows, strict=True)
    ]
    return round(float(np.mean(found)), 3)


def callers(job: Job) -> dict[str, Any]:
    """Hybrid searches by eight threads at once."""
    texts, vectors = queries(seeds(job.folder))
    with SearchEngine.open(job.index) as engine:
        for n in range(5):
            engine.search(texts[n], vector=vectors[n])

        def one(n: int) -> float:
            began = time.perf_counter()
            engine.search(texts[n], vector=vectors[n])
            return time.perf_counter() - began

        with costs() as cost, ThreadPoolExecutor(8) as pool:
            taken = 1e3 * np.array(list(pool.map(one, range(QUERIES))))
        return {
            **{f"p{p}_ms": round(float(np.percentile(taken, p)), 2) for p in (50, 99)},
            "queries_a_second": round(QUERIES / cost.wall, 1),
            "cpu_ms_a_query": round(1e3 * cost.cpu / QUERIES, 2),
        }


def filters(job: Job) -> dict[str, Any]:
    """Each filter as the first of a process, as a new one after others, and repeated, in hybrid searches."""
    texts, vectors = queries(seeds(job.folder))
    found: dict[str, Any] = {}
    for name, where in FILTERS.items():
        with SearchEngine.open(job.index) as engine:
            for n in range(5):
                engine.search(texts[n], vector=vectors[n])
            line = {}
            for when, condition in (("first of all", where), ("another", {"$and": [where, {"year": {"$gte": 1990}}]})):
                with costs() as cost:
                    hits = engine.search(texts[0], vector=vectors[0], where=condition)
                line[when] = {"ms": round(1e3 * cost.wall, 1), "cpu_ms": round(1e3 * cost.cpu, 1)}
                assert all(hit.metadata[key] == value for hit in hits for key, value in where.items())
            for mode in ("dense", "hybrid"):
                line[f"repeated, {mode}"] = each(
                    lambda n, mode=mode, where=where: engine.search(
                        texts[n], vector=vectors[n], mode=mode, where=where
                    ),
                    50,
                )
            found[name] = line
    return found


def facets(job: Job) -> dict[str, Any]:
    """Counting the values of keys, first and again, over all documents."""
    found = {}
    with SearchEngine.open(job.index) as engine:
        for keys in (["topic"], ["shelf"], ["year", "language"], None):
            with costs() as cost:
                engine.facets(keys)
            first = round(1e3 * cost.cpu, 1)
            with costs() as cost:
                engine.facets(keys)
            found[", ".join(keys or ["all"])] = {"first_cpu_ms": first, "again_cpu_ms": round(1e3 * cost.cpu, 1)}
    return found


def bare(job: Job) -> dict[str, Any]:
    """What a dense search adds to FAISS's own over the same file, without and with re-ranking, at batch 1 and 64."""
    faiss = faiss_module()
    _, vectors = queries(seeds(job.folder))
    with SearchEngine.open(job.index) as engine:
        ranker = engine._ranker
        if len(ranker.segments) != 1:
            return {"skipped": f"{len(ranker.segments)} segments; FAISS searches one file"}
        part, chosen = ranker.segments[0], ranker.plan
        raw = faiss_index.read(part.folder / "dense.faiss", chosen)
        found: dict[str, Any] = {}
        for rerank in sorted({0, ranker.tuning.rerank}):
            ranker.tuning = Tuning(probes=ranker.tuning.probes, ef=ranker.tuning.ef, rerank=rerank)
            params = faiss_index.parameters(chosen, ranker.tuning)
            theirs: Callable[[np.ndarray], Any] = partial(raw.search, k=K, params=params)
            if rerank:
                theirs = _refined(part, raw, params, candidates(K, part.count, ranker.tuning) / K)
            options = SearchOptions(mode="dense")
            ours = lambda rows, options=options: engine.rank(["-"] * len(rows), vectors=rows, k=K, options=options)  # noqa: E731
            for size in (1, 64):
                pairs = []
                for n in range(-1, 15):
                    rows = vectors[[(n * size + i) % QUERIES for i in range(size)]]
                    sides = [(0, theirs), (1, ours)] if n % 2 else [(1, ours), (0, theirs)]
                    taken = [0.0, 0.0]
                    for side, work in sides:
                        began = time.process_time()
                        work(rows)
                        taken[side] = time.process_time() - began
                    if n >= 0:
                        pairs.append(taken)
                table = np.array(pairs)
                found[f"{'re-ranked, ' if rerank else ''}batch {size}"] = {
                    "faiss_cpu_ms": round(1e3 * float(np.median(table[:, 0])), 2),
                    "searchkit_cpu_ms": round(1e3 * float(np.median(table[:, 1])), 2),
                    "over": round(float(np.median(table[:, 1] / table[:, 0])), 3),
                }
        del faiss
        return found


def _refined(part: Any, raw: Any, params: Any, factor: float) -> Callable[[np.ndarray], Any]:
    """FAISS's own re-ranking by the same half-precision vectors."""
    faiss = faiss_module()
    exact = faiss.IndexScalarQuantizer(part.plan.dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    exact.is_trained = True
    halves = np.memmap(part.folder / "vectors.f16", np.uint8, "r").reshape(part.count, -1)
    for start in range(0, part.count, BLOCK):
        exact.add_sa_codes(np.ascontiguousarray(halves[start : start + BLOCK]))
    refined = faiss.IndexRefine(raw, exact)
    both = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=params)
    return lambda rows: (refined.search(rows, K, params=both), exact)  # holds `exact`, which `refined` only points to


def change(job: Job) -> dict[str, Any]:
    """Adding and deleting; compaction, which takes what was added out again; and the same with old passages."""
    source = seeds(job.folder)
    found: dict[str, Any] = {}
    with SearchEngine.open(job.index, writable=True) as engine:
        (documents, vectors), = blocks(source, 1 << 40, (1 << 40) + 2100)  # fmt: skip
        with costs() as cost:
            engine.add(documents[:1], vectors=vectors[:1])
        found["add the first"] = cost.rounded()
        found["add one"] = each(lambda n: engine.add(documents[1 + n : 2 + n], vectors=vectors[1 + n : 2 + n]), 20, 0)
        with costs() as cost:
            engine.add(documents[100:2100], vectors=vectors[100:2100])
        found["add 2,000"] = cost.rounded()
        found["delete one"] = each(lambda n: engine.delete([documents[1 + n].id]), 20, 0)
        with costs() as cost:
            engine.delete([documents[30].id, "unknown"])
        found["delete an unknown id"] = cost.rounded()
        with costs() as cost:
            engine.delete(document.id for document in documents)
        found["delete 2,000"] = cost.rounded()
        found["compact"] = _compacted(engine)
        middle = job.passages // 2
        (old, old_vectors), *_ = blocks(source, middle - middle % BLOCK, middle - middle % BLOCK + 2000)
        engine.delete(document.id for document in old)
        found["compact old ones"] = _compacted(engine)
        engine.add(old, vectors=old_vectors)
        engine.compact()
        found["left"] = len(engine)
    return found


def _compacted(engine: SearchEngine) -> dict[str, float]:
    before = peak_mib()
    with costs() as cost:
        engine.compact()
    return {**cost.rounded(), "peak_mib": round(peak_mib()), "peak_before_mib": round(before)}


WORK: dict[str, Callable[[Job], dict[str, Any]]] = {
    function.__name__: function
    for function in (build, disk, open, search, callers, filters, facets, bare, change, lancedb, milvus)
}


def measure(job: Job, steps: list[str], results: Path, threads: int) -> None:
    """Run steps, each in a new process, and write what each found."""
    found = json.loads(results.read_text()) if results.is_file() else {}
    for step in steps:
        call = [sys.executable, __file__, "--child", step, *_arguments(job)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        print(step, file=sys.stderr, flush=True)
        done = subprocess.run(call, stdout=subprocess.PIPE, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{step} failed; what was measured before is in {results}")
        found[step] = json.loads(done.stdout)
        print(json.dumps(found[step]), file=sys.stderr, flush=True)
        results.write_text(json.dumps(found, indent=1))


def _arguments(job: Job) -> list[str]:
    return [
        f"--folder={job.folder}", f"--passages={job.passages}", f"--recipe={job.recipe}", f"--lists={job.lists}",
        f"--commit={job.commit}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--recipe", default="ivf-pq:48+rerank", help="with +rerank, vectors are kept beside the codes")
    parser.add_argument("--folder", type=Path, default=Path("scale"), help="indexes and results [default: scale]")
    parser.add_argument("--steps", nargs="+", choices=STEPS, help="run these anew [default: those that are missing]")
    parser.add_argument("--lists", type=int, default=0, help="IVF lists [default: as many as the recipe takes]")
    parser.add_argument("--commit", type=int, default=65_536, help="passages a commit [default: 65536]")
    parser.add_argument("--threads", type=int, default=1, help="threads of FAISS [default: 1]")
    parser.add_argument("--table", action="store_true", help="print what was measured, as a table, and end")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        print(growth(arguments.folder))
        return
    if arguments.passages < 2000:
        parser.error(f"--passages is {arguments.passages}; expected 2,000 or more")
    if arguments.recipe.partition("+")[0].partition(":")[0] not in RECIPES:
        parser.error(f"--recipe is {arguments.recipe}; expected one of {', '.join(RECIPES)}, with +rerank or without")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    job = Job(arguments.folder, arguments.passages, arguments.recipe, arguments.lists, arguments.commit)
    if arguments.child:
        faiss_module().omp_set_num_threads(arguments.threads)
        print(json.dumps(WORK[arguments.child](job)))
        return
    results = arguments.folder / f"{arguments.passages}.json"
    known = json.loads(results.read_text()) if results.is_file() else {}
    steps = arguments.steps or [step for step in STEPS if step not in known]
    measure(job, steps, results, arguments.threads)


if __name__ == "__main__":
    main()
