"""`searchkit beir`: the rows of a published table, from a folder of collections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from searchkit.cli.options import fusion_options, instruction_of, instruction_options, model_options, note


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--sets", help="Some of them, as scifact,nfcorpus. [default: all in FOLDER]")
@click.option("--download", is_flag=True, help="Fetch what FOLDER lacks of --sets, or of BEIR's 15 public ones.")
@click.option(
    "--indexes",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the indexes, which are used again. [default: FOLDER.MODEL.indexes here]",
)
@click.option("--modes", default="dense,lexical,hybrid", show_default=True, help="Also rank-bm25.")
@click.option("--split", help="Which qrels/SPLIT.tsv of all. [default: each its own, mostly test]")
@instruction_options
@click.option("--metric", default="ndcg@10", show_default=True, help="Shown in the table; JSON has them all.")
@fusion_options
@click.option("--format", "output", default="table", show_default=True, type=click.Choice(["table", "json"]))
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="File for everything in JSON.")
@model_options
def beir(folder: Path, output: str, report: Path | None, download: bool, **options: Any) -> None:
    """Measure a model on every BEIR collection in FOLDER, each by its own rules, and average.

    Each collection is indexed whole and evaluated as its published figures are: split (MSMARCO: dev), the paper's
    instruction for models that were trained with instructions, a query's own document left out, CQADupStack's forums
    averaged. Stopped, the same command goes on. Published figures stand beside the model's where they are known.

    A folder of languages is a row each: collections called de, fr or miracl-de are stemmed by that language, and in a
    folder called miracl or xquad they get its split and instruction.

    \b
        searchkit beir miracl/ --model intfloat/multilingual-e5-small
        searchkit beir beir/ --model minilm
        searchkit beir beir/ --sets scifact,nfcorpus --modes dense --report rows.json
        searchkit beir beir/ --sets scifact,trec-covid --download
    """
    from searchkit.evaluation.beir import averages, find_sets, measure_set, published
    from searchkit.models.embedder import DEFAULT_MODEL, Embedder
    from searchkit.ranking import SearchOptions

    modes = [name.strip() for name in options["modes"].split(",") if name.strip()]
    names = [name.strip() for name in (options["sets"] or "").split(",") if name.strip()]
    if download:
        from searchkit.readers.download import TASKS
        from searchkit.readers.download import download as fetch

        fetch(folder, names or TASKS, note)
    sets = find_sets(folder, names)
    model = options["model"] or DEFAULT_MODEL
    how = {name: options[name] for name in ("adapter", "device", "dtype", "threads")}
    embedder = Embedder(model, **how)
    indexes = options["indexes"] or Path(f"{folder.resolve().name}.{Path(model).name}.indexes")
    fusion = SearchOptions(fusion=options["fusion"], dense_weight=options["dense_weight"], rrf_k=options["rrf_k"])
    own = {"split": options["split"], "instruction": instruction_of(options["task"], options["instruction"])}
    found = {
        one.task: measure_set(one, embedder, indexes, modes=modes, options=fusion, on_step=note, **own) for one in sets
    }
    metrics = next(iter(next(iter(found.values())).values()))
    if options["metric"] not in metrics:
        raise click.UsageError(f"--metric is {options['metric']!r}; expected one of {', '.join(metrics)}")
    known = {
        task: {"model": None if options["adapter"] else published(model, task), "bm25": published("bm25", task)}
        for task in found
    }
    content = {"model": embedder.name, "sets": found, "average": averages(found), "published_ndcg@10": known}
    if report:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if output == "json":
        click.echo(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        _print_table(content, options["metric"])


def _print_table(content: dict[str, Any], metric: str) -> None:
    """A row a collection, a column a mode; published figures beside nDCG@10, where there are any."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    sets, average, known = content["sets"], content["average"], content["published_ndcg@10"]
    beside = [
        key for key in ("model", "bm25") if metric == "ndcg@10" and any(row[key] is not None for row in known.values())
    ]
    table = Table(show_edge=False, pad_edge=False)
    table.add_column(metric, no_wrap=True)
    for name in (*average, *(f"published {'' if key == 'model' else 'BM25'}".strip() for key in beside)):
        table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for task, modes in sets.items():
        values = [modes[mode][metric] for mode in average] + [known[task][key] for key in beside]
        table.add_row(escape(task), *map(_shown, values))
    if len(sets) > 1:
        table.add_section()
        means = [_mean([row[key] for row in known.values()]) for key in beside]
        table.add_row(f"average of {len(sets)}", *map(_shown, [average[mode][metric] for mode in average] + means))
    Console().print(table)


def _mean(values: list[float | None]) -> float | None:
    """None when one is missing: an average over other sets would be no comparison."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if len(there) == len(values) else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
