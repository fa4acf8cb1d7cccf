"""`searchkit bitext`: does every sentence find its translation?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.options import FILE, instruction_of, instruction_options, model_options, note

if TYPE_CHECKING:
    from searchkit.evaluation.bitext import Mined


@click.command()
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="FILE...")
@instruction_options
@click.option("--format", "output", default="table", show_default=True, type=click.Choice(["table", "json"]))
@model_options
def bitext(files: tuple[Path, ...], output: str, **options: Any) -> None:
    """Measure how well a model finds translations: accuracy, F1, precision and recall, as MTEB's bitext mining.

    A FILE is TSV of two columns or JSON lines of "sentence1" and "sentence2", for a pair of languages each; plain text
    comes in two files with equally many lines. Every sentence looks for its translation among all of its file. Models
    that were trained with instructions are told the paper's, on both sides, unless you give another.

    \b
        searchkit bitext news.de.txt news.en.txt --model intfloat/multilingual-e5-small
        searchkit bitext tatoeba/*.tsv --model my-model/ --format json
    """
    from searchkit.evaluation.bitext import average, mine, read_bitexts
    from searchkit.models.embedder import DEFAULT_MODEL, Embedder
    from searchkit.tasks import get_task

    instruction = instruction_of(options["task"], options["instruction"])
    bitexts = read_bitexts(files)
    how = {name: options[name] for name in ("adapter", "device", "dtype", "threads")}
    embedder = Embedder(options["model"] or DEFAULT_MODEL, **how)
    if instruction is None and embedder.conventions.default_instruction is not None:
        instruction = get_task("bitext").instruction
        note(f"instruction: {instruction}")
    found = [mine(embedder, one, instruction=instruction, on_side=lambda side: note(f"{side} ...")) for one in bitexts]
    for one in found:
        if one.repeated:
            note(f"{one.name}: {one.repeated} second sentences come again; only that of the same line is right")
        if one.truncated:
            note(f"{one.name}: {one.truncated} sentences are cut at the {embedder.max_length} tokens the model reads")
    if output == "json":
        content = {"model": embedder.name, "instruction": instruction, "pairs": [asdict(one) for one in found]}
        click.echo(json.dumps({**content, "average": average(found)}, indent=1, ensure_ascii=False))
    else:
        _print_table(found)


def _print_table(found: list[Mined]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from searchkit.evaluation.bitext import METRICS, average

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("languages", no_wrap=True)
    for name in ("pairs", *METRICS, "f1, backward"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = [(one.name, f"{one.sentences:,}", one.forward, one.backward) for one in found]
    if len(found) > 1:
        means = average(found)
        rows.append((f"average of {len(found)}", "", means["forward"], means["backward"]))
    for number, (name, count, forward, backward) in enumerate(rows):
        if number == len(found):
            table.add_section()
        values = [f"{forward[metric]:.4f}" for metric in METRICS] + [f"{backward['f1']:.4f}"]
        table.add_row(escape(name), count, *values)
    Console().print(table)
