"""Make systems to compare out of one index: ways of searching, instructions, widths and recipes of its vectors."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.compression.measure import apply, measure, parse
from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.evaluation.comparison import System, system_of
from searchkit.evaluation.evaluate import drop_own, evaluate, judged_queries
from searchkit.indexer.files import locked
from searchkit.indexer.vectors import segments
from searchkit.indexer.vectors.segments import DiskSegment
from searchkit.metrics import DEPTH
from searchkit.ranking import SearchOptions
from searchkit.records import Qrels, Query, Run

_BY_VECTORS = ("dense", "hybrid")
_BLOCK = 8192  # passages whose vectors are in memory at a time


def sweep(
    engine: SearchEngine,
    queries: Sequence[Query],
    qrels: Qrels,
    *,
    modes: Sequence[str] = ("hybrid",),
    instruction: str | None = None,
    instructions: Mapping[str, str | None] | None = None,
    dims: Sequence[int] = (),
    recipes: Sequence[str] = (),
    drop_self: bool = False,
    options: SearchOptions | None = None,
    on_system: Callable[[str], None] | None = None,
) -> list[System]:
    """Search an index in every mode under every instruction, its vectors cut to widths and stored by recipes.

    Args:
        engine: The index.
        queries: Those with judgements are asked.
        qrels: The judgements.
        modes: Some of `EVALUATION_MODES`; those that know no instruction are asked once.
        instruction: For queries without their own, where none is swept; None takes the model's default, "" none.
        instructions: Label -> instruction, each for all queries, in the place of their own; None sweeps none.
        dims: Widths: the vectors' first dimensions, made unit length again and searched exactly.
        recipes: Names such as "pq:48+rerank"; a copy of the index is stored so, tuned as `searchkit compress` does,
            with no vectors beside the codes but for re-ranking. It is searched in those of the modes that use vectors,
            or in dense mode.
        drop_self: Leave out the document whose id is the query's.
        options: Fusion settings; the mode in them is not used.
        on_system: Told each system's name before it is measured.

    Returns:
        Systems named by mode, width or recipe, and label, such as "dense", "dense 64", "hybrid B", "hybrid int8 B".

    Raises:
        ValueError: A mode, a width or a recipe is impossible, or judgements and index do not belong together.
    """
    told = on_system or (lambda name: None)
    snapshot = engine.store.snapshot()
    for recipe in recipes:  # what is wrong is said before anything is searched
        parse(recipe, int(snapshot.storage["plan"]["dim"]), snapshot.passages)
    systems: list[System] = []
    sentences = {"": instruction} if instructions is None else instructions
    asked = list(queries) if instructions is None else [replace(query, instruction=None) for query in queries]

    def search(one: SearchEngine, mode: str, name: str, sentence: str | None) -> None:
        told(name)
        how: dict[str, Any] = {"instruction": sentence, "drop_self": drop_self, "options": options}
        (found,) = evaluate(one, asked, qrels, modes=[mode], **how)
        size = found.bytes_per_document
        systems.append(system_of(name, found.run, qrels, seconds=found.seconds_per_query, size=size))

    for label, sentence in sentences.items():
        for mode in modes:
            name = f"{mode} {label}".strip() if mode in _BY_VECTORS else mode
            if all(system.name != name for system in systems):
                search(engine, mode, name, sentence)
        if dims:
            systems += _cut(engine, asked, qrels, label, sentence, dims, drop_self, told)
    by_vectors = [mode for mode in modes if mode in _BY_VECTORS] or ["dense"]
    for recipe in dict.fromkeys(recipes):
        with _stored_as(engine, recipe) as one:
            for label, sentence in sentences.items():
                for mode in by_vectors:
                    search(one, mode, f"{mode} {recipe} {label}".strip(), sentence)
    return systems


@contextmanager
def _stored_as(engine: SearchEngine, recipe: str) -> Iterator[SearchEngine]:
    """A copy of an index whose vectors are stored by a recipe, tuned by phrases of its own documents."""
    with tempfile.TemporaryDirectory(prefix="searchkit-") as place:
        copy = Path(place) / "index"
        with locked(engine.store.folder):
            shutil.copytree(engine.store.folder, copy)
        with SearchEngine.open(copy, model=engine.embedder, writable=True) as one:
            found = measure(one, recipes=[recipe], on_skipped=_refuse)[-1]
            apply(one, found, drop_vectors=not found.tuning.rerank)
            yield one


def _refuse(recipe: str, why: str) -> None:
    raise InputError(f"{recipe} does not fit this index: {why}")


def _cut(
    engine: SearchEngine,
    queries: Sequence[Query],
    qrels: Qrels,
    label: str,
    instruction: str | None,
    dims: Sequence[int],
    drop_self: bool,
    told: Callable[[str], None],
) -> list[System]:
    """One system a width."""
    asked = judged_queries(engine, queries, qrels)
    snapshot = engine.store.snapshot()
    full = int(snapshot.storage["plan"]["dim"])
    if wrong := [dim for dim in dims if not 1 <= dim <= full]:
        raise InputError(
            f"widths are {', '.join(map(str, wrong))}; the index's vectors are {full} wide, so 1 to {full}"
        )
    if not all(part.keeps_vectors for part in snapshot.segments):
        raise InputError(
            f"{engine.store.folder} keeps no vectors beside its codes, and codes cannot be cut; index the corpus again"
        )
    engine.embedder.encode_queries(["warm up"])  # loading the model is not searching
    began = time.perf_counter()
    vectors = engine.embed(asked, instruction)
    embedding = time.perf_counter() - began
    systems = []
    for dim in dict.fromkeys(dims):
        name = f"dense {dim} {label}".strip()
        told(name)
        docs, scores, seconds = search_exactly(
            snapshot.segments, snapshot.dead, unit(vectors[:, :dim]), DEPTH + drop_self
        )
        ids = engine.store.ids_of(set(docs.ravel().tolist()))
        run: Run = {}
        for query, found, values in zip(asked, docs.tolist(), scores.tolist(), strict=True):
            run[query.id] = {ids[doc]: value for doc, value in zip(found, values, strict=True)}
        if drop_self:
            drop_own(run)
        size = 4 * dim * snapshot.passages / max(1, snapshot.documents)
        systems.append(system_of(name, run, qrels, seconds=(embedding + seconds) / len(asked), size=size))
    return systems


def search_exactly(
    parts: Sequence[DiskSegment], dead: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """The k best documents a query, each by its best passage, over vectors cut to the queries' width.

    Args:
        parts: The segments that hold the vectors.
        dead: Rows that are not found, ascending.
        queries: (n, dim) float32 unit rows; passages keep their first `dim` dimensions, made unit length again.
        k: Documents wanted.

    Returns:
        (documents (n, m) int64, scores (n, m) float32, seconds of searching without reading the vectors), best first;
        m is k, or all documents where they are fewer.
    """
    docs = np.empty((len(queries), 0), dtype=np.int64)
    scores = np.empty((len(queries), 0), dtype=np.float32)
    seconds = 0.0
    for owners, vectors in _blocks(parts, dead, queries.shape[1]):
        began = time.perf_counter()
        firsts = _firsts(owners)
        best = np.maximum.reduceat(queries @ vectors.T, firsts, axis=1)
        docs = np.concatenate([docs, np.broadcast_to(owners[firsts], best.shape)], axis=1)
        scores = np.concatenate([scores, best], axis=1)
        if scores.shape[1] > k:
            kept = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            docs, scores = np.take_along_axis(docs, kept, 1), np.take_along_axis(scores, kept, 1)
        seconds += time.perf_counter() - began
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(docs, order, 1), np.take_along_axis(scores, order, 1), seconds


def _firsts(owners: np.ndarray) -> np.ndarray:
    """Where each document's passages begin; they stand together, as they were added."""
    return np.concatenate([[0], np.flatnonzero(np.diff(owners)) + 1])


def _blocks(parts: Sequence[DiskSegment], dead: np.ndarray, dim: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Documents (n,) and their passages' unit vectors (n, dim) of all that are alive, whole documents at a time."""
    for part in parts:
        living = np.flatnonzero(~np.isin(segments.all_rows([part]), dead))
        if not len(living):
            continue
        owners = np.asarray(part.docs)[living]
        firsts = _firsts(owners)
        edges = [0]
        while edges[-1] < len(living):  # on to the first document that begins a block later
            later = np.searchsorted(firsts, edges[-1] + _BLOCK)
            edges.append(int(firsts[later]) if later < len(firsts) else len(living))
        for start, stop in pairwise(edges):
            yield owners[start:stop], unit(part.vectors(living[start:stop])[:, :dim])


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; one that is zero in the dimensions that are left stays zero, and is like nothing."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32)
