"""`searchkit compress`: how small the vectors can be stored, and what that costs."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.judgements import JudgementOptions, judgement_and_vector_options
from searchkit.cli.options import (
    InstructionOptions,
    ModelOptions,
    as_record,
    instruction_options,
    model_options,
    needs_plots,
    report_option,
    table_or_json,
)
from searchkit.cli.output import note, print_json, print_table, readable_bytes, write_json
from searchkit.cli.types import INDEX, NEW_FILE, RECIPES, Finite
from searchkit.errors import InputError

if TYPE_CHECKING:
    from searchkit.compression.choice import Limits
    from searchkit.compression.measure import Candidate, MeasureOptions
    from searchkit.engine import SearchEngine
    from searchkit.records import Judgements

_RECALL = 0.95
_FEW = 1000
"""Passages below which choosing a recipe is not worth it."""

_SIZES = {"": 1.0, "b": 1.0, **{f"{letter}b": 10.0 ** (3 * n) for n, letter in enumerate("kmgt", 1)}}
_SIZES |= {f"{letter}ib": 2.0 ** (10 * n) for n, letter in enumerate("kmgt", 1)}
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class _Amount(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number with a unit, such as 8GB or 5ms."""

    name = "amount"

    def __init__(self, units: dict[str, float], example: str) -> None:
        self.units, self.example = units, example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value).strip().lower())
        if not match or match[2] not in self.units or not float(match[1]):
            self.fail(f"{value!r} is not an amount; write it as in {self.example}", param, ctx)
        return float(match[1]) * self.units[match[2]]


@dataclass(frozen=True, slots=True)
class LimitOptions:
    """What a recipe has to keep to."""

    recall: float | None
    max_bytes: float | None
    max_memory: float | None
    latency: float | None

    @property
    def given(self) -> bool:
        """Whether any limit was set."""
        return any(limit is not None for limit in (self.recall, self.max_bytes, self.max_memory, self.latency))

    def limits(self) -> Limits:
        """As the library takes them."""
        from searchkit.compression.choice import Limits

        return Limits(self.recall or _RECALL, self.max_bytes, self.max_memory, self.latency)


