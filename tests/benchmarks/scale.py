"""How an index grows: building, disk, opening, searching, filtering and changing, at any number of passages.

    python tests/benchmarks/scale.py --passages 1_000_000 [--recipe ivf-pq:48+rerank] [--folder scale/] [--steps ...]
    python tests/benchmarks/scale.py --table --folder scale/

Vectors are those of `corpora/` under the built-in model (384 dimensions), repeated with noise: a cosine of .8 to the
one they come from. Texts are drawn from the words of the same passage and from a Zipf vocabulary of real words and
compounds of them. Nothing is embedded while the index is built.

Results are written to the folder after every step, and a build that was stopped goes on where it was: run the same
command again. `--steps` runs some steps anew. Every step has a process of its own; `cpu` is CPU time, which a busy
machine hardly changes. Rivals are measured where they are installed: `pip install lancedb 'pymilvus[milvus_lite]'`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from searchkit.engine import SearchEngine
from searchkit.indexer.rewriting import rewrite
from searchkit.indexer.vectors import faiss_index
from searchkit.indexer.vectors.faiss_library import faiss_module
from searchkit.indexer.vectors.recipes import RECIPES, Tuning, default_tuning, plan
from searchkit.indexer.vectors.search import candidates
from searchkit.ranking import SearchOptions
from searchkit.readers.corpus import read_corpus
from searchkit.records import Document

CORPORA = Path(__file__).resolve().parents[2] / "corpora"
NOISE = 0.75
"""Length of the noise that is added to a vector of length 1: the cosine of both is .8."""
BLOCK = 16_384
"""Passages that are drawn together: the same ones in every run."""
VOCABULARY = 300_000
WORDS = (12, 24)
"""Words of a passage."""
QUERIES = 200
K = 10
STEPS = ("build", "disk", "open", "search", "callers", "filters", "facets", "bare", "change", "lancedb", "milvus")
FILTERS = {"half": {"language": "en"}, "percent": {"topic": "topic 7"}, "few": {"shelf": "shelf 77"}}
"""Filters that 50 %, 1 % and .01 % of the documents pass."""


class Seeds(NamedTuple):
    """What passages are made of: vectors (n, 384), the words of each, and the vocabulary with the share of each."""

    vectors: np.ndarray
    words: list[list[str]]
    vocabulary: np.ndarray
    shares: np.ndarray


def seeds(folder: Path) -> Seeds:
    """Read the corpora, embed them once, and make the vocabulary."""
    texts = [document.text for document in read_corpus(CORPORA / "intents")]
    texts += [line for line in _strings(json.loads(f"[{','.join(_lines())}]")) if len(line) > 40]
    file = folder / "seeds.npy"
    if not file.is_file():
        from searchkit import Embedder

        np.save(file, Embedder().encode_passages(texts))
    real = sorted({word for text in texts for word in text.lower().split() if word.isalpha()})
    rng = np.random.default_rng(1)
    rng.shuffle(real)
    pairs = rng.integers(len(real), size=(VOCABULARY - len(real), 2)).tolist()
    vocabulary = np.array([*real, *(real[one] + real[other] for one, other in pairs)], dtype=object)
    shares = np.cumsum(1 / (50 + np.arange(VOCABULARY)))
    words = [[word for word in text.lower().split() if word.isalpha()] for text in texts]
    return Seeds(np.load(file), words, vocabulary, shares / shares[-1])


def _lines() -> list[str]:
    return (CORPORA / "kinds" / "topics.jsonl").read_text("utf-8").splitlines()


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def blocks(source: Seeds, start: int, stop: int) -> Iterator[tuple[list[Document], np.ndarray]]:
    """Documents `start` to `stop` with their vectors, (n, 384) float32 unit rows, a block at a time."""
    for first in range(start - start % BLOCK, stop, BLOCK):
        rng = np.random.default_rng([2, first])
        chosen = rng.integers(len(source.vectors), size=BLOCK)
        vectors = rng.standard_normal((BLOCK, source.vectors.shape[1]), dtype=np.float32)
        vectors *= NOISE / math.sqrt(vectors.shape[1])
        vectors += source.vectors[chosen]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        lengths = rng.integers(*WORDS, size=BLOCK, endpoint=True)
        drawn = source.vocabulary[np.searchsorted(source.shares, rng.random((BLOCK, WORDS[1])))]
        numbers = rng.integers(1 << 30, size=(BLOCK, 6)).tolist()
        draws = rng.integers(20_000, size=(BLOCK, 4)).tolist()
        documents = []
        low, high = max(start, first), min(stop, first + BLOCK)
        for n in range(low - first, high - first):
            own = source.words[chosen[n]]
            text = " ".join([*(own[number % len(own)] for number in numbers[n]), *drawn[n, : lengths[n] - 6]])
            language, topic, shelf, year = draws[n]
            metadata = {
                "language": ("en", "de")[language % 2],
                "topic": f"topic {topic % 100}",
                "shelf": f"shelf {shelf % 10_000}",
                "year": 1990 + year % 35,
                "source": f"notes/{shelf % 10_000}/{first + n}.md",
            }
            documents.append(Document(f"p{first + n}", text, metadata=metadata))
        yield documents, vectors[low - first : high - first]


def queries(source: Seeds) -> tuple[list[str], np.ndarray]:
    """Texts of four words of one passage and one of the vocabulary, and vectors near that passage."""
    rng = np.random.default_rng(3)
    chosen = rng.integers(len(source.vectors), size=QUERIES)
    vectors = rng.standard_normal((QUERIES, source.vectors.shape[1]), dtype=np.float32)
    vectors = source.vectors[chosen] + vectors * (NOISE / math.sqrt(vectors.shape[1]))
    texts = []
    for number in chosen:
        own = source.words[number]
        picked = [own[n] for n in rng.integers(len(own), size=4)]
        texts.append(" ".join([*picked, source.vocabulary[np.searchsorted(source.shares, rng.random())]]))
    return texts, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# Measuring


@dataclass
class Cost:
    """What some work took: wall and CPU seconds, and the highest memory that was neither file nor shared, in MiB."""

    wall: float = 0.0
    cpu: float = 0.0
    anonymous: float = 0.0

    def rounded(self) -> dict[str, float]:
        return {"wall_s": round(self.wall, 2), "cpu_s": round(self.cpu, 2), "anonymous_mib": round(self.anonymous)}


@contextmanager
def costs() -> Iterator[Cost]:
    """Measure a block; memory is looked at five times a second."""
    cost, done = Cost(), threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            cost.anonymous = max(cost.anonymous, anonymous_mib())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield cost
    finally:
        cost.wall, cost.cpu = time.perf_counter() - wall, time.process_time() - cpu
        cost.anonymous = max(cost.anonymous, anonymous_mib())
        done.set()
        watcher.join()


def anonymous_mib() -> float:
    """Memory of this process that no file backs, now; NaN where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))


