"""`searchkit compress`: how small the vectors can be, and what that costs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.options import FILE, INDEX, instruction_options, model_options, note, readable_bytes
from searchkit.errors import InputError

if TYPE_CHECKING:
    from searchkit.compression.choice import Limits
    from searchkit.compression.measure import Candidate
    from searchkit.engine import SearchEngine
    from searchkit.records import Judgements

_UNITS = {"": 1.0, "b": 1.0, **{f"{letter}b": 10.0 ** (3 * n) for n, letter in enumerate("kmgt", 1)}}
_UNITS |= {f"{letter}ib": 2.0 ** (10 * n) for n, letter in enumerate("kmgt", 1)}
_FEW = 1000
"""Passages below which nothing is worth choosing."""

_WIDE = 160
"""Columns of a table that goes to a file."""

_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def _amount(units: dict[str, float], example: str) -> Callable[[str], float]:
    """What reads a number with a unit, such as 8GB or 5ms."""

    def read(value: str) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", value.strip().lower())
        if not found or found[2] not in units or not float(found[1]):
            raise click.BadParameter(f"{value!r} is not an amount; write it as in {example}")
        return float(found[1]) * units[found[2]]

    return read


@click.command()
@click.argument("index", type=INDEX)
@click.option(
    "--recipes",
    help="Which to measure, by commas: pq:48,pq:48+rerank,int8. [default: all that fit but opq, slow to train]",
)
@click.option("--queries", type=FILE, help="What to search for (JSONL or TSV). [default: some of the passages]")
@click.option("--qrels", type=FILE, help="Judgements of --queries, for nDCG@10 (BEIR or TREC form).")
@click.option("--beir", type=INDEX, help="BEIR folder with queries.jsonl and qrels/, instead of both.")
@click.option("--split", help="Which qrels/SPLIT.tsv. [default: what published numbers use, mostly test]")
@click.option("--drop-self/--keep-self", default=None, help="Leave out a query's own id. [default: as the set asks]")
@instruction_options
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, min_open=True),
    help="Least k-NN recall@10; cells and graphs are tuned for it. [default: 0.95]",
)
@click.option("--max-bytes", type=_amount(_UNITS, "64"), metavar="BYTES", help="Most bytes a vector.")
@click.option(
    "--max-memory", type=_amount(_UNITS, "8GB or 512MiB"), metavar="SIZE", help="Most memory for all vectors: 8GB."
)
@click.option("--latency", type=_amount(_TIMES, "5ms or 0.1s"), metavar="TIME", help="Longest time of one query: 5ms.")
@click.option("--apply", "do_apply", is_flag=True, help="Store the index by the smallest that keeps to all limits.")
@click.option("--recipe", help="With --apply: this recipe, without measuring any.")
@click.option("--drop-vectors", is_flag=True, help="With --apply: keep codes only; no other recipe can follow then.")
@click.option("--sample", default=100_000, show_default=True, type=click.IntRange(2), help="Most vectors to measure.")
@click.option("--seed", default=0, show_default=True, help="Of everything that is drawn.")
@click.option("--format", "output", default="table", show_default=True, type=click.Choice(["table", "json"]))
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="File for a full report in JSON.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="File for a chart, as PNG and as SVG.")
@click.option("--dark", is_flag=True, help="Draw the chart for a dark page.")
@model_options
def compress(index: Path, do_apply: bool, recipe: str | None, drop_vectors: bool, output: str, **options: Any) -> None:
    """Measure how small the vectors of INDEX can be stored, and what that costs; with --apply, store them so.

    Recall is that of k-NN search against exact search. +rerank scores the best candidates again by half-precision
    vectors, which stay on disk. The index itself is changed by --apply alone, in one commit, and nothing is embedded
    again.

    \b
        searchkit compress papers.index --plot papers.png
        searchkit compress papers.index --recall 0.95 --max-memory 8GB --latency 5ms --apply
        searchkit compress papers.index --recipe pq:48+rerank --apply
    """
    from searchkit.engine import SearchEngine

    if (recipe or drop_vectors) and not do_apply:
        raise click.UsageError("--recipe and --drop-vectors come with --apply; to measure some recipes: --recipes")
    measured = ("recall", "max_bytes", "max_memory", "latency", "recipes")
    if recipe and any(options[name] is not None for name in measured):
        raise click.UsageError("--recipe applies one recipe unmeasured; limits and --recipes do not go with it")
    model = {name: options[name] for name in ("model", "adapter", "device", "dtype", "threads")}
    with SearchEngine.open(index, writable=do_apply, **model) as engine:
        if recipe:
            _apply(engine, recipe, drop_vectors, options["seed"])
            return
        _sweep(engine, index, do_apply, drop_vectors, output, options)


def check_recipe(engine: SearchEngine, recipe: str) -> None:
    """Raise ValueError now, rather than after an hour of indexing, when there is no such recipe."""
    from searchkit.compression.measure import parse

    if recipe != "auto":
        parse(recipe, engine.dim, 1)


def store_by(engine: SearchEngine, recipe: str) -> None:
    """What `searchkit index --recipe` does at its end: store by a recipe, or say why flat is kept."""
    from searchkit.compression.choice import Limits, choose
    from searchkit.compression.measure import MeasureOptions, measure, parse, quick_recipes

    stored, passages = engine.storage.plan, engine.passages
    if recipe == "auto":
        if stored.recipe != "flat":
            return  # it was chosen by an earlier run
        if passages < _FEW:
            note(f"{passages} passages are too few to choose a recipe by (at least {_FEW}); flat is kept")
            return
        found = measure(engine, options=MeasureOptions(recipes=quick_recipes(stored.dim), sample=20_000))
        _apply(engine, choose(found, Limits()), drop_vectors=False, seed=0)
        return
    wanted, _ = parse(recipe, stored.dim, passages)
    if stored.spelling == wanted.spelling:
        return
    if passages < wanted.needed:
        note(
            f"{recipe} learns from {wanted.needed} passages or more, there are {passages}: {stored.spelling} is kept; "
            f"later: searchkit compress {engine.store.folder} --recipe {recipe} --apply"
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
    shown = [f"{tuning.probes} of {plan.lists} cells visited"] if plan.lists else []
    shown += [f"efSearch {tuning.ef}"] if RECIPES[plan.recipe].graph else []
    shown += [f"the best {tuning.rerank} k re-ranked"] if tuning.rerank else []
    note(
        f"{engine.store.folder}: stored as {plan.spelling}{''.join(f', {part}' for part in shown)}; "
        f"vectors took {readable_bytes(before)} on disk, now {readable_bytes(after)}"
    )
    learnt = min(plan.wanted, sum(part.count for part in engine.store.snapshot().segments))
    if learnt < plan.wanted:
        note(f"it learnt from {learnt} vectors and wants {plan.wanted}; apply it again when there are more")
    if drop_vectors:
        note("the vectors themselves are gone: another recipe would need the corpus to be indexed again")


def _sweep(
    engine: SearchEngine, index: Path, do_apply: bool, drop_vectors: bool, output: str, options: dict[str, Any]
) -> None:
    from searchkit.compression.choice import Limits, choose, front
    from searchkit.compression.measure import RERANK, SAMPLE_BYTES, MeasureOptions, estimate_seconds, measure

    judgements = _queries(options, engine)
    recall = options["recall"] or 0.95
    limits = Limits(recall, options["max_bytes"], options["max_memory"], options["latency"])
    if options["plot"]:
        from searchkit.reports.style import new_figure

        new_figure(1, 1, "", dark=False)  # a missing library is reported before the long part
    names = [name.strip() for name in options["recipes"].split(",") if name.strip()] if options["recipes"] else None
    settings = MeasureOptions(names, recall, sample=options["sample"], seed=options["seed"])
    note(f"about {estimate_seconds(engine, judgements, options=settings) + 1:,.0f} s on an idle CPU")
    found = measure(
        engine,
        judgements,
        options=settings,
        on_recipe=lambda name, number, total: note(
            f"[{number}/{total}] {name}" + (": learning its rotation takes long" if name.startswith("opq") else "")
        ),
        on_skipped=lambda name, reason: note(f"{name} is left out: {reason}"),
    )
    first = found[0]
    if first.sample + (0 if judgements else first.queries) < first.total:
        note(
            f"measured on {first.sample:,} of {first.total:,} vectors (--sample, at most {SAMPLE_BYTES >> 20} MiB of "
            "them): sizes and times of one query are for the whole, recall is the sample's and falls somewhat with more"
        )
    if judgements is None:
        note(
            f"phrases of {first.queries} passages held out stand in for queries; real ones may find less, most of all "
            "in cells and graphs: --queries or --beir measure them"
        )
    if few := sorted({f"{one.recipe} {one.wanted:,}" for one in found if one.trained_on < one.wanted}):
        note(f"learnt from {first.sample:,} vectors, fewer than they want: {', '.join(few)}")
    best = front(found)
    chosen: Candidate | None = None
    problem = ""
    try:
        if drop_vectors:
            chosen = choose([one for one in found if not one.name.endswith(RERANK)], limits)
        else:
            chosen = choose(found, limits)
    except ValueError as error:
        problem = str(error)
    if options["plot"]:
        from searchkit.reports.compression_plot import pareto_chart

        files = pareto_chart(options["plot"], found, title=f"Ways to store {index.name}", dark=options["dark"])
        note("wrote " + " and ".join(map(str, files)))
    content = _content(index, found, best, limits, chosen, problem)
    if options["report"]:
        options["report"].parent.mkdir(parents=True, exist_ok=True)
        options["report"].write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if output == "json":
        click.echo(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        _print_table(found, best, chosen)
    if chosen is None:
        raise InputError(problem)
    if do_apply:
        _apply(engine, chosen, drop_vectors, options["seed"])
    elif output == "table":
        note(f"the smallest that keeps to the limits is {chosen.name}; the same command with --apply stores by it")


def _queries(options: dict[str, Any], engine: SearchEngine) -> Judgements | None:
    """The queries, if any were given, and how they are judged."""
    from searchkit.cli.evaluate import read_judged, set_rules
    from searchkit.readers.judgements import read_queries
    from searchkit.records import Judgements

    if options["beir"] or options["qrels"]:
        queries, qrels, task = read_judged(options)
        instruction, drop_self = set_rules(task, options, engine)
        return Judgements(task, queries, qrels, instruction, drop_self)
    if options["queries"]:
        instruction, _ = set_rules("", options, engine)
        return Judgements("", read_queries(options["queries"]), {}, instruction)
    return None


def _content(
    index: Path, found: list[Candidate], best: list[Candidate], limits: Limits, chosen: Candidate | None, problem: str
) -> dict[str, Any]:
    shared = {name: getattr(found[0], name) for name in ("sample", "total", "queries")}
    candidates = [{key: value for key, value in asdict(one).items() if key not in shared} for one in found]
    return {
        "index": str(index),
        **shared,
        "limits": asdict(limits),
        "chosen": chosen.name if chosen else None,
        "problem": problem or None,
        "front": [one.name for one in best],
        "candidates": candidates,
    }


def _print_table(found: list[Candidate], best: list[Candidate], chosen: Candidate | None) -> None:
    """Smallest first; a * marks the Pareto front, an arrow what was chosen."""
    from rich.console import Console
    from rich.table import Table

    judged = found[0].ndcg_10 is not None
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    columns = ["bytes/vector", "on disk", "recall@10", "recall@100"]
    columns += ["nDCG@10", "change"] if judged else []
    columns += ["queries/s", "64 at once", "learn + build s", "tuning"]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    on_front = {one.name for one in best}
    for one in sorted(found, key=lambda one: (one.bytes_per_vector, one.disk)):
        mark = "> " if chosen and one.name == chosen.name else "* " if one.name in on_front else "  "
        values = [f"{one.bytes_per_vector:.0f}", readable_bytes(one.disk)]
        values += [f"{one.recall_10:.4f}", f"{one.recall_100:.4f}"]
        if one.ndcg_10 is not None:
            values += [f"{one.ndcg_10:.4f}", "-" if one.ndcg_change is None else f"{100 * one.ndcg_change:+.1f} %"]
        values += [f"{one.per_second:,.0f}", f"{one.per_second_64:,.0f}"]
        values += [f"{one.train_seconds:.1f} + {one.build_seconds:.1f}"]
        table.add_row(mark + one.name, *values, _tuning(one))
    console = Console()
    if console.width < _WIDE and not console.is_terminal:
        console = Console(width=_WIDE)
    console.print(table)


def _tuning(one: Candidate) -> str:
    from searchkit.indexer.vectors.recipes import recipe_of

    tuned = recipe_of(one.recipe).tuned
    parts = [f"probes {one.tuning.probes}"] if tuned == "nprobe" else []
    parts += [f"ef {one.tuning.ef}"] if tuned == "efSearch" else []
    parts += [f"rerank {one.tuning.rerank}"] if one.tuning.rerank else []
    return ", ".join(parts) or "-"