_limit_options = as_record(
    "limits",
    LimitOptions,
    click.option(
        "--recall",
        type=Finite(0, 1, min_open=True),
        help="Lowest k-NN recall@10; IVF and graph search are tuned for it. [default: 0.95]",
    ),
    click.option("--max-bytes", type=_Amount(_SIZES, "64"), metavar="BYTES", help="Most bytes per vector."),
    click.option(
        "--max-memory", type=_Amount(_SIZES, "8GB or 512MiB"), metavar="SIZE", help="Most memory for all vectors: 8GB."
    ),
    click.option("--latency", type=_Amount(_TIMES, "5ms or 0.1s"), metavar="TIME", help="Longest time per query: 5ms."),
)


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Where the results go."""

    output: str
    report: Path | None
    plot: Path | None
    dark: bool


_report_options = as_record(
    "results",
    ReportOptions,
    table_or_json,
    report_option,
    click.option("--plot", type=NEW_FILE, callback=needs_plots, help="Draw a chart, as PNG and SVG."),
    click.option("--dark", is_flag=True, help="Draw the chart for dark pages."),
)


@click.command()
@click.argument("index", type=INDEX)
@click.option(
    "--recipes",
    type=RECIPES,
    help="Measure these, as pq:48,pq:48+rerank,int8. [default: all that suit, except opq, which trains slowly]",
)
@judgement_and_vector_options
@instruction_options
@_limit_options
@click.option("--apply", "do_apply", is_flag=True, help="Store the index by the smallest recipe within all limits.")
@click.option("--recipe", help="With --apply: use this recipe, without measuring.")
@click.option("--drop-vectors", is_flag=True, help="With --apply: keep only codes. The recipe cannot change later.")
@click.option("--sample", default=100_000, show_default=True, type=click.IntRange(2), help="Most vectors to measure.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Random seed.")
@_report_options
@model_options
def compress(
    index: Path,
    recipes: tuple[str, ...] | None,
    judged: JudgementOptions,
    wording: InstructionOptions,
    limits: LimitOptions,
    do_apply: bool,
    recipe: str | None,
    drop_vectors: bool,
    sample: int,
    seed: int,
    results: ReportOptions,
    model: ModelOptions,
) -> None:
    """Measure ways to store the vectors of INDEX in less space, and what each costs; with --apply, use one.

    Recall is measured against exact search. +rerank scores the best candidates again with half-precision vectors kept
    on disk. Queries are held-out phrases, unless --queries or --beir gives real ones; judgements add nDCG@10. Only
    --apply changes the index, in one commit; nothing is embedded again.

    \b
        searchkit compress papers.index --plot papers.png
        searchkit compress papers.index --recall 0.95 --max-memory 8GB --latency 5ms --apply
        searchkit compress papers.index --recipe pq:48+rerank --apply
    """
    if (recipe or drop_vectors) and not do_apply:
        raise click.UsageError("--recipe and --drop-vectors need --apply; to measure recipes: --recipes")
    if recipe and (limits.given or recipes):
        raise click.UsageError("--recipe is applied without measuring; it cannot be combined with limits or --recipes")
    from searchkit.compression.measure import MeasureOptions

    with model.open(index, writable=do_apply) as engine:
        if recipe:
            _apply(engine, recipe, drop_vectors, seed)
            return
        for name in recipes or ():
            check_recipe(engine, name)
        options = MeasureOptions(recipes, limits.recall or _RECALL, sample=sample, seed=seed)
        judgements = _judgements(engine, judged, wording)
        candidates = _measure(engine, judgements, options)
        chosen, problem = _choose(candidates, limits.limits(), drop_vectors)
        _show(index, candidates, limits.limits(), chosen, problem, results)
        if chosen is None:
            raise InputError(problem)
        if do_apply:
            _apply(engine, chosen, drop_vectors, seed)
        elif results.output == "table":
            note(
                f"> {chosen.name}: the least memory within the limits, codebooks included; to use it: --apply\n"
                "* no recipe has both fewer bytes per vector and more recall@10"
            )


def check_recipe(engine: SearchEngine, recipe: str) -> None:
    """Raise InputError now, rather than after an hour of work, if there is no such recipe."""
    from searchkit.compression.measure import parse

    if recipe != "auto":
        parse(recipe, engine.width, 1)


def store_by(engine: SearchEngine, recipe: str) -> None:
    """The end of `searchkit index --recipe`: store by the recipe, or say why flat is kept."""
    from searchkit.compression.choice import Limits, choose
    from searchkit.compression.measure import MeasureOptions, measure, parse, quick_recipes

    stored, passages = engine.storage.plan, engine.passages
    if recipe == "auto":
        if stored.recipe != "flat":
            return  # chosen by an earlier run
        if passages < _FEW:
            note(f"{passages} passages are too few to choose a recipe (at least {_FEW}): vectors are stored flat")
            return
        candidates = measure(engine, options=MeasureOptions(recipes=quick_recipes(stored.dim), sample=20_000))
        _apply(engine, choose(candidates, Limits()), drop_vectors=False, seed=0)
        return
    wanted, _ = parse(recipe, stored.dim, passages)
    if stored.spelling == wanted.spelling:
        return
    if passages < wanted.needed:
        note(
            f"{recipe} is trained on at least {wanted.needed} passages, and there are {passages}: {stored.spelling} is "
            f"kept. Later: searchkit compress {engine.name} --recipe {recipe} --apply"
        )
        return
    _apply(engine, recipe, drop_vectors=False, seed=0)


def _apply(engine: SearchEngine, choice: Candidate | str, drop_vectors: bool, seed: int) -> None:
    from searchkit.compression.measure import apply
    from searchkit.indexer.vectors.recipes import RECIPES

    before = engine.store.sizes()["segments"]
    plan = apply(engine, choice, drop_vectors=drop_vectors, seed=seed)
    after = engine.store.sizes()["segments"]
    tuning = engine.storage.tuning
    details = [f"{tuning.probes} of {plan.lists} IVF lists probed"] if plan.lists else []
    details += [f"efSearch {tuning.ef}"] if RECIPES[plan.recipe].graph else []
    details += [f"the best {tuning.rerank} k re-ranked"] if tuning.rerank else []
    note(
        f"{engine.name}: stored as {', '.join([plan.spelling, *details])}; "
        f"vectors on disk: {readable_bytes(before)} before, {readable_bytes(after)} after"
    )
    trained_on = min(plan.wanted, sum(part.count for part in engine.store.snapshot().segments))
    if trained_on < plan.wanted:
        note(f"trained on {trained_on} vectors, {plan.wanted} are better: apply it again when there are more")
    if drop_vectors:
        note("the vectors themselves are gone: another recipe needs the corpus to be indexed again")


def _judgements(engine: SearchEngine, judged: JudgementOptions, wording: InstructionOptions) -> Judgements | None:
    """The queries, with their judgements if there are any; None to measure with phrases."""
    from searchkit.records import Judgements

    if judged.beir or judged.qrels:
        return judged.read(engine, wording)
    queries, _ = judged.files()
    return Judgements(str(judged.queries), queries, {}, wording.text()) if queries else None


def _measure(engine: SearchEngine, judgements: Judgements | None, options: MeasureOptions) -> list[Candidate]:
    """Measure the recipes, reporting each, and say how far the figures can be trusted."""
    from searchkit.compression.measure import SAMPLE_BYTES, estimate_seconds, measure

    note(f"about {estimate_seconds(engine, judgements, options=options) + 1:,.0f} s on an idle CPU")
    candidates = measure(
        engine,
        judgements,
        options=options,
        on_recipe=lambda name, number, total: note(
            f"[{number}/{total}] {name}" + (" (training its rotation takes long)" if name.startswith("opq") else "")
        ),
        on_skipped=lambda name, reason: note(f"{name} is left out: {reason}"),
    )
    first = candidates[0]
    if first.sample + (0 if judgements else first.queries) < first.total:
        note(
            f"measured on {first.sample:,} of {first.total:,} vectors (--sample; at most {SAMPLE_BYTES >> 20} MiB): "
            "sizes and times per query are estimates for all, recall is that of the sample and falls somewhat with more"
        )
    if judgements is None:
        kind = "phrases" if engine.has_model else "the vectors"
        note(
            f"queries are {kind} of {first.queries} held-out passages; real queries may have lower recall, above all "
            "with IVF lists and graphs: give some with --queries or --beir"
        )
    if few := sorted({f"{item.recipe} {item.wanted:,}" for item in candidates if item.trained_on < item.wanted}):
        note(f"trained on {first.sample:,} vectors, fewer than recommended: {', '.join(few)}")
    return candidates


def _choose(candidates: list[Candidate], limits: Limits, drop_vectors: bool) -> tuple[Candidate | None, str]:
    """The smallest recipe within the limits; or none, and why."""
    from searchkit.compression.choice import choose
    from searchkit.compression.measure import RERANK

    if drop_vectors:
        candidates = [item for item in candidates if not item.name.endswith(RERANK)]
    try:
        return choose(candidates, limits), ""
    except InputError as error:
        return None, str(error)


def _show(
    index: Path,
    candidates: list[Candidate],
    limits: Limits,
    chosen: Candidate | None,
    problem: str,
    results: ReportOptions,
) -> None:
    """Draw, write and print what was measured."""
    from searchkit.compression.choice import front

    best = front(candidates)
    if results.plot:
        from searchkit.reports.compression_plot import pareto_chart

        files = pareto_chart(results.plot, candidates, title=f"Ways to store {index.name}", dark=results.dark)
        note("wrote " + " and ".join(map(str, files)))
    shared = {name: getattr(candidates[0], name) for name in ("sample", "total", "queries")}
    content = {
        "index": str(index),
        **shared,
        "limits": asdict(limits),
        "chosen": chosen.name if chosen else None,
        "problem": problem or None,
        "front": [item.name for item in best],
        "candidates": [{key: value for key, value in asdict(item).items() if key not in shared} for item in candidates],
    }
    if results.report:
        write_json(results.report, content)
    if results.output == "json":
        print_json(content)
    else:
        _print_candidates(candidates, best, chosen)


def _print_candidates(candidates: list[Candidate], best: list[Candidate], chosen: Candidate | None) -> None:
    """Smallest first; * marks the Pareto front, > the choice."""
    judged = candidates[0].ndcg_10 is not None
    names = ["recipe", "bytes/vector", "on disk", "recall@10", "recall@100"]
    names += ["nDCG@10", "change"] if judged else []
    names += ["queries/s", "64 at once", "train + build s", "tuning"]
    on_front = {item.name for item in best}
    rows = []
    for item in sorted(candidates, key=lambda item: (item.bytes_per_vector, item.disk)):
        mark = "> " if chosen and item.name == chosen.name else "* " if item.name in on_front else "  "
        values = [f"{item.bytes_per_vector:.0f}", readable_bytes(item.disk)]
        values += [f"{item.recall_10:.4f}", f"{item.recall_100:.4f}"]
        if item.ndcg_10 is not None:
            values += [f"{item.ndcg_10:.4f}", "-" if item.ndcg_change is None else f"{100 * item.ndcg_change:+.1f} %"]
        values += [f"{item.per_second:,.0f}", f"{item.per_second_64:,.0f}"]
        values += [f"{item.train_seconds:.1f} + {item.build_seconds:.1f}"]
        rows.append([mark + item.name, *values, _tuning(item)])
    print_table(names, rows)


def _tuning(candidate: Candidate) -> str:
    from searchkit.indexer.vectors.recipes import recipe_of

    tuned = recipe_of(candidate.recipe).tuned
    parts = [f"probes {candidate.tuning.probes}"] if tuned == "nprobe" else []
    parts += [f"ef {candidate.tuning.ef}"] if tuned == "efSearch" else []
    parts += [f"rerank {candidate.tuning.rerank}"] if candidate.tuning.rerank else []
    return ", ".join(parts) or "-"