def each(work: Callable[[int], Any], count: int, warm: int = 5) -> dict[str, float]:
    """Milliseconds of each of some calls, after a few that do not count."""
    walls, cpus = [], []
    for n in range(-warm, count):
        wall, cpu = time.perf_counter(), time.process_time()
        work(n % count)
        if n >= 0:
            walls.append(1e3 * (time.perf_counter() - wall))
            cpus.append(1e3 * (time.process_time() - cpu))
    found = {f"p{p}_ms": round(float(np.percentile(walls, p)), 2) for p in (50, 99)}
    return {**found, **{f"p{p}_cpu_ms": round(float(np.percentile(cpus, p)), 2) for p in (50, 99)}}


# Steps: each runs in its own process and returns its share of the report.


class Job(NamedTuple):
    """What is measured."""

    folder: Path
    passages: int
    recipe: str
    lists: int
    commit: int

    @property
    def index(self) -> Path:
        return self.folder / f"{self.passages}.index"


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


def lancedb(job: Job) -> dict[str, Any]:
    """LanceDB with IVF_PQ of as many lists and bytes, and its own full-text index."""
    try:
        import lancedb as lance
        import pyarrow as arrow
    except ImportError as error:
        return {"skipped": f"{error}"}
    source, path = seeds(job.folder), job.folder / f"{job.passages}.lance"
    texts, vectors = queries(source)
    table, spelling = None, job.recipe.partition("+")[0]
    chosen = plan(spelling, vectors.shape[1], job.passages)
    lists = job.lists or chosen.lists or 1
    width = arrow.list_(arrow.float32(), vectors.shape[1])
    with costs() as cost:
        db = lance.connect(str(path))
        for documents, rows in blocks(source, 0, job.passages):
            flat = arrow.array(rows.ravel())
            batch = arrow.table(
                {
                    "id": [document.id for document in documents],
                    "text": [document.text for document in documents],
                    "vector": arrow.FixedSizeListArray.from_arrays(flat, rows.shape[1]).cast(width),
                    **{key: [document.metadata[key] for document in documents] for key in documents[0].metadata},
                }
            )
            table = db.create_table("passages", batch) if table is None else (table.add(batch), table)[1]
        assert table is not None
    found: dict[str, Any] = {"add": cost.rounded()}
    with costs() as cost:
        sizes = {"num_partitions": lists, "num_sub_vectors": chosen.code or 48}
        table.create_index(metric="cosine", vector_column_name="vector", index_type="IVF_PQ", **sizes)
    found["vector index"] = cost.rounded()
    with costs() as cost:
        table.create_fts_index("text")
    found["text index"] = cost.rounded()
    probes = max(1, round(lists**0.5))

    def dense(n: int) -> Any:
        return table.search(vectors[n]).nprobes(probes).refine_factor(10).limit(K).to_list()

    def hybrid(n: int) -> Any:
        asked = table.search(query_type="hybrid").vector(vectors[n]).text(texts[n])
        return asked.nprobes(probes).refine_factor(10).limit(K).to_list()

    found["dense"] = each(dense, 50)
    found["hybrid"] = each(hybrid, 50)
    for name, where in FILTERS.items():
        ((key, value),) = where.items()
        found[f"dense, {name}"] = each(
            lambda n, sql=f"{key} = '{value}'": table.search(vectors[n]).where(sql, prefilter=True).nprobes(probes)
            .refine_factor(10).limit(K).to_list(),
            20,
        )  # fmt: skip
    found["disk_mib"] = round(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 2**20)
    found["peak_mib"] = round(peak_mib())
    return found


