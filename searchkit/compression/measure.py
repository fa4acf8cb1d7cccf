"""Measure ways to store an index's vectors, and apply one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from searchkit.compression.sample import InMemory, Sample, drawn, queries_of
from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.indexer.vectors import faiss_gpu as gpu
from searchkit.indexer.vectors import faiss_index as dense
from searchkit.indexer.vectors.recipes import RECIPES, Plan, Tuning, default_tuning, nearest, plan
from searchkit.indexer.vectors.segments import DiskSegment
from searchkit.indexer.vectors.storage import Storage
from searchkit.metrics import drop_own, score
from searchkit.ranking import Ranker, SearchOptions
from searchkit.records import Judgements

SAMPLE = 100_000
"""Vectors that are measured at most; fewer where they are so wide that they would take more than SAMPLE_BYTES."""

SAMPLE_BYTES = 512 << 20

RERANK = "+rerank"

_WIDE = 1024
"""Dimensions from which on principal components are tried, and rotations are not."""
_PROBED = (16, 32, 64, 128, 256, 512)
_RERANKED = (2, 5, 10, 20, 50)
_ROUNDS = 3
_DENSE = SearchOptions(mode="dense")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to store the vectors, measured.

    Args:
        name: Recipe and whether it is re-ranked, such as "pq:48+rerank".
        recipe: Its recipe alone, such as "pq:48".
        tuning: How hard it was searched: the cheapest that reaches the recall that was wanted, or nearly its best.
        bytes_per_vector: Bytes that a vector takes in what a search goes through: its code, its number, its links.
        memory: Bytes of all that a search goes through, codebooks included, for the whole index.
        disk: Bytes on disk for the whole index; with the half-precision vectors where it is re-ranked by them.
        recall_10: k-NN recall@10 against exact search.
        recall_100: k-NN recall@100 against exact search.
        ndcg_10: nDCG@10 by judgements, vectors alone; None without judgements.
        ndcg_change: By which part of it nDCG@10 differs from that of exact search: -0.01 is a loss of 1 %.
        latency: Seconds a query asked alone, without embedding it, brought up to the whole index's size.
        per_second: Queries a second, asked one at a time, over the sample.
        per_second_64: Queries a second, asked 64 at a time, over the sample.
        train_seconds: To learn from the training vectors.
        build_seconds: To add the sample.
        trained_on: Training vectors there were.
        wanted: Training vectors the recipe wants.
        sample: Vectors measured.
        total: Vectors in the index.
        queries: Queries asked.
    """

    name: str
    recipe: str
    tuning: Tuning
    bytes_per_vector: float
    memory: int
    disk: int
    recall_10: float
    recall_100: float
    ndcg_10: float | None
    ndcg_change: float | None
    latency: float
    per_second: float
    per_second_64: float
    train_seconds: float
    build_seconds: float
    trained_on: int
    wanted: int
    sample: int
    total: int
    queries: int


@dataclass(frozen=True, slots=True)
class MeasureOptions:
    """What `measure` tries, and how.

    Args:
        recipes: Names such as "pq:48+rerank"; None takes `default_recipes`. "flat", the reference, is always measured.
        recall: The k-NN recall@10 that IVF lists, graphs and re-ranking are tuned to reach.
        tunings: Search effort by recipe name, where it was tuned before and should not be tuned on these queries.
        sample: Most vectors to measure.
        seed: Seed of everything drawn at random.
    """

    recipes: Sequence[str] | None = None
    recall: float = 0.95
    tunings: Mapping[str, Tuning] = field(default_factory=dict)
    sample: int = SAMPLE
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.recall <= 1:
            raise InputError(f"recall is {self.recall}; expected more than 0 and at most 1, such as 0.95")


