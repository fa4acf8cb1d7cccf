"""Measure ways to store an index's vectors, and apply one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from searchkit.compression.sample import QUERIES, InMemory, Sample, draw, held_out, queries_of
from searchkit.compression.tuning import search, tuned
from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.folder_ranker import FolderRanker
from searchkit.indexer.vectors.backend import VectorBackend
from searchkit.indexer.vectors.recipes import RECIPES, Plan, Tuning, default_tuning, nearest, plan
from searchkit.indexer.vectors.storage import Storage
from searchkit.metrics import drop_own, score
from searchkit.ranking import SearchOptions, SearchRequest
from searchkit.records import Judgements

SAMPLE = 100_000
"""Most vectors that are measured; fewer if they are so wide that they would take more than SAMPLE_BYTES."""

SAMPLE_BYTES = 512 << 20

RERANK = "+rerank"

_WIDE = 1024  # dimensions from which on principal components are tried
_ROUNDS = 3
_DENSE = SearchOptions(mode="dense")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to store the vectors, measured.

    Args:
        name: Recipe and whether it is re-ranked, such as "pq:48+rerank".
        recipe: The recipe alone, such as "pq:48".
        tuning: How hard it was searched: the cheapest that reaches the wanted recall, or nearly its best.
        bytes_per_vector: Bytes of a vector in what a search reads: its code, its number, its links.
        memory: Bytes of everything a search reads, codebooks included, for the whole index.
        disk: Bytes on disk for the whole index; with the half-precision vectors if it is re-ranked by them.
        recall_10: k-NN recall@10 against exact search.
        recall_100: k-NN recall@100 against exact search.
        ndcg_10: nDCG@10 by judgements, dense search alone; None without judgements.
        ndcg_change: Relative difference of nDCG@10 to exact search: -0.01 is a loss of 1 %.
        latency: Seconds for a single query, without embedding it, scaled to the whole index.
        per_second: Queries per second, one at a time, over the sample.
        per_second_64: Queries per second, 64 at a time, over the sample.
        train_seconds: Time to train.
        build_seconds: Time to add the sample.
        trained_on: Training vectors there were.
        wanted: Training vectors the recipe wants.
        sample: Vectors measured.
        total: Vectors in the index.
        queries: Queries searched.
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
        tunings: Tunings by recipe name, where they were found before and should not be found by these queries.
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

    Returns:
        The candidates in the order of the recipes, "flat" first.

    Raises:
        InputError: There is no such recipe, too little to measure, or the vectors were dropped before.
    """
    options = options or MeasureOptions()
    if not all(part.keeps_vectors for part in engine.store.snapshot().segments):
        raise InputError(
            f"{engine.store.folder} keeps no vectors beside its {engine.storage.plan.spelling} codes, so that there is "
            "nothing to measure other recipes by; index the corpus again"
        )
    rng = np.random.default_rng(options.seed)
    judged = queries_of(judgements, rng) if judgements else None
    sample = draw(engine, judged, _most(engine, options), rng)
    plans = _plans(engine, options, sample.count)
    candidates: list[Candidate] = []
    for number, (chosen, variants) in enumerate(plans.items(), 1):
        if chosen.needed > sample.count:
            if on_skipped:
                on_skipped(chosen.spelling, f"it trains on {chosen.needed} vectors or more, there are {sample.count}")
            continue
        if on_recipe:
            on_recipe(" and ".join(_name(chosen, rerank) for rerank in variants), number, len(plans))
        trial = _build(chosen, sample, engine.store.backend, rng)
        candidates += [_measured(engine, trial, rerank, sample, options) for rerank in variants]
    exact = candidates[0].ndcg_10
    return [
        replace(one, ndcg_change=one.ndcg_10 / exact - 1) if exact and one.ndcg_10 is not None else one
        for one in candidates
    ]


def estimate_seconds(
    engine: SearchEngine, judgements: Judgements | None = None, *, options: MeasureOptions | None = None
) -> float:
    """Roughly how long `measure` will take on an idle CPU core; within a factor of two where it was tried."""
    options = options or MeasureOptions()
    held = 0 if judgements else held_out(engine.passages)
    queries = min(QUERIES, len(judgements.queries)) if judgements else held
    count = max(0, min(_most(engine, options), engine.passages - held))
    seconds = 0.0
    for chosen, variants in _plans(engine, options, count).items():
        if chosen.needed > count:
            continue
        trained_on = min(count, chosen.wanted)
        # k-means: 25 rounds of distances to 256 centroids for each byte of a code; OPQ repeats it with its rotation.
        seconds += 3e-9 * trained_on * 256 * 25 * chosen.code * (25 if chosen.recipe == "opq" else 1)
        seconds += 1e-10 * trained_on * 10 * chosen.lists * chosen.dim
        seconds += 1e-4 * count if RECIPES[chosen.recipe].graph else 0  # linking
        seconds += 2e-8 * count * queries * 12 * len(variants)  # about twelve searches: recall, tuning, latency
    return seconds