def milvus(job: Job) -> dict[str, Any]:
    """Milvus-lite with IVF_FLAT, since its IVF_PQ is accepted and not built."""
    try:
        import milvus_lite  # noqa: F401
        from pymilvus import DataType, MilvusClient
    except ImportError as error:
        return {"skipped": f"{error}"}
    source, path = seeds(job.folder), job.folder / f"{job.passages}.milvus.db"
    _, vectors = queries(source)
    lists = job.lists or plan("ivf-pq:48", vectors.shape[1], job.passages).lists
    client = MilvusClient(str(path))
    schema = client.create_schema()
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("text", DataType.VARCHAR, max_length=4096)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    keys = ("language", "topic", "shelf")
    for key in keys:
        schema.add_field(key, DataType.VARCHAR, max_length=64)
    params = client.prepare_index_params()
    params.add_index("vector", index_type="IVF_FLAT", metric_type="IP", params={"nlist": lists})
    with costs() as cost:
        client.create_collection("passages", schema=schema, index_params=params)
        for documents, rows in blocks(source, 0, job.passages):
            for start in range(0, len(documents), 4096):
                some = slice(start, start + 4096)
                client.insert(
                    "passages",
                    [
                        {"id": d.id, "text": d.text, "vector": row, **{key: d.metadata[key] for key in keys}}
                        for d, row in zip(documents[some], rows[some], strict=True)
                    ],
                )
        client.load_collection("passages")
    found: dict[str, Any] = {"add": cost.rounded()}
    probes = {"params": {"nprobe": max(1, round(lists**0.5))}}
    one = partial(client.search, "passages", limit=K, search_params=probes)
    found["dense"] = each(lambda n: one(data=[vectors[n].tolist()]), 50)
    for name, where in FILTERS.items():
        ((key, value),) = where.items()
        found[f"dense, {name}"] = each(
            lambda n, test=f'{key} == "{value}"': one(data=[vectors[n].tolist()], filter=test), 20
        )
    size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    found["disk_mib"], found["peak_mib"] = round(size / 2**20), round(peak_mib())
    return found


