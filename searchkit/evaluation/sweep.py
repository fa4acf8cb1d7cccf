"""Make systems to compare out of one index: search modes, instructions, widths and recipes of its vectors."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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

_BY_VECTORS = ("dense", "hybrid")


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

    def names(self) -> list[str]:
        """The names of the systems, in the order in which `sweep` returns them."""
        labels = list(self.instructions or [""])
        names = [
            name
            for label in labels
            for name in (
                *(_name(mode, label if mode in _BY_VECTORS else "") for mode in self.modes),
                *(_name(f"dense {dim}", label) for dim in self.dims),
            )
        ]
        names += [
            _name(mode, recipe, label) for recipe in self.recipes for label in labels for mode in self.recipe_modes()
        ]
        return list(dict.fromkeys(names))

    def recipe_modes(self) -> list[str]:
        """The modes in which recipes are searched."""
        return [mode for mode in self.modes if mode in _BY_VECTORS] or ["dense"]


def sweep(
    engine: SearchEngine,
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
        Systems named by mode, width or recipe, and label, such as "dense", "dense 64", "hybrid B", "hybrid int8 B".

    Raises:
        InputError: A mode, a width or a recipe is impossible, or judgements and index do not belong together.
    """
    variants.check(engine.dim)
    announce = on_system or (lambda name: None)
    judged_by = _by_label(judgements, variants.instructions)
    systems: dict[str, System] = {}
    for label, judged in judged_by.items():
        for mode in variants.modes:
            name = _name(mode, label if mode in _BY_VECTORS else "")
            if name not in systems:
                announce(name)
                systems[name] = _searched(engine, judged, mode, name, options)
        if variants.dims:
            systems |= _cut(engine, judged, label, variants.dims, announce)
    for recipe in dict.fromkeys(variants.recipes):
        with _stored_as(engine, recipe) as copy:
            for label, judged in judged_by.items():
                for mode in variants.recipe_modes():
                    name = _name(mode, recipe, label)
                    announce(name)
                    systems[name] = _searched(copy, judged, mode, name, options)
    return list(systems.values())


def _name(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _by_label(judgements: Judgements, instructions: Mapping[str, str | None] | None) -> dict[str, Judgements]:
    if instructions is None:
        return {"": judgements}
    queries = [replace(query, instruction=None) for query in judgements.queries]
    return {
        label: replace(judgements, queries=queries, instruction=instruction)
        for label, instruction in instructions.items()
    }


def _searched(
    engine: SearchEngine, judgements: Judgements, mode: str, name: str, options: SearchOptions | None
) -> System:
    (evaluation,) = evaluate(engine, judgements, modes=[mode], options=options)
    return system_of(
        name,
        evaluation.run,
        judgements.qrels,
        seconds=evaluation.seconds_per_query,
        size=evaluation.bytes_per_document,
    )


@contextmanager
def _stored_as(engine: SearchEngine, recipe: str) -> Iterator[SearchEngine]:
    """A copy of an index whose vectors are stored by a recipe, tuned on phrases of its own documents."""
    with tempfile.TemporaryDirectory(prefix="searchkit-") as temporary:
        folder = Path(temporary) / "index"
        with locked(engine.store.folder):
            shutil.copytree(engine.store.folder, folder)
        with SearchEngine.open(folder, model=engine.embedder, writable=True) as copy:
            candidate = measure(copy, options=MeasureOptions(recipes=[recipe]), on_skipped=_refuse)[-1]
            apply(copy, candidate, drop_vectors=not candidate.tuning.rerank)
            yield copy


def _refuse(recipe: str, why: str) -> None:
    raise InputError(f"{recipe} does not fit this index: {why}")


def _cut(
    engine: SearchEngine, judgements: Judgements, label: str, dims: Sequence[int], announce: Callable[[str], None]
) -> dict[str, System]:
    """A system for each width, by name."""
    queries = judged_queries(engine, judgements)
    snapshot = engine.store.snapshot()
    if not all(part.keeps_vectors for part in snapshot.segments):
        raise InputError(
            f"{engine.store.folder} keeps no vectors beside its codes, and codes cannot be cut; index the corpus again"
        )
    engine.embedder.encode_queries(["warm up"])  # loading the model must not count as search time
    began = time.perf_counter()
    vectors = engine.embed(queries, judgements.instruction)
    embedding = time.perf_counter() - began
    systems = {}
    for dim in dict.fromkeys(dims):
        name = _name(f"dense {dim}", label)
        announce(name)
        docs, scores, seconds = search_exactly(
            snapshot.segments, snapshot.dead, unit(vectors[:, :dim]), DEPTH + judgements.drop_self
        )
        ids = engine.store.documents.ids_of(set(docs.ravel().tolist()))
        run: Run = {
            query.id: {ids[doc]: value for doc, value in zip(row, values, strict=True)}
            for query, row, values in zip(queries, docs.tolist(), scores.tolist(), strict=True)
        }
        systems[name] = system_of(
            name,
            drop_own(run) if judgements.drop_self else run,
            judgements.qrels,
            seconds=(embedding + seconds) / len(queries),
            size=4 * dim * snapshot.passages / max(1, snapshot.documents),
        )
    return systems
