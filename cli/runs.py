"""The RUNs of `searchkit compare`: files and indexes, and in which ways an index is searched."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING

import click

from searchkit.cli.judgements import JudgementOptions
from searchkit.cli.options import FusionOptions, ModelOptions, as_record
from searchkit.cli.output import note
from searchkit.cli.types import EVALUATION_MODES, RECIPES, ListOf

if TYPE_CHECKING:
    from searchkit.evaluation.comparison import System
    from searchkit.evaluation.sweep import Variants
    from searchkit.records import Judgements, Qrels, Query
    from searchkit.remote.address import MilvusAddress
    from searchkit.searcher import Searcher


@dataclass(frozen=True, slots=True)
class VariantOptions:
    """What an index is searched with."""

    modes: tuple[str, ...]
    instruction: tuple[str, ...]
    dims: tuple[int, ...]
    recipes: tuple[str, ...]

    @property
    def labels(self) -> dict[str, str]:
        """The instructions, as A, B, C ..."""
        if len(self.instruction) > len(ascii_uppercase):
            raise click.UsageError(f"{len(self.instruction)} instructions; give at most {len(ascii_uppercase)}")
        return dict(zip(ascii_uppercase, self.instruction, strict=False))

    def variants(self) -> Variants:
        """As the library takes them."""
        from searchkit.evaluation.sweep import Variants

        modes = self.modes or (() if self.dims or self.recipes else ("hybrid",))
        return Variants(modes, self.labels or None, self.dims, self.recipes)


variant_options = as_record(
    "options",
    VariantOptions,
    click.option(
        "--modes",
        default=(),
        type=EVALUATION_MODES,
        help="Search modes of an index [default: hybrid]; modes of a report [default: all].",
    ),
    click.option(
        "--instruction",
        multiple=True,
        help='Search an index with this instruction. "": none. Repeatable: systems A, B, C ...',
    ),
    click.option(
        "--dims",
        default=(),
        type=ListOf(int, "384,128,64"),
        help="Cut an index's vectors to these dimensions, as 384,128,64; exact search.",
    ),
    click.option(
        "--recipes", default=(), type=RECIPES, help="Store copies of an index by these recipes, as int8,pq:48+rerank."
    ),
)


class FileSystems:
    """The systems of a TREC run or a report."""

    def __init__(self, name: str, path: Path, judged: JudgementOptions, qrels: Qrels, options: VariantOptions) -> None:
        from searchkit.evaluation.comparison import read_systems

        drop_self = judged.drops_self()
        systems = read_systems(path, qrels or None, name=name, drop_self=drop_self)
        self.systems = [
            system
            for system in systems
            if not options.modes or ":" not in system.name or system.name.rpartition(":")[2] in options.modes
        ]

    def names(self, alone: bool) -> list[str]:
        return [system.name for system in self.systems]

    def search(self, alone: bool, fusion: FusionOptions) -> list[System]:
        return self.systems


class IndexSystems:
    """The systems of an index, searched in every way that the options ask for."""

    def __init__(
        self,
        name: str,
        engine: Searcher,
        judged: JudgementOptions,
        queries: list[Query],
        qrels: Qrels,
        options: VariantOptions,
    ) -> None:
        from searchkit.evaluation.evaluate import judged_queries
        from searchkit.records import Judgements

        if not (queries and qrels):
            raise click.UsageError(f"searching {engine.name} takes --beir FOLDER, or --queries FILE and --qrels FILE")
        self.name, self.engine, self.variants = name, engine, options.variants()
        self.variants.check(engine.dim)
        instruction, drop_self = (None, judged.drops_self()) if options.labels else judged.rules(engine)
        self.judgements: Judgements = Judgements(str(judged.source), queries, qrels, instruction, drop_self)
        judged_queries(engine, self.judgements)

    def names(self, alone: bool) -> list[str]:
        """The systems' names, before anything is searched."""
        return [self._name(name, alone) for name in self.variants.names()]

    def search(self, alone: bool, fusion: FusionOptions) -> list[System]:
        from searchkit.evaluation.sweep import sweep

        systems = sweep(
            self.engine,
            self.judgements,
            self.variants,
            options=fusion.search_options(),
            on_system=lambda name: note(f"searching {name} ..."),
        )
        return [replace(system, name=self._name(system.name, alone)) for system in systems]

    def _name(self, system: str, alone: bool) -> str:
        return system if alone else f"{self.name}: {system}"


def named_runs(runs: tuple[str, ...]) -> list[tuple[str, Path | MilvusAddress]]:
    """Each run's name, by default as much of the end of its path as sets it apart, and its file or index."""
    from searchkit.remote.address import is_milvus, parse_milvus

    paths: list[tuple[str | None, Path | MilvusAddress]] = []
    for run in runs:
        name, equals, file = run.partition("=")
        if is_milvus(run) or (equals and is_milvus(file)):
            paths.append((None, parse_milvus(run)) if is_milvus(run) else (name, parse_milvus(file)))
            continue
        path = Path(run) if not equals or Path(run).exists() else Path(file)
        if not path.is_file() and not (path / "index.db").is_file():
            raise click.UsageError(
                f"there is no file or index {path}; a RUN is an index, a TREC run, a report in JSON, or NAME=RUN"
            )
        paths.append((None if path == Path(run) else name, path))
    stems = [place.with_suffix("").parts if isinstance(place, Path) else (place.collection,) for _, place in paths]
    names = []
    for (name_given, place), parts in zip(paths, stems, strict=True):
        longest = max((_common_suffix(parts, other) for other in stems if other != parts), default=0)
        names.append((name_given or "/".join(parts[-1 - longest :]), place))
    return names


def is_index(path: Path | MilvusAddress) -> bool:
    return not isinstance(path, Path) or path.is_dir()


def _common_suffix(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """How many parts at the end of two paths are equal."""
    length = 0
    while length < min(len(first), len(second)) and first[-1 - length] == second[-1 - length]:
        length += 1
    return length


def refuse_index_options(context: click.Context) -> None:
    """Raise UsageError on an option that would have no effect because no RUN is an index."""
    records = (VariantOptions, FusionOptions, ModelOptions)
    only_indexes = {field.name for record in records for field in fields(record)} - {"modes"}
    for parameter in context.command.params:
        used = context.get_parameter_source(parameter.name or "") is not click.core.ParameterSource.DEFAULT
        if parameter.name in only_indexes and used:
            raise click.UsageError(f"{parameter.opts[0]} is for an index, and no RUN is one")