def default_recipes(dim: int, backend: VectorBackend | None = None) -> list[str]:
    """The names that `measure` tries.

    "opq" is not among them: training its rotation takes 25 times as long as "pq", and re-ranked both lose nothing
    (Cranfield with the built-in model: opq:24 12 s and nDCG@10 .4841, pq:24 0.5 s and .4852).
    """
    sizes = sorted({nearest(dim, dim / share) for share in (16, 8, 6, 4)})
    coded = [f"pq:{size}" for size in sizes] + [f"ivf-pq:{size}" for size in sizes]
    if dim >= _WIDE:  # a byte of a code describes many dimensions there, of which the principal ones matter
        shrunk = dim // 4
        coded += [f"pca{shrunk}-{name}:{size}" for name in ("pq", "ivf-pq") for size in sizes[:2] if shrunk % size == 0]
    both = [name + ending for name in ("rabitq", "binary", *coded) for ending in ("", RERANK)]
    on_gpus = ["cagra"] if backend and backend.accelerates(plan("cagra", dim, 1)) else []
    return ["fp16", "int8", "hnsw", *on_gpus, "ivf-int8", *both]


def quick_recipes(dim: int) -> list[str]:
    """What `searchkit index --recipe auto` chooses from: quick to train, and good after re-ranking."""
    return ["fp16", "int8", f"rabitq{RERANK}", f"binary{RERANK}", f"pq:{nearest(dim, dim / 8)}{RERANK}"]


def parse(name: str, dim: int, count: int) -> tuple[Plan, bool]:
    """The plan of a name, and whether it is re-ranked by exact vectors.

    Raises:
        InputError: There is no such recipe.
    """
    rerank = name.strip().endswith(RERANK)
    chosen = plan(name.strip().removesuffix(RERANK), dim, max(1, count))
    if rerank and RECIPES[chosen.recipe].faithful:
        raise InputError(f"{name}: {chosen.recipe} holds the vectors themselves; write {chosen.recipe}")
    return chosen, rerank


def named_tuning(chosen: Plan, rerank: bool) -> Tuning:
    """How hard a recipe is searched that was chosen by its name, without measuring."""
    return replace(default_tuning(chosen, keep_vectors=True), rerank=10 if rerank else 0)


def apply(engine: SearchEngine, choice: Candidate | str, *, drop_vectors: bool = False, seed: int = 0) -> Plan:
    """Store the index's vectors by a recipe, in one commit, without embedding anything again.

    Args:
        engine: The index, open for writing.
        choice: What `choose` returned, with its tuning; or a name, which gets the default tuning.
        drop_vectors: Keep no half-precision vectors beside the codes: smallest, but no other recipe can follow.
        seed: Seed of the draw of training vectors.

    Raises:
        InputError: No such recipe, too few vectors to train on, vectors dropped now and needed, or dropped before.
    """
    name = choice if isinstance(choice, str) else choice.name
    chosen, rerank = parse(name, engine.width, engine.passages)
    if rerank and drop_vectors:
        raise InputError(
            f"{name} is re-ranked by the vectors that are to be dropped; "
            f"take {chosen.spelling} without re-ranking, or keep the vectors"
        )
    if isinstance(choice, str):
        tuning = named_tuning(chosen, rerank)
    else:
        # A larger index has more IVF lists than the sample had: the same share of them is visited.
        lists = plan(choice.recipe, engine.width, choice.sample).lists
        tuning = replace(choice.tuning, probes=math.ceil(choice.tuning.probes * chosen.lists / max(1, lists)) or 1)
    return engine.store_as(chosen.spelling, keep_vectors=not drop_vectors, tuning=tuning, seed=seed)


