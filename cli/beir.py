"""`searchkit beir`: published tables, from a folder of BEIR collections."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.options import (
    FusionOptions,
    InstructionOptions,
    ModelOptions,
    fusion_options,
    instruction_options,
    model_options,
    report_option,
    table_or_json,
)
from searchkit.cli.output import note, print_json, print_table, write_json
from searchkit.cli.types import EVALUATION_MODES, METRICS, NAMES, NEW_FOLDER

if TYPE_CHECKING:
    from searchkit.evaluation.beir import BeirSet


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--sets", default=(), type=NAMES, help="Only these, as scifact,nfcorpus. [default: all in FOLDER]")
@click.option("--download", is_flag=True, help="Download missing --sets, or BEIR's 15 public sets, to FOLDER.")
@click.option("--indexes", type=NEW_FOLDER, help="Keep the indexes here. [default: FOLDER.MODEL.indexes]")
@click.option(
    "--modes",
    default="dense,lexical,hybrid",
    show_default=True,
    type=EVALUATION_MODES,
    help="Search modes; also rank-bm25.",
)
@click.option("--split", help="Split of all sets: qrels/SPLIT.tsv. [default: the published one, usually test]")
@instruction_options
@click.option("--metric", default="ndcg@10", show_default=True, type=METRICS, help="Metric of the table; JSON has all.")
@fusion_options
@table_or_json
@report_option
@model_options
def beir(
    folder: Path,
    sets: tuple[str, ...],
    download: bool,
    indexes: Path | None,
    modes: tuple[str, ...],
    split: str | None,
    wording: InstructionOptions,
    metric: tuple[str, ...],
    fusion: FusionOptions,
    output: str,
    report: Path | None,
    model: ModelOptions,
) -> None:
    """Measure a model on every BEIR collection in FOLDER, by the rules of its published figures, and average.

    The rules: the split (MSMARCO: dev), the paper's instruction for models trained with instructions, whether a query's
    own document counts, and the average over CQADupStack's forums. Published figures are shown where known. Stop it at
    any time and run it again to resume.

    Collections may be languages: those called de, fr or miracl-de are stemmed in that language, and in a folder called
    miracl or xquad they get its split and instruction.

    \b
        searchkit beir beir/ --model minilm
        searchkit beir beir/ --sets scifact,nfcorpus --modes dense --report rows.json
        searchkit beir beir/ --sets scifact,trec-covid --download
        searchkit beir miracl/ --model intfloat/multilingual-e5-small
    """
    if len(metric) > 1:
        raise click.BadParameter("name a single metric", param_hint="--metric")
    from searchkit.evaluation.beir import averages, find_sets, measure_set, published

    instruction = wording.text()
    if download:
        from searchkit.readers.download import TASKS
        from searchkit.readers.download import download as fetch

        fetch(folder, sets or TASKS, note)
    collections = find_sets(folder, sets)
    for collection in collections:
        _check_split(collection, split)
    embedder = model.embedder()
    results = {
        collection.task: measure_set(
            collection,
            embedder,
            indexes or Path(f"{folder.resolve().name}.{Path(model.name).name}.indexes"),
            modes=modes,
            split=split,
            instruction=instruction,
            options=fusion.search_options(),
            on_step=note,
        )
        for collection in collections
    }
    known = {
        task: {"model": None if model.adapter else published(model.name, task), "bm25": published("bm25", task)}
        for task in results
    }
    content = {"model": embedder.name, "sets": results, "average": averages(results), "published_ndcg@10": known}
    if report:
        write_json(report, content)
    if output == "json":
        print_json(content)
    else:
        _print_results(content, metric[0])


def _check_split(collection: BeirSet, split: str | None) -> None:
    """Raise InputError now rather than after an hour of indexing if a collection lacks the split."""
    from searchkit.readers.judgements import read_judgements

    for part in collection.parts:
        read_judgements(part, split=split, task=collection.rules)


def _print_results(content: dict[str, Any], metric: str) -> None:
    """A row per collection, a column per mode; published nDCG@10 beside it."""
    sets, average, known = content["sets"], content["average"], content["published_ndcg@10"]
    beside = [
        key for key in ("model", "bm25") if metric == "ndcg@10" and any(row[key] is not None for row in known.values())
    ]
    titles = ["published" if key == "model" else "published\nBM25" for key in beside]
    rows: list[list[str] | None] = [
        [task, *map(_number, [modes[mode][metric] for mode in average] + [known[task][key] for key in beside])]
        for task, modes in sets.items()
    ]
    if len(sets) > 1:
        means = [_mean([row[key] for row in known.values()]) for key in beside]
        values = [average[mode][metric] for mode in average] + means
        rows += [None, [f"average of {len(sets)}", *map(_number, values)]]
    print_table([metric, *average, *titles], rows)


def _mean(values: list[float | None]) -> float | None:
    """None if a value is missing: an average over fewer sets could not be compared."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if len(present) == len(values) else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
