"""`searchkit evaluate`: search quality of an index by relevance judgements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from searchkit.cli import diagnose
from searchkit.cli.judgements import JudgementOptions, judgement_and_vector_options
from searchkit.cli.options import (
    FusionOptions,
    InstructionOptions,
    ModelOptions,
    RerankOptions,
    fusion_options,
    instruction_options,
    model_options,
    report_option,
    rerank_options,
    table_or_json,
)
from searchkit.cli.output import note, print_json, print_table, readable_bytes
from searchkit.cli.types import EVALUATION_MODES, FILE, NEW_FOLDER, PLACE
from searchkit.errors import InputError

if TYPE_CHECKING:
    from searchkit.evaluation.evaluate import Evaluation
    from searchkit.records import Judgements
    from searchkit.remote.address import MilvusAddress
    from searchkit.searcher import Searcher

_LARGEST_BASELINE = 50_000


@click.command()
@click.argument("index", type=PLACE)
@judgement_and_vector_options
@click.option("--modes", type=EVALUATION_MODES, help="Some of dense,lexical,hybrid,rank-bm25. [default: all]")
@instruction_options
@fusion_options
@rerank_options
@table_or_json
@report_option
@click.option("--runs", type=NEW_FOLDER, help="Write a TREC run file per mode to this folder.")
@click.option(
    "--diagnose",
    "diagnosis_folder",
    type=NEW_FOLDER,
    callback=diagnose.needs_libraries,
    help="Show where quality is lost; write JSON and charts to this folder.",
)
@click.option(
    "--pairs", type=FILE, multiple=True, help="With --diagnose: look for test queries in these training pairs."
)
@model_options
def evaluate(
    index: Path | MilvusAddress,
    judged: JudgementOptions,
    modes: tuple[str, ...] | None,
    wording: InstructionOptions,
    fusion: FusionOptions,
    again: RerankOptions,
    output: str,
    report: Path | None,
    runs: Path | None,
    diagnosis_folder: Path | None,
    pairs: tuple[Path, ...],
    model: ModelOptions,
) -> None:
    """Measure INDEX by relevance judgements: nDCG@10, recall@100, MAP@100, MRR@10, time per query, bytes per document.

    A BEIR folder named after a published set is evaluated by that set's rules: its split, its instruction (for models
    trained with instructions), and whether a query's own document counts. rank-bm25, a baseline that scores every
    document, is left out above 50,000 documents unless --modes names it. With --rerank, every other mode is measured
    with and without it.

    --diagnose also shows recall by rank, scores by query length, what truncation costs, and unjudged documents.

    \b
        searchkit evaluate scifact.index --beir scifact/
        searchkit evaluate papers.index --queries q.jsonl --qrels qrels.tsv --modes dense,hybrid --format json
        searchkit evaluate scifact.index --beir scifact/ --diagnose diagnosis/ --pairs train.jsonl
    """
    if pairs and not diagnosis_folder:
        raise click.UsageError("--pairs needs --diagnose FOLDER")
    from searchkit.evaluation.evaluate import evaluate as measure
    from searchkit.evaluation.evaluate import write_report, write_run

    with model.open_place(index) as engine:
        if diagnosis_folder:
            engine.require_model()  # to count tokens
        judgements = judged.read(engine, wording)
        reranker = again.load(model)
        if runs:
            _check_ids(engine, judgements)
        if missing := _missing_documents(engine, judgements):
            note(f"judged documents that are not in the index, and count as not found: {missing}")
        evaluations = measure(
            engine,
            judgements,
            modes=modes or _default_modes(len(engine)),
            options=fusion.search_options(),
            on_mode=lambda mode: note(f"searching {mode} ..."),
            reranker=reranker,
            rerank_depth=again.depth,
        )
        header = {
            "index": str(index),
            "judgements": str(judged.source),
            "split": judged.chosen_split,
            "instruction": judgements.instruction,
            "drop_self": judgements.drop_self,
            "documents": len(engine),
            "settings": engine.settings,
        }
        diagnosis = None
        if diagnosis_folder:
            plain = [item for item in evaluations if "+" not in item.mode]  # not the reranked ones
            leaks = [diagnose.find_pair_leaks(file, engine, judgements, plain) for file in pairs]
            diagnosis = diagnose.diagnose_evaluation(engine, judgements, plain, fusion)
            assert judged.source is not None
            title = judged.source.resolve().name
            diagnose.write_diagnosis(diagnosis_folder, header, diagnosis, leaks, title=title)
    if runs:
        for item in evaluations:
            write_run(runs / f"{item.mode}.trec", item)
    if report:
        write_report(report, evaluations, header)
    if output == "json":
        print_json({item.mode: item.summary() for item in evaluations})
        return
    print_evaluations(evaluations)
    if diagnosis:
        diagnose.print_diagnosis(diagnosis, leaks, judgements.queries)


def _default_modes(documents: int) -> list[str]:
    from searchkit.evaluation.evaluate import EVALUATION_MODES

    if documents <= _LARGEST_BASELINE:
        return list(EVALUATION_MODES)
    note(f"leaving out rank-bm25: it scores all {documents:,} documents for every query; --modes rank-bm25 runs it")
    return [mode for mode in EVALUATION_MODES if mode != "rank-bm25"]


def _check_ids(engine: Searcher, judgements: Judgements) -> None:
    """Refuse ids that a TREC run cannot hold before searching for an hour."""
    for kind, ids in (
        ("query", (query.id for query in judgements.queries)),
        ("document", (document.id for document in engine.documents())),
    ):
        if bad := next((id for id in ids if any(character.isspace() for character in id)), None):
            raise InputError(
                f"{kind} id {bad!r} contains white space, which separates the columns of a TREC run file; "
                "omit --runs, or use ids without white space"
            )


def _missing_documents(engine: Searcher, judgements: Judgements) -> int:
    documents = {document for gains in judgements.qrels.values() for document in gains}
    return len(documents) - len(engine.known_ids(sorted(documents)))


def print_evaluations(evaluations: list[Evaluation]) -> None:
    """A row per mode: quality, then cost."""
    names = list(evaluations[0].metrics)
    rows = []
    for item in evaluations:
        size = "-" if item.bytes_per_document is None else readable_bytes(item.bytes_per_document)
        values = [f"{item.metrics[name]:.4f}" for name in names]
        rows.append([item.mode, *values, f"{1000 * item.seconds_per_query:.1f}", size])
    print_table(["mode", *names, "ms/query", "bytes/document"], rows)
