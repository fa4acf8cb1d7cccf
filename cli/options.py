"""Options and printing that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

INDEX = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


MULTILINGUAL = "The built-in model is for English; index with a multilingual one: --model FOLDER or a hub id"


def note(message: str) -> None:
    """Something the user should know, beside the data."""
    click.echo(message, err=True)


def model_options(command: F) -> F:
    """Which model, and how to run it."""
    for option in reversed(
        [
            click.option("--model", help="Folder or hub id of a model. [default: the index's own, or builtin]"),
            click.option("--adapter", help="Folder or hub id of a PEFT adapter trained on the model."),
            click.option(
                "--device",
                help="cpu, mps, or cuda, cuda:1, for vectors too. [default: the best for models]",
            ),
            click.option(
                "--dtype",
                default="auto",
                show_default=True,
                type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
                help="What the model computes in; auto is bfloat16 where the hardware is fast at it.",
            ),
            click.option(
                "--threads", type=click.IntRange(1), help="Processor threads of the model. [default: mostly all]"
            ),
        ]
    ):
        command = option(command)
    return command


def corpus_options(command: F) -> F:
    """What a corpus is, and what becomes of its bad rows."""
    for option in reversed(
        [
            click.option(
                "--kind",
                default="auto",
                show_default=True,
                type=click.Choice(["auto", "beir", "jsonl", "csv", "tsv", "parquet", "files"]),
                help="What CORPUS is.",
            ),
            click.option("--id-field", default="id", show_default=True, help="Key or column of the id."),
            click.option("--title-field", default="title", show_default=True, help="Key or column of the title."),
            click.option("--text-field", default="text", show_default=True, help="Key or column of the text."),
            click.option(
                "--metadata-field", multiple=True, help="Keys or columns to keep beside. [default: all others]"
            ),
            click.option(
                "--column",
                "columns",
                multiple=True,
                metavar="NAME:TYPE",
                help="Type of a CSV or TSV column: integer, decimal, boolean, date, text. [default: by its cells]",
            ),
            click.option("--delimiter", help="Between CSV or TSV cells, such as ; or tab. [default: comma, or tab]"),
            click.option("--no-header", is_flag=True, help="The first line of CSV or TSV is a row, not the header."),
            click.option("--encoding", default="utf-8", show_default=True, help="Of text, CSV and JSON lines."),
            click.option(
                "--on-error",
                type=click.Choice(["raise", "skip"]),
                help="Stop at a bad row or file, or write it to the rejects and continue. "
                "[default: skip in folders of files, else raise]",
            ),
            click.option(
                "--rejects", type=click.Path(dir_okay=False, path_type=Path), help="[default: INDEX.rejects.jsonl]"
            ),
        ]
    ):
        command = option(command)
    return command


def table_options(columns: tuple[str, ...], delimiter: str | None, no_header: bool) -> Any:
    """How a CSV or TSV file is to be read."""
    from searchkit.readers.delimited import TableOptions

    named = [column.rpartition(":") for column in columns]
    if wrong := [column for column, (name, _, _) in zip(columns, named, strict=True) if not name]:
        raise click.UsageError(f"--column {wrong[0]}: expected NAME:TYPE, such as year:integer")
    return TableOptions(delimiter, not no_header, {name: kind for name, _, kind in named})


def format_option(command: F) -> F:
    """Words, or JSON for programs."""
    return click.option("--format", "output", default="text", show_default=True, type=click.Choice(["text", "json"]))(
        command
    )


def instruction_options(command: F) -> F:
    """What to find, in a sentence or by a name."""
    for option in reversed(
        [
            click.option("--instruction", help="One sentence that says what to find. Empty: none at all."),
            click.option("--task", help="A named task with its published instruction: scifact, fiqa, quora, web ..."),
        ]
    ):
        command = option(command)
    return command


def hits_options(command: F) -> F:
    """How many documents a search gives, ranked by what."""
    for option in reversed(
        [
            click.option("-k", default=10, show_default=True, type=click.IntRange(1), help="Documents a query."),
            click.option(
                "--mode",
                default="hybrid",
                show_default=True,
                type=click.Choice(["dense", "lexical", "hybrid"]),
                help="How to rank.",
            ),
        ]
    ):
        command = option(command)
    return command


def fusion_options(command: F) -> F:
    """How hybrid search makes one ranking of two."""
    for option in reversed(
        [
            click.option(
                "--fusion",
                default="adaptive",
                show_default=True,
                type=click.Choice(["adaptive", "weighted", "rrf"]),
                help="Weighted scores, or reciprocal ranks.",
            ),
            click.option(
                "--dense-weight",
                default=0.5,
                show_default=True,
                type=click.FloatRange(0, 1),
                help="Share of the vectors in weighted fusion.",
            ),
            click.option("--rrf-k", default=60, show_default=True, type=click.IntRange(1), help="Constant of rrf."),
        ]
    ):
        command = option(command)
    return command


def open_engine(
    index: Path, model: str | None, adapter: str | None, device: str | None, dtype: str, threads: int | None = None
) -> Any:
    """An engine for searching; the model is loaded when it is first needed."""
    from searchkit.engine import SearchEngine

    return SearchEngine.open(index, model=model, adapter=adapter, device=device, dtype=dtype, threads=threads)


def instruction_of(task: str | None, instruction: str | None) -> str | None:
    """The instruction that two options ask for."""
    from searchkit.tasks import get_task

    if task is not None and instruction is not None:
        raise click.UsageError("--task and --instruction exclude each other")
    return instruction if task is None else get_task(task).instruction


def readable_bytes(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