def _most(engine: SearchEngine, options: MeasureOptions) -> int:
    """Most vectors of the sample."""
    return max(1, min(options.sample, SAMPLE_BYTES // (4 * engine.width)))


def _plans(engine: SearchEngine, options: MeasureOptions, count: int) -> dict[Plan, list[bool]]:
    """Every plan with its variants: without re-ranking, with it, or both."""
    dim = engine.width
    plans: dict[Plan, list[bool]] = {plan("flat", dim, 1): [False]}
    for name in default_recipes(dim, engine.store.backend) if options.recipes is None else options.recipes:
        chosen, rerank = parse(name, dim, count)
        variants = plans.setdefault(chosen, [])
        if rerank not in variants:
            variants.append(rerank)
    return plans


@dataclass(frozen=True, slots=True)
class _Trial:
    """A recipe, trained on the sample and built from it.

    Args:
        plan: The recipe.
        segment: The sample stored by it.
        fixed: Bytes that do not grow with the vectors, such as codebooks.
        each: Bytes per vector.
        trained_on: Training vectors there were.
        train_seconds: Time to train.
        build_seconds: Time to add the sample.
    """

    plan: Plan
    segment: InMemory
    fixed: int
    each: float
    trained_on: int
    train_seconds: float
    build_seconds: float


def _build(chosen: Plan, sample: Sample, backend: VectorBackend, rng: np.random.Generator) -> _Trial:
    training = sample.vectors[:0]
    if chosen.wanted:
        training = sample.vectors[np.sort(rng.permutation(sample.count)[: chosen.wanted])]
    began = time.perf_counter()
    template = backend.train(chosen, training)
    trained = time.perf_counter()
    index = backend.build(template, [sample.vectors], sample.count)
    built = time.perf_counter()
    fixed = template.nbytes
    return _Trial(
        plan=chosen,
        segment=InMemory(index, sample.docs, sample.half),
        fixed=fixed,
        each=(index.nbytes - fixed) / sample.count,
        trained_on=len(training),
        train_seconds=trained - began,
        build_seconds=built - trained,
    )


def _measured(engine: SearchEngine, trial: _Trial, rerank: bool, sample: Sample, options: MeasureOptions) -> Candidate:
    chosen, segment, queries = trial.plan, trial.segment, sample.queries
    kind = RECIPES[chosen.recipe]
    pieces = math.ceil(sample.total / max(1, (1 << 30) // (4 * chosen.dim)))  # segments of about 1 GiB of float32
    memory = pieces * trial.fixed + round(sample.total * trial.each)
    codebook = 0 if kind.exact or chosen.recipe == "binary" else trial.fixed
    # Half precision serves re-ranking only; without it, the codes are all that is kept.
    halves = 2 * chosen.dim if rerank else 0
    name = _name(chosen, rerank)
    tuning = options.tunings.get(name) or tuned(chosen, rerank, segment, sample, options.recall)
    single, batched = _speeds(segment, queries, chosen, tuning)
    return Candidate(
        name=name,
        recipe=chosen.spelling,
        tuning=tuning,
        bytes_per_vector=trial.each,
        memory=memory,
        disk=memory + codebook + sample.total * (8 + halves),
        recall_10=sample.recall(search(segment, queries, 10, chosen, tuning), sample.tenth),
        recall_100=sample.recall(search(segment, queries, 100, chosen, tuning), sample.hundredth),
        ndcg_10=_ndcg(engine, chosen, tuning, segment, sample) if sample.judged and sample.judged.qrels else None,
        ndcg_change=None,
        # The time of a scan grows with what it reads; that of a graph search hardly grows with the vectors.
        latency=single * (1.0 if kind.graph else sample.total / sample.count),
        per_second=1 / single,
        per_second_64=1 / batched,
        train_seconds=trial.train_seconds,
        build_seconds=trial.build_seconds,
        trained_on=trial.trained_on,
        wanted=chosen.wanted,
        sample=sample.count,
        total=sample.total,
        queries=len(queries),
    )


def _name(chosen: Plan, rerank: bool) -> str:
    return chosen.spelling + (RERANK if rerank else "")


def _speeds(segment: InMemory, queries: np.ndarray, chosen: Plan, tuning: Tuning) -> tuple[float, float]:
    """Seconds per query, one at a time and 64 at a time; the best of some rounds, as other work slows the machine."""
    singles = queries[:64]
    batch = np.resize(queries, (64, queries.shape[1]))
    single, batched = [], []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for query in singles:
            search(segment, query[None], 10, chosen, tuning)
        single.append((time.perf_counter() - began) / len(singles))
        began = time.perf_counter()
        search(segment, batch, 10, chosen, tuning)
        batched.append((time.perf_counter() - began) / 64)
    return min(single), min(batched)


def _ndcg(engine: SearchEngine, chosen: Plan, tuning: Tuning, segment: InMemory, sample: Sample) -> float:
    """nDCG@10 of the documents that the engine would rank if this segment were its vectors."""
    judged = sample.judged
    assert judged is not None
    snapshot = engine.store.snapshot()._replace(
        passages=segment.count,
        documents=len(np.unique(segment.docs)),
        next_row=segment.count,
        segments=[segment],  # type: ignore[list-item]
        dead=np.empty(0, np.int64),
        storage=Storage(chosen, tuning),
    )
    ranker = FolderRanker(engine.store, snapshot)
    texts = [query.text for query in judged.queries]
    rankings = ranker.rank(SearchRequest(texts, sample.queries, 10 + judged.drop_self, _DENSE))
    ids = engine.ids_of(rankings)
    run = {
        query.id: {ids[item.doc]: item.score for item in ranking}
        for query, ranking in zip(judged.queries, rankings, strict=True)
    }
    return score(drop_own(run) if judged.drop_self else run, judged.qrels)[0]["ndcg@10"]