GROWTH = {
    "build, CPU s": ("build", "cpu_s"),
    "build, peak MiB": ("build", "peak_mib"),
    "build, without mapped files, MiB": ("build", "anonymous_mib"),
    "database, MiB": ("disk", "index.db"),
    "columns, MiB": ("disk", "columns"),
    "vectors, MiB": ("disk", "segments"),
    "lexical index, MiB": ("disk", "lexical"),
    "open, ms": ("open", "open", "cpu_ms"),
    "first dense search, ms": ("open", "first dense", "cpu_ms"),
    "first lexical search, ms": ("open", "first lexical", "cpu_ms"),
    "get, ms": ("open", "get", "p50_cpu_ms"),
    "unknown id, first, ms": ("open", "unknown id", "first_cpu_ms"),
    "unknown id, ms": ("open", "unknown id", "p50_cpu_ms"),
    "dense, p50 ms": ("search", "dense", "p50_cpu_ms"),
    "lexical, p50 ms": ("search", "lexical", "p50_cpu_ms"),
    "hybrid, p50 ms": ("search", "hybrid", "p50_cpu_ms"),
    "hybrid, p99 ms": ("search", "hybrid", "p99_cpu_ms"),
    "recall@10 of dense": ("search", "recall@10 of dense"),
    "hybrid by 8 callers, ms a query": ("callers", "cpu_ms_a_query"),
    **{
        f"filter of {share}, {label}, ms": ("filters", name, *path)
        for name, share in (("half", "50 %"), ("percent", "1 %"), ("few", ".01 %"))
        for label, path in (
            ("first of all", ("first of all", "cpu_ms")),
            ("another", ("another", "cpu_ms")),
            ("repeated, dense", ("repeated, dense", "p50_cpu_ms")),
            ("repeated, hybrid", ("repeated, hybrid", "p50_cpu_ms")),
        )
    },
    "first facet, ms": ("facets", "topic", "first_cpu_ms"),
    "facet of 10,000 values, first, ms": ("facets", "shelf", "first_cpu_ms"),
    "all facets, first, ms": ("facets", "all", "first_cpu_ms"),
    "over FAISS, batch of 1": ("bare", "batch 1", "over"),
    "over FAISS, batch of 64": ("bare", "batch 64", "over"),
    "over FAISS, re-ranked, batch of 1": ("bare", "re-ranked, batch 1", "over"),
    "over FAISS, re-ranked, batch of 64": ("bare", "re-ranked, batch 64", "over"),
    "add one, p50 ms": ("change", "add one", "p50_cpu_ms"),
    "add 2,000, s": ("change", "add 2,000", "cpu_s"),
    "delete one, p50 ms": ("change", "delete one", "p50_cpu_ms"),
    "delete 2,000, s": ("change", "delete 2,000", "cpu_s"),
    "compact, s": ("change", "compact", "cpu_s"),
    "compact after deleting old ones, s": ("change", "compact old ones", "cpu_s"),
}
"""Rows of the table, with where their figures are among the results; times are CPU time."""


def growth(folder: Path) -> str:
    """A table in Markdown of what was measured at every number of passages."""
    files = sorted((file for file in folder.glob("*.json") if file.stem.isdigit()), key=lambda file: int(file.stem))
    results = [json.loads(file.read_text()) for file in files]
    lines = [["", *(f"{int(file.stem):,}" for file in files)], ["---"] * (1 + len(files))]
    for label, path in GROWTH.items():
        found = []
        for result in results:
            value = result
            for step in path:
                value = value.get(step, {}) if isinstance(value, dict) else {}
            found.append("" if isinstance(value, dict) else f"{value:,}")
        if any(found):
            lines.append([label, *found])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
