"""`searchkit mteb`: MTEB tasks, run by mteb's own evaluator into its own result files."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from searchkit.cli.options import (
    FusionOptions,
    ModelOptions,
    fusion_options,
    model_options,
    report_option,
    table_or_json,
)
from searchkit.cli.output import note, print_json, print_table, readable_bytes, say, write_json
from searchkit.cli.types import MODES, NEW_FOLDER, ListOf

if TYPE_CHECKING:
    from searchkit.evaluation.mteb_tasks import MtebScore


@click.command()
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@click.option(
    "--modes",
    default="dense,lexical,hybrid",
    show_default=True,
    type=ListOf(str, "dense,hybrid", lambda: MODES),
    help="Search modes of retrieval and reranking tasks.",
)
@click.option("--instruction", help='Replace the task\'s own instruction. "": no instruction.')
@click.option("--recipe", default="flat", show_default=True, help="How the indexes store vectors, as pq:48+rerank.")
@fusion_options
@click.option("--results", default="mteb.results", show_default=True, type=NEW_FOLDER, help="mteb's result files.")
@click.option(
    "--indexes", type=NEW_FOLDER, help="Keep one index per corpus here, for later runs. [default: mteb.MODEL.indexes]"
)
@table_or_json
@report_option
@model_options
def mteb(
    tasks: tuple[str, ...],
    modes: tuple[str, ...],
    instruction: str | None,
    recipe: str,
    fusion: FusionOptions,
    results: Path,
    indexes: Path | None,
    output: str,
    report: Path | None,
    model: ModelOptions,
) -> None:
    """Run MTEB tasks with mteb's own evaluator.

    A TASK is a name that mteb knows, or a local BEIR folder. Retrieval and reranking tasks search an index that is
    built for each corpus; other tasks use the model alone. Tasks with results in --results are not run again.

    \b
        searchkit mteb SciFact STSBenchmark --model minilm
        searchkit mteb my-set/ --modes dense,hybrid --results mteb/
    """
    from searchkit.evaluation.mteb_tasks import MtebOptions, find_tasks, measure_task

    found = find_tasks(tasks)
    embedder = model.embedder()
    indexes = indexes or Path(f"mteb.{Path(model.name).name}.indexes")
    options = MtebOptions(results, indexes, modes, recipe, instruction, fusion.search_options())
    scores: list[MtebScore] = []
    for task in found:
        scores += measure_task(task, embedder, options, on_step=note)
    content = [asdict(score) for score in scores]
    if report:
        write_json(report, content)
    if output == "json":
        print_json(content)
    else:
        _print_scores(scores)
    note(f"mteb's result files are in {results / 'results'}")


def _print_scores(scores: list[MtebScore]) -> None:
    """A table for each retrieval task; mteb's main score for any other task."""
    for task, group in groupby(scores, key=lambda score: score.task):
        items = list(group)
        if items[0].mode == "encoder":
            ((metric, value),) = items[0].metrics.items()
            say(f"{task}: {metric} {value:.4f}")
            continue
        rows = []
        for item in items:
            time = "-" if item.seconds_per_query is None else f"{1000 * item.seconds_per_query:.1f}"
            size = "-" if item.bytes_per_document is None else readable_bytes(item.bytes_per_document)
            rows.append([item.mode, *(f"{value:.4f}" for value in item.metrics.values()), time, size])
        say(task)
        print_table(["mode", *items[0].metrics, "ms/query", "bytes/document"], rows)
        if any(item.seconds_per_query is None for item in items):
            note(f"{task}: results without times are from an earlier run; delete their files to measure again")
