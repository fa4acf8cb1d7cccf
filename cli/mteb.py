"""`searchkit evaluate --mteb`: tasks of mteb, by its own evaluator, into its own result files."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.options import F, note, readable_bytes

if TYPE_CHECKING:
    from searchkit.evaluation.mteb_tasks import MtebScore

_OURS = {"results", "indexes", "recipe"}
_SHARED = {"modes", "instruction", "fusion", "dense_weight", "rrf_k", "output", "report"}
_MODEL = {"model", "adapter", "device", "dtype", "threads"}


def mteb_options(command: F) -> F:
    """Tasks in the place of an index and its judgements, and what belongs to them."""
    for option in reversed(
        [
            click.option("--mteb", multiple=True, help="Run a task of mteb, or a BEIR folder as one, instead."),
            click.option(
                "--results",
                type=click.Path(file_okay=False, path_type=Path),
                help="Folder for mteb's result files. [default: mteb.results]",
            ),
            click.option(
                "--indexes",
                type=click.Path(file_okay=False, path_type=Path),
                help="Folder for an index a corpus, which are used again. [default: mteb.MODEL.indexes]",
            ),
            click.option("--recipe", help="How these store vectors, as pq:48+rerank. [default: flat]"),
        ]
    ):
        command = option(command)
    return command


def check_mteb_options(context: click.Context) -> None:
    """Raise UsageError on an option that would have no effect, with --mteb or without it."""
    asked = bool(context.params["mteb"])
    allowed = {"mteb"} | _OURS | _SHARED | _MODEL
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is click.core.ParameterSource.DEFAULT:
            continue
        if asked and name not in allowed and context.params.get(name) is not None:
            raise click.UsageError(
                f"{parameter.human_readable_name if name == 'index' else parameter.opts[0]} goes not with --mteb"
            )
        if not asked and name in _OURS:
            raise click.UsageError(f"{parameter.opts[0]} goes with --mteb only")


def evaluate_mteb(output: str, report: Path | None, options: dict[str, Any]) -> None:
    """Run the tasks one after another, and show what they came to."""
    from searchkit.evaluation.mteb_tasks import MtebOptions, find_tasks, measure_task
    from searchkit.models.embedder import DEFAULT_MODEL, Embedder
    from searchkit.ranking import SearchOptions

    modes = [name.strip() for name in (options["modes"] or "dense,lexical,hybrid").split(",") if name.strip()]
    tasks = find_tasks(options["mteb"])
    model = options["model"] or DEFAULT_MODEL
    embedder = Embedder(model, **{name: options[name] for name in _MODEL - {"model"}})
    results = options["results"] or Path("mteb.results")
    scores: list[MtebScore] = []
    settings = MtebOptions(
        results,
        options["indexes"] or Path(f"mteb.{Path(model).name}.indexes"),
        modes,
        options["recipe"] or "flat",
        options["instruction"],
        SearchOptions(fusion=options["fusion"], dense_weight=options["dense_weight"], rrf_k=options["rrf_k"]),
    )
    for task in tasks:
        scores += measure_task(task, embedder, settings, on_step=note)
    content = json.dumps([asdict(score) for score in scores], indent=1, ensure_ascii=False, default=str)
    if report:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(content + "\n", encoding="utf-8")
    if output == "json":
        click.echo(content)
    else:
        _print_tables(scores)
    note(f"mteb's result files are in {results / 'results'}")


def _print_tables(scores: list[MtebScore]) -> None:
    """Searches as `searchkit evaluate` shows an index's, other tasks by mteb's main score."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for task, ways in groupby(scores, key=lambda score: score.task):
        rows = list(ways)
        if rows[0].mode == "encoder":
            ((metric, value),) = rows[0].metrics.items()
            console.print(f"{task}: {metric} {value:.4f}", highlight=False, markup=False)
            continue
        table = Table(show_edge=False, pad_edge=False)
        table.add_column("mode")
        for name in (*rows[0].metrics, "ms/query", "bytes/document"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            time = "-" if row.seconds_per_query is None else f"{1000 * row.seconds_per_query:.1f}"
            size = "-" if row.bytes_per_document is None else readable_bytes(row.bytes_per_document)
            table.add_row(row.mode, *(f"{value:.4f}" for value in row.metrics.values()), time, size)
        console.print(task, highlight=False, markup=False)
        console.print(table)
        if any(row.seconds_per_query is None for row in rows):
            note(f"{task}: without times are results that were there already; remove their files to measure again")
