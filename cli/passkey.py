"""`searchkit passkey`: how long a text a model can read."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from searchkit.cli.options import (
    InstructionOptions,
    ModelOptions,
    instruction_options,
    model_options,
    needs_plots,
    report_option,
    table_or_json,
)
from searchkit.cli.output import note, print_json, print_table, write_json
from searchkit.cli.types import INDEX, NEW_FILE, ListOf

if TYPE_CHECKING:
    from searchkit.evaluation.passkey import PasskeyResult
    from searchkit.models.embedder import Embedder


@click.command()
@click.argument("index", type=INDEX, required=False)
@click.option(
    "--lengths",
    type=ListOf(int, "256,512,4096"),
    help="Text lengths in tokens, as 256,512,4096. [default: 32, 64 ... up to the model's limit]",
)
@instruction_options
@table_or_json
@report_option
@click.option("--plot", type=NEW_FILE, callback=needs_plots, help="Draw a chart, as PNG and SVG.")
@model_options
def passkey(
    index: Path | None,
    lengths: tuple[int, ...] | None,
    wording: InstructionOptions,
    output: str,
    report: Path | None,
    plot: Path | None,
    model: ModelOptions,
) -> None:
    """Measure how long a text a model can read.

    100 documents of each length hide one person's passkey each. The score is the share of queries for a person's
    passkey that rank the right document first: with one vector for the whole text, and with the best passage, as an
    index searches. Passages are cut as in INDEX, or else as a new index would cut them.

    \b
        searchkit passkey --model minilm --lengths 128,256,512 --plot passkey.png
        searchkit passkey papers.index
    """
    from searchkit.evaluation.passkey import measure_passkeys
    from searchkit.evaluation.passkey import report as passkey_report

    instruction = wording.text()
    with ExitStack() as stack:
        embedder, chunks = _model(stack, index, model)
        if instruction is None:
            instruction = embedder.conventions.default_instruction
        results = measure_passkeys(
            embedder,
            lengths,
            instruction=instruction,
            **chunks,
            on_length=lambda length: note(f"measuring {length} tokens ..."),
        )
    if any(item.truncated for item in results):
        note(
            f"{embedder.name} reads at most {embedder.max_length} tokens: longer texts were cut there, "
            "and are counted as truncated"
        )
    if report:
        header = {"index": None if index is None else str(index), "instruction": instruction, **chunks}
        write_json(report, {**header, **passkey_report(embedder, results)})
    if output == "json":
        print_json([item.summary() for item in results])
    else:
        _print_results(results)
    if plot:
        _plot(plot, embedder, results)


def _model(stack: ExitStack, index: Path | None, model: ModelOptions) -> tuple[Embedder, dict[str, int]]:
    """The model, and how it cuts documents into passages: as the index does, or as a new one would."""
    from searchkit.ingest import chunk_settings

    if index is None:
        embedder = model.embedder()
        return embedder, chunk_settings(embedder, None, None)
    engine = stack.enter_context(model.open(index))
    return engine.embedder, {name: engine.settings[name] for name in ("chunk_tokens", "overlap")}


def _print_results(results: list[PasskeyResult]) -> None:
    rows = []
    for item in results:
        row = item.summary()
        cut = f"{row['truncated']} of {row['documents']}" if item.truncated else "-"
        rows.append([str(item.length), f"{row['whole_text']:.2f}", f"{row['as_indexed']:.2f}", cut, str(item.passages)])
    print_table(["tokens", "whole text", "as indexed", "truncated", "passages"], rows, left=0)


def _plot(file: Path, embedder: Embedder, results: list[PasskeyResult]) -> None:
    from searchkit.reports.style import line_chart

    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [item.summary() for item in results]
    whole, indexed = (
        [(float(row["length"]), float(row[name])) for row in rows] for name in ("whole_text", "as_indexed")
    )
    cut = any(item.truncated for item in results)
    files = line_chart(
        file,
        # Two equal lines would hide one another.
        {"whole text": whole, "as indexed": indexed} if whole != indexed else {"whole text, as indexed": whole},
        title=f"Passkey retrieval, {embedder.short_name}"
        + (f" (whole texts cut at {embedder.max_length} tokens)" if cut else ""),
        x_label="tokens of a document",
        y_label="top-1 accuracy",
        log_x=True,
    )
    note("wrote " + " and ".join(map(str, files)))
