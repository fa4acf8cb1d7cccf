"""`searchkit evaluate --passkey`: how far into a long text a model sees."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.options import F, instruction_of, note, open_engine

if TYPE_CHECKING:
    from searchkit.evaluation.passkey import PasskeyResult
    from searchkit.models.embedder import Embedder


_PASSKEYS_ONLY = {"lengths", "plot"}
_FUSION = {"fusion", "dense_weight", "rrf_k"}
_JUDGEMENTS_ONLY = {"beir", "split", "queries", "qrels", "modes", "drop_self", "runs"} | _FUSION | {"diagnose", "pairs"}


def passkey_options(command: F) -> F:
    """Another measurement than by judgements, and what belongs to it."""
    for option in reversed(
        [
            click.option("--passkey", is_flag=True, help="Measure how far into long texts the model sees, instead."),
            click.option("--lengths", help="Tokens, as 256,512,4096. [default: 32, 64 ... the model's own length]"),
            click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Chart, as PNG and SVG."),
        ]
    ):
        command = option(command)
    return command


def check_options(context: click.Context) -> None:
    """Raise UsageError on an option of the measurement that was not asked for: it would have no effect."""
    passkey = context.params["passkey"]
    names, why = (_JUDGEMENTS_ONLY, "not with --passkey") if passkey else (_PASSKEYS_ONLY, "with --passkey only")
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in names and context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"{parameter.opts[0]} goes {why}")


def evaluate_passkeys(index: Path | None, output: str, report_file: Path | None, options: dict[str, Any]) -> None:
    """Measure the index's model, cutting documents as the index does, or else --model as a new index would."""
    from searchkit.evaluation.passkey import measure_passkeys, report

    lengths = _lengths(options["lengths"])
    instruction = instruction_of(options["task"], options["instruction"])
    with ExitStack() as stack:
        embedder, chunks = _model(stack, index, options)
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
            f"whole texts were cut at the {embedder.max_length} tokens that {embedder.name} takes: "
            "what stands after that is not in their vectors, and they are counted as truncated"
        )
    if report_file:
        place = None if index is None else str(index)
        about = {"index": place, "instruction": instruction, **chunks, **report(embedder, results)}
        report_file.parent.mkdir(parents=True, exist_ok=True)
        report_file.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if output == "json":
        click.echo(json.dumps([item.summary() for item in results], indent=1))
    else:
        _print_table(results)
    if options["plot"]:
        _plot(options["plot"], embedder, results)


def _lengths(asked: str | None) -> list[int] | None:
    if asked is None:
        return None
    try:
        return [int(length) for length in asked.split(",")]
    except ValueError:
        raise click.UsageError(f"--lengths is {asked!r}; expected numbers of tokens, as 256,512,4096") from None


def _model(stack: ExitStack, index: Path | None, options: dict[str, Any]) -> tuple[Embedder, dict[str, int]]:
    """The model under test, and how documents are cut into passages: as the index does, or as a new one would."""
    from searchkit.ingest import chunk_settings
    from searchkit.models.embedder import DEFAULT_MODEL, Embedder

    model, how = options["model"], {name: options[name] for name in ("adapter", "device", "dtype", "threads")}
    if index is None:
        embedder = Embedder(model or DEFAULT_MODEL, **how)
        return embedder, chunk_settings(embedder, None, None)
    engine = stack.enter_context(open_engine(index, model, **how))
    return engine.embedder, {name: engine.settings[name] for name in ("chunk_tokens", "overlap")}


def _print_table(results: list[PasskeyResult]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    for name in ("tokens", "whole text", "as indexed", "truncated", "passages"):
        table.add_column(name, justify="right", no_wrap=True)
    for item in results:
        row = item.summary()
        cut = f"{row['truncated']} of {row['documents']}" if item.truncated else "-"
        accuracies = (f"{row[name]:.2f}" for name in ("whole_text", "as_indexed"))
        table.add_row(str(item.length), *accuracies, cut, str(item.passages))
    Console().print(table)


def _plot(file: Path, embedder: Embedder, results: list[PasskeyResult]) -> None:
    from searchkit.reports.style import line_chart

    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [item.summary() for item in results]
    whole, indexed = (
        [(float(row["length"]), float(row[name])) for row in rows] for name in ("whole_text", "as_indexed")
    )
    cut = any(item.truncated for item in results)
    written = line_chart(
        file,
        # Where no document is cut the two are one line, which would hide itself.
        {"whole text": whole, "as indexed": indexed} if whole != indexed else {"whole text, as indexed": whole},
        title=f"Passkey retrieval, {Path(embedder.name).name}"
        + (f" (whole texts cut at {embedder.max_length} tokens)" if cut else ""),
        x_label="tokens of a document",
        y_label="top-1 accuracy",
        log_x=True,
    )
    note("wrote " + " and ".join(map(str, written)))
