"""`searchkit evaluate`: how good an index is, by judgements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.diagnose import check as check_diagnosis
from searchkit.cli.diagnose import diagnose_evaluation, diagnose_options, print_diagnosis
from searchkit.cli.mteb import check_mteb_options, evaluate_mteb, mteb_options
from searchkit.cli.options import (
    FILE,
    INDEX,
    fusion_options,
    instruction_of,
    instruction_options,
    model_options,
    note,
    open_engine,
    readable_bytes,
)
from searchkit.cli.passkey import check_options, evaluate_passkeys, passkey_options

if TYPE_CHECKING:
    from searchkit.evaluation.evaluate import Evaluation
    from searchkit.records import Qrels, Query

_LARGEST_BASELINE = 50_000


@click.command()
@click.argument("index", type=INDEX, required=False)
@click.option("--beir", type=INDEX, help="BEIR folder with queries.jsonl and qrels/.")
@click.option("--split", help="Which qrels/SPLIT.tsv. [default: what published numbers use, mostly test]")
@click.option("--queries", type=FILE, help="Queries, when they lie elsewhere (JSONL or TSV).")
@click.option("--qrels", type=FILE, help="Judgements, when they lie elsewhere (BEIR or TREC form).")
@click.option("--modes", help="Some of dense,lexical,hybrid,rank-bm25. [default: all; no rank-bm25 past 50,000]")
@instruction_options
@click.option("--drop-self/--keep-self", default=None, help="Leave out a query's own id. [default: as the set asks]")
@fusion_options
@click.option("--format", "output", default="table", show_default=True, type=click.Choice(["table", "json"]))
@click.option("--runs", type=click.Path(file_okay=False, path_type=Path), help="Folder for a TREC run file a mode.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="File for a full report in JSON.")
@diagnose_options
@passkey_options
@mteb_options
@model_options
@click.pass_context
def evaluate(
    context: click.Context, /, index: Path | None, output: str, runs: Path | None, report: Path | None, **options: Any
) -> None:
    """Measure INDEX against judgements: nDCG@10, recall@100, MRR@10, MAP@100, time and bytes.

    With --diagnose FOLDER: where it loses as well, as a table, diagnosis.json and charts.

    With --passkey: among 100 documents of one length, is the one found first that holds the passkey of the person asked
    for? By the vector of the whole text, and by the best passage, as an index searches.

    With --mteb TASK: tasks of mteb by its own evaluator, into its own result files. Searches are answered by an index
    that is made for each corpus, other tasks by the model.

    \b
        searchkit evaluate scifact.index --beir scifact/ --split test
        searchkit evaluate papers.index --queries q.jsonl --qrels qrels.tsv --modes dense,hybrid --format json
        searchkit evaluate scifact.index --beir scifact/ --diagnose why/ --pairs train.jsonl
        searchkit evaluate --passkey --model minilm --lengths 128,256,512 --plot passkey.png
        searchkit evaluate --mteb SciFact --mteb STSBenchmark --model minilm --modes dense,hybrid --results mteb/
    """
    check_mteb_options(context)
    if options["mteb"]:
        evaluate_mteb(output, report, options)
        return
    check_options(context)
    if options["passkey"]:
        evaluate_passkeys(index, output, report, options)
        return
    if index is None:
        raise click.UsageError("name the INDEX to measure; only --passkey and --mteb go without one")
    check_diagnosis(options)
    from searchkit.evaluation.evaluate import evaluate as measure
    from searchkit.evaluation.evaluate import write_report, write_run
    from searchkit.ranking import SearchOptions
    from searchkit.records import Judgements

    queries, qrels, task_name = read_judged(options)
    settings = SearchOptions(fusion=options["fusion"], dense_weight=options["dense_weight"], rrf_k=options["rrf_k"])
    how = {name: options[name] for name in ("model", "adapter", "device", "dtype", "threads")}
    with open_engine(index, **how) as engine:
        modes = _modes(options["modes"], len(engine))
        instruction, drop_self = set_rules(task_name, options, engine)
        lost = _unknown_documents(engine, qrels)
        if lost:
            note(f"judged documents that are not in the index, and count as not found: {lost}")
        judgements = Judgements(str(options["beir"] or options["qrels"]), queries, qrels, instruction, drop_self)
        evaluations = measure(
            engine,
            judgements,
            modes=modes,
            options=settings,
            on_mode=lambda mode: note(f"searching {mode} ..."),
        )
        about = {
            "index": str(index),
            "judgements": str(options["beir"] or options["qrels"]),
            "split": options["split"],
            "instruction": instruction,
            "drop_self": drop_self,
            "documents": len(engine),
            "settings": engine.settings,
        }
        found = None
        if options["diagnose"]:
            found = diagnose_evaluation(engine, judgements, evaluations, about, options, settings)
    if runs:
        for item in evaluations:
            write_run(runs / f"{item.mode}.trec", item)
    if report:
        write_report(report, evaluations, about)
    if output == "json":
        click.echo(json.dumps({item.mode: item.summary() for item in evaluations}, indent=1))
    else:
        print_table(evaluations)
        if found:
            print_diagnosis(*found, queries)


def read_judged(options: dict[str, Any]) -> tuple[list[Query], Qrels, str]:
    """The queries, the judgements, and the name of the set if it has one."""
    from searchkit.readers.judgements import read_beir_split, read_qrels, read_queries
    from searchkit.tasks import find_task

    if options["beir"] and not (options["queries"] or options["qrels"]):
        name = options["beir"].resolve().name
        known = find_task(name)
        options["split"] = options["split"] or (known.split if known else "test")
        queries, qrels = read_beir_split(options["beir"], options["split"])
        return queries, qrels, name
    if options["queries"] and options["qrels"] and not options["beir"]:
        return read_queries(options["queries"]), read_qrels(options["qrels"]), ""
    raise click.UsageError("give the judgements as --beir FOLDER, or as --queries FILE and --qrels FILE")


def _modes(asked: str | None, documents: int) -> list[str]:
    from searchkit.evaluation.evaluate import EVALUATION_MODES

    if asked:
        return [mode.strip() for mode in asked.split(",") if mode.strip()]
    if documents > _LARGEST_BASELINE:
        note(f"leaving out rank-bm25, which scores all {documents} documents for every query; ask for it with --modes")
    return [mode for mode in EVALUATION_MODES if mode != "rank-bm25" or documents <= _LARGEST_BASELINE]


def set_rules(name: str, options: dict[str, Any], engine: Any) -> tuple[str | None, bool]:
    """The instruction and the self-hit rule: the user's word, else what a set of that name is published with."""
    from searchkit.tasks import find_task

    known = find_task(options["task"] or name)
    instruction = instruction_of(options["task"], options["instruction"])
    instructed = engine.settings["model"]["default_instruction"] is not None
    if instruction is None and known and instructed:  # a model that was not trained for instructions gets none
        instruction = known.instruction
        note(f"instruction: {instruction}")
    drop_self = options["drop_self"] if options["drop_self"] is not None else bool(known and known.drop_self)
    return instruction, drop_self


def _unknown_documents(engine: Any, qrels: Qrels) -> int:
    judged = {document for judgements in qrels.values() for document in judgements}
    return len(judged) - len(engine.store.documents.known_ids(sorted(judged)))


def print_table(evaluations: list[Evaluation]) -> None:
    """Modes side by side, quality beside cost."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("mode")
    names = list(evaluations[0].metrics)
    for name in (*names, "ms/query", "bytes/document"):
        table.add_column(name, justify="right", no_wrap=True)
    for item in evaluations:
        size = "-" if item.bytes_per_document is None else readable_bytes(item.bytes_per_document)
        values = [f"{item.metrics[name]:.4f}" for name in names]
        table.add_row(item.mode, *values, f"{1000 * item.seconds_per_query:.1f}", size)
    Console().print(table)