def measure(
    engine: SearchEngine,
    judgements: Judgements | None = None,
    *,
    options: MeasureOptions | None = None,
    on_recipe: Callable[[str, int, int], None] | None = None,
    on_skipped: Callable[[str, str], None] | None = None,
) -> list[Candidate]:
    """Store the vectors, or a sample of them, by many recipes, and measure each; the index is not changed.

    Args:
        engine: The index; it keeps vectors in float32 or half precision. If it works on GPUs, recipes that can run
            there are measured there.
        judgements: Queries to search for, with qrels for nDCG@10 or without. None holds out passages, which are then
            neither stored nor trained on, and searches for a few words of each.
        options: Recipes and settings.
        on_recipe: Called with (name, number, total) before each recipe.
        on_skipped: Called with (name, reason) for a recipe that does not fit.

    Raises:
        InputError: There is no such recipe, too little to measure, or the vectors were dropped before.
    """
    options = options or MeasureOptions()
    snapshot = engine.store.snapshot()
    _check_keeps_vectors(engine, snapshot.segments)
    dim = engine.dim
    rng = np.random.default_rng(options.seed)
    judged = queries_of(judgements, rng) if judgements else None
    data = drawn(engine, judged, max(1, min(options.sample, SAMPLE_BYTES // (4 * dim))), rng)
    names = default_recipes(dim, engine.store.devices) if options.recipes is None else options.recipes
    plans: dict[Plan, list[bool]] = {plan("flat", dim, 1): [False]}
    for name in names:
        one, rerank = parse(name, dim, len(data.vectors))
        variants = plans.setdefault(one, [])
        if rerank not in variants:
            variants.append(rerank)
    candidates: list[Candidate] = []
    for number, (one, variants) in enumerate(plans.items(), 1):
        if one.needed > len(data.vectors):
            if on_skipped:
                on_skipped(one.spelling, f"it learns from {one.needed} vectors or more, there are {len(data.vectors)}")
            continue
        if on_recipe:
            on_recipe(" and ".join(_name(one, rerank) for rerank in variants), number, len(plans))
        exact = candidates[0].ndcg_10 if candidates else None
        candidates += _measured(engine, one, variants, data, judged, options.recall, options.tunings, exact, rng)
    return candidates


def default_recipes(dim: int, devices: Sequence[int] = ()) -> list[str]:
    """The names that `measure` tries; rotations, slow to learn, only where codes are so short that they help."""
    sizes = sorted({nearest(dim, dim / share) for share in (16, 8, 6, 4)})
    coded = [f"pq:{size}" for size in sizes] + [f"ivf-pq:{size}" for size in sizes]
    if dim < _WIDE:
        coded += [f"opq:{size}" for size in sizes[:2]]
    else:  # rotations of so many dimensions take hours to learn, and each byte of a code stands for fewer of fewer
        shrunk = dim // 4
        coded += [f"pca{shrunk}-{name}:{size}" for name in ("pq", "ivf-pq") for size in sizes[:2] if shrunk % size == 0]
    both = [name + ending for name in ("rabitq", "binary", *coded) for ending in ("", RERANK)]
    on_gpus = ["cagra"] if devices and not gpu.why_not(plan("cagra", dim, 1)) else []
    return ["fp16", "int8", "hnsw", *on_gpus, "ivf-int8", *both]


def quick_recipes(dim: int) -> list[str]:
    """What `searchkit index --recipe auto` chooses from: quick to learn, and good after re-ranking."""
    size = nearest(dim, dim / 8)
    return ["fp16", "int8", f"rabitq{RERANK}", f"binary{RERANK}", f"pq:{size}{RERANK}"]


def parse(name: str, dim: int, count: int) -> tuple[Plan, bool]:
    """The plan of a name, and whether it is re-ranked by exact vectors.

    Raises:
        ValueError: There is no such recipe.
    """
    rerank = name.strip().endswith(RERANK)
    one = plan(name.strip().removesuffix(RERANK), dim, max(1, count))
    if rerank and RECIPES[one.recipe].faithful:
        raise InputError(f"{name}: {one.recipe} holds the vectors themselves; write {one.recipe}")
    return one, rerank


def apply(engine: SearchEngine, choice: Candidate | str, *, drop_vectors: bool = False, seed: int = 0) -> Plan:
    """Store the index's vectors by a recipe, in one commit, without embedding anything again.

    Args:
        engine: The index, open for writing.
        choice: What `choose` chose, with its tuning; or a name, which gets the tuning that suits it by default.
        drop_vectors: Keep no half-precision vectors beside the codes: smallest, but no other recipe can follow.
        seed: Of the vectors that the recipe learns from.

    Raises:
        ValueError: No such recipe, too few vectors to learn from, vectors dropped now and needed, or dropped before.
    """
    dim, total = engine.dim, engine.passages
    name = choice if isinstance(choice, str) else choice.name
    one, rerank = parse(name, dim, total)
    if rerank and drop_vectors:
        raise InputError(
            f"{name} is re-ranked by the vectors that are to be dropped; "
            f"take {one.spelling} without re-ranking, or keep the vectors"
        )
    if isinstance(choice, str):
        tuning = replace(default_tuning(one, keep_vectors=True), rerank=10 if rerank else 0)
    else:
        # A larger index has more cells than the sample had: the same share of them is visited.
        before = plan(choice.recipe, dim, choice.sample).lists
        tuning = replace(choice.tuning, probes=math.ceil(choice.tuning.probes * one.lists / max(1, before)) or 1)
    return engine.store_as(one.spelling, keep_vectors=not drop_vectors, tuning=tuning, seed=seed)


def _check_keeps_vectors(engine: SearchEngine, parts: Sequence[DiskSegment]) -> None:
    if not all(part.keeps_vectors for part in parts):
        raise InputError(
            f"{engine.store.folder} keeps no vectors beside its {engine.storage.plan.spelling} codes, so that there is "
            "nothing to measure other recipes by; index the corpus again"
        )


def _measured(
    engine: SearchEngine,
    one: Plan,
    variants: Sequence[bool],
    data: Sample,
    judged: Judgements | None,
    goal: float,
    tunings: Mapping[str, Tuning],
    exact: float | None,
    rng: np.random.Generator,
) -> list[Candidate]:
    """One recipe, trained and built once, with and without re-ranking."""
    count = len(data.vectors)
    learnt = data.vectors[np.sort(rng.permutation(count)[: one.wanted])] if one.wanted else data.vectors[:0]
    began = time.perf_counter()
    devices = engine.store.devices
    template = gpu.train(one, learnt, devices)
    trained = time.perf_counter() - began
    began = time.perf_counter()
    index = gpu.encode(template, [data.vectors], count, one, devices)
    built = time.perf_counter() - began
    fixed = _size(template)
    each = (_size(index) - fixed) / count
    pieces = math.ceil(data.total / max(1, (1 << 30) // (4 * one.dim)))  # segments of about a gigabyte of float32
    memory = pieces * fixed + round(data.total * each)
    kind = RECIPES[one.recipe]
    codebook = 0 if kind.exact or one.recipe == "binary" else fixed
    # Half precision serves for re-ranking alone: where nothing is re-ranked, the stored form is all there is.
    segment = InMemory(gpu.to_gpu(index, one, devices), data.docs, data.half)
    found = []
    for rerank in variants:
        tuning = tunings.get(_name(one, rerank)) or _tuned(one, rerank, segment, data, goal)
        tenth, hundredth = (_search(segment, data.queries, k, one, tuning) for k in (10, 100))
        alone, together = _speeds(segment, data.queries, one, tuning)
        ndcg = None if judged is None or not judged.qrels else _ndcg(engine, one, tuning, segment, data.queries, judged)
        before = ndcg if exact is None else exact
        # A scan takes as long as what it goes through; a graph hardly grows with the number of vectors.
        larger = 1.0 if kind.graph else data.total / count
        found.append(
            Candidate(
                name=_name(one, rerank),
                recipe=one.spelling,
                tuning=tuning,
                bytes_per_vector=each,
                memory=memory,
                disk=memory + codebook + data.total * (8 + (2 * one.dim if rerank else 0)),
                recall_10=data.recall(tenth, data.tenth),
                recall_100=data.recall(hundredth, data.hundredth),
                ndcg_10=ndcg,
                ndcg_change=None if ndcg is None or not before else ndcg / before - 1,
                latency=alone * larger,
                per_second=1 / alone,
                per_second_64=1 / together,
                train_seconds=trained,
                build_seconds=built,
                trained_on=len(learnt),
                wanted=one.wanted,
                sample=count,
                total=data.total,
                queries=len(data.queries),
            )
        )
    return found


def _name(one: Plan, rerank: bool) -> str:
    return one.spelling + (RERANK if rerank else "")


def _size(index: Any) -> int:
    """Bytes that an index takes in a file, which are about those it takes in memory."""
    faiss = dense.faiss_module()
    if isinstance(index, dense.SignIndex):
        return int(faiss.serialize_index_binary(index.binary).nbytes)
    return int(faiss.serialize_index(index).nbytes)


def _search(segment: InMemory, queries: np.ndarray, k: int, one: Plan, tuning: Tuning) -> np.ndarray:
    rows, _ = dense.search([segment], queries, k, plan=one, tuning=tuning)
    return rows


def _tuned(one: Plan, rerank: bool, segment: InMemory, data: Sample, goal: float) -> Tuning:
    """The setting that reads the fewest bytes of those that reach the goal, or nearly the best there is."""
    widths: Sequence[int] = (1,)
    if one.lists:
        widths = [2**n for n in range(int(math.log2(one.lists)) + 1) if 2**n < one.lists] + [one.lists]
    elif RECIPES[one.recipe].tuned:
        widths = _PROBED

    def tuning(width: int, factor: int) -> Tuning:
        if one.lists:
            return Tuning(probes=width, rerank=factor)
        return Tuning(ef=width, rerank=factor) if len(widths) > 1 else Tuning(rerank=factor)

    known: dict[Tuning, float] = {}

    def reached(setting: Tuning) -> float:
        if setting not in known:
            rows = _search(segment, data.queries, 10, one, setting)
            known[setting] = data.recall(rows, data.tenth)
        return known[setting]

    factors = [factor for factor in _RERANKED if 10 * factor <= segment.count] or [1] if rerank else [0]
    if len(widths) == 1 and not rerank:
        return tuning(1, 0)
    most = {factor: reached(tuning(widths[-1], factor)) for factor in factors}
    enough = goal if max(most.values()) >= goal else 0.995 * max(most.values())
    code = max(1, one.code or one.width or one.dim)
    settings = []
    for factor in factors:
        if most[factor] >= enough:
            width = next(width for width in widths if reached(tuning(width, factor)) >= enough)
            read = width / widths[-1] * segment.count * code + 10 * factor * 2 * one.dim
            settings.append((read, -reached(tuning(width, factor)), tuning(width, factor)))
    return min(settings, key=lambda setting: setting[:2])[2]


def _speeds(segment: InMemory, queries: np.ndarray, one: Plan, tuning: Tuning) -> tuple[float, float]:
    """Seconds a query: asked one at a time, and 64 at a time; the best of some rounds, for others use the machine."""
    singles = queries[:64]
    crowd = np.resize(queries, (64, queries.shape[1]))
    alone, together = [], []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for query in singles:
            _search(segment, query[None], 10, one, tuning)
        alone.append((time.perf_counter() - began) / len(singles))
        began = time.perf_counter()
        _search(segment, crowd, 10, one, tuning)
        together.append((time.perf_counter() - began) / 64)
    return min(alone), min(together)


def _ndcg(
    engine: SearchEngine, one: Plan, tuning: Tuning, segment: InMemory, vectors: np.ndarray, judged: Judgements
) -> float:
    """nDCG@10 of the documents that the engine would rank, if this segment were its vectors."""
    snapshot = engine.store.snapshot()._replace(
        passages=segment.count,
        documents=len(np.unique(segment.docs)),
        next_row=segment.count,
        segments=[segment],  # type: ignore[list-item]
        dead=np.empty(0, np.int64),
        storage=Storage(one, tuning),
    )
    ranker = Ranker(engine.store, snapshot, _no_words)
    rankings = ranker.rank([query.text for query in judged.queries], vectors, 10 + judged.drop_self, _DENSE)
    ids = engine.ids_of(rankings)
    run = {
        query.id: {ids[item.doc]: item.score for item in ranking}
        for query, ranking in zip(judged.queries, rankings, strict=True)
    }
    return score(drop_own(run) if judged.drop_self else run, judged.qrels)[0]["ndcg@10"]


def _no_words() -> Any:
    raise AssertionError("a dense ranking asks for no words")
