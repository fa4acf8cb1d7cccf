"""Make systems to compare out of one index: search modes, instructions, widths and recipes of its vectors."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from searchkit.compression.measure import MeasureOptions, apply, measure, parse
from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.evaluation.comparison import System, system_of
from searchkit.evaluation.evaluate import check_modes, evaluate, judged_queries
from searchkit.evaluation.exact import search_exactly, unit
from searchkit.indexer.files import locked
from searchkit.metrics import DEPTH, drop_own
from searchkit.ranking import SearchOptions
from searchkit.records import Judgements, Run
from searchkit.searcher import Searcher

_BY_VECTORS = ("dense", "hybrid")


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to search an index: a mode, the label of an instruction, a width or a recipe of the vectors."""

    mode: str
    label: str = ""
    dim: int = 0
    recipe: str = ""

    @property
    def name(self) -> str:
        """Name of the system, such as "dense", "dense 64", "hybrid B" or "hybrid int8 B"."""
        label = self.label if self.mode in _BY_VECTORS else ""
        return " ".join(filter(None, (self.mode, str(self.dim or ""), self.recipe, label)))


@dataclass(frozen=True, slots=True)
class Variants:
    """Ways to search one index.

    Args:
        modes: Some of `EVALUATION_MODES`; those that ignore instructions are searched once.
        instructions: Label -> instruction, each for all queries, in place of their own; None keeps that of the
            judgements and of the queries.
        dims: Widths: the first dimensions of the vectors, normalised again and searched exactly.
        recipes: Names such as "pq:48+rerank"; a copy of the index is stored so, tuned as `searchkit compress` does,
            with no vectors beside the codes but for re-ranking. It is searched in those of the modes that use vectors,
            or in dense mode.
    """

    modes: Sequence[str] = ("hybrid",)
    instructions: Mapping[str, str | None] | None = None
    dims: Sequence[int] = ()
    recipes: Sequence[str] = ()

    def check(self, dim: int) -> None:
        """Raise InputError if a mode, a width or a recipe is impossible for vectors of `dim` dimensions."""
        if self.modes or not (self.dims or self.recipes):
            check_modes(self.modes)
        if wrong := [width for width in self.dims if not 1 <= width <= dim]:
            raise InputError(
                f"widths are {', '.join(map(str, wrong))}; the index's vectors are {dim} wide, so 1 to {dim}"
            )
        for recipe in self.recipes:
            parse(recipe, dim, 1)

    def each(self) -> list[Variant]:
        """Every variant once, those of a recipe one after another."""
        labels = list(self.instructions or [""])
        by_vectors = [mode for mode in self.modes if mode in _BY_VECTORS] or ["dense"]
        variants = []
        for label in labels:
            variants += [Variant(mode, label) for mode in self.modes]
            variants += [Variant("dense", label, dim=dim) for dim in self.dims]
        for recipe in self.recipes:
            variants += [Variant(mode, label, recipe=recipe) for label in labels for mode in by_vectors]
        unique: dict[str, Variant] = {}
        for variant in variants:
            unique.setdefault(variant.name, variant)
        return list(unique.values())

    def names(self) -> list[str]:
        """The names of the systems, in the order in which `sweep` returns them."""
        return [variant.name for variant in self.each()]

    def judgements(self, judgements: Judgements, label: str) -> Judgements:
        """The judgements with the instruction of a label."""
        if self.instructions is None:
            return judgements
        queries = [replace(query, instruction=None) for query in judgements.queries]
        return replace(judgements, queries=queries, instruction=self.instructions[label])


def sweep(
    engine: Searcher,
    judgements: Judgements,
    variants: Variants,
    *,
    options: SearchOptions | None = None,
    on_system: Callable[[str], None] | None = None,
) -> list[System]:
    """Search an index in every mode under every instruction, its vectors cut to widths and stored by recipes.

    Args:
        engine: The index.
        judgements: Queries and qrels.
        variants: What to search with.
        options: Fusion settings; their mode is ignored.
        on_system: Called with each system's name before it is measured.

    Returns:
        A system for each variant.

    Raises:
        InputError: A mode, a width or a recipe is impossible, or judgements and index do not belong together.
    """
    variants.check(engine.dim)
    if any(variant.dim for variant in variants.each()) and engine.similarity.name != "cosine":
        raise InputError(f"{engine.name} compares vectors otherwise than by the cosine; they cannot be cut")
    if any(variant.dim or variant.recipe for variant in variants.each()) and not isinstance(engine, SearchEngine):
        raise InputError(f"{engine.name} is on a server: its vectors can be cut and stored anew in its index folder")
    systems = []
    queries: dict[str, _Embedded] = {}
    for recipe, group in groupby(variants.each(), key=attrgetter("recipe")):
        with _prepared(engine, recipe) as searched:
            for variant in group:
                if on_system:
                    on_system(variant.name)
                judged = variants.judgements(judgements, variant.label)
                if not variant.dim:
                    systems.append(_searched(searched, judged, variant, options))
                    continue
                assert isinstance(engine, SearchEngine)
                if variant.label not in queries:
                    queries[variant.label] = _Embedded(engine, judged)
                systems.append(_cut(engine, judged, variant, queries[variant.label]))
    return systems


def _searched(engine: Searcher, judgements: Judgements, variant: Variant, options: SearchOptions | None) -> System:
    (result,) = evaluate(engine, judgements, modes=[variant.mode], options=options)
    seconds, size = result.seconds_per_query, result.bytes_per_document
    return system_of(variant.name, result.run, judgements.qrels, seconds=seconds, size=size)


def _prepared(engine: Searcher, recipe: str) -> AbstractContextManager[Searcher]:
    """The index as it is, or a copy of it that is stored by a recipe."""
    if not recipe:
        return nullcontext(engine)
    assert isinstance(engine, SearchEngine)
    return _stored_as(engine, recipe)


@contextmanager
def _stored_as(engine: SearchEngine, recipe: str) -> Iterator[SearchEngine]:
    """A copy of an index whose vectors are stored by a recipe, tuned on phrases of its own documents."""
    with tempfile.TemporaryDirectory(prefix="searchkit-") as temporary:
        folder = Path(temporary) / "index"
        with locked(engine.store.folder):
            shutil.copytree(engine.store.folder, folder)
        model = engine.embedder if engine.has_model else None
        with SearchEngine.open(folder, model=model, writable=True) as copy:
            candidate = measure(copy, options=MeasureOptions(recipes=[recipe]), on_skipped=_refuse)[-1]
            apply(copy, candidate, drop_vectors=not candidate.tuning.rerank)
            yield copy


def _refuse(recipe: str, why: str) -> None:
    raise InputError(f"{recipe} does not fit this index: {why}")


class _Embedded:
    """Queries with their vectors, and the seconds that embedding took."""

    def __init__(self, engine: SearchEngine, judgements: Judgements) -> None:
        if not all(part.keeps_vectors for part in engine.store.snapshot().segments):
            raise InputError(
                f"{engine.store.folder} keeps no vectors beside its codes, and codes cannot be cut; "
                "index the corpus again"
            )
        self.queries = judged_queries(engine, judgements)
        engine.warm_up()
        began = time.perf_counter()
        self.vectors = engine.embed(self.queries, judgements.instruction)
        self.seconds = time.perf_counter() - began


def _cut(engine: SearchEngine, judgements: Judgements, variant: Variant, embedded: _Embedded) -> System:
    """The index with its vectors cut to a width."""
    dim, queries, snapshot = variant.dim, embedded.queries, engine.store.snapshot()
    docs, scores, seconds = search_exactly(
        snapshot.segments, snapshot.dead, unit(embedded.vectors[:, :dim]), DEPTH + judgements.drop_self
    )
    ids = engine.store.documents.ids_of(set(docs.ravel().tolist()))
    run: Run = {
        query.id: {ids[doc]: value for doc, value in zip(row, values, strict=True)}
        for query, row, values in zip(queries, docs.tolist(), scores.tolist(), strict=True)
    }
    return system_of(
        variant.name,
        drop_own(run) if judgements.drop_self else run,
        judgements.qrels,
        seconds=(embedded.seconds + seconds) / len(queries),
        size=4 * dim * snapshot.passages / max(1, snapshot.documents),
    )
