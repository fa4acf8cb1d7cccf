"""`searchkit bitext`: does every sentence find its translation?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from searchkit.cli.options import InstructionOptions, ModelOptions, instruction_options, model_options, table_or_json
from searchkit.cli.output import note, print_json, print_table
from searchkit.cli.types import FILE

if TYPE_CHECKING:
    from searchkit.evaluation.bitext import Mined


@click.command()
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="FILE...")
@instruction_options
@table_or_json
@model_options
def bitext(files: tuple[Path, ...], wording: InstructionOptions, output: str, model: ModelOptions) -> None:
    """Measure how well a model finds translations: accuracy, F1, precision and recall, as in MTEB's bitext mining.

    Each FILE holds one language pair: TSV with two columns, or JSON lines with "sentence1" and "sentence2". Plain text
    comes as two files with the same number of lines. Every sentence is searched for among all translations in its file.
    Models trained with instructions get the paper's instruction on both sides, unless you give another.

    \b
        searchkit bitext news.de.txt news.en.txt --model intfloat/multilingual-e5-small
        searchkit bitext tatoeba/*.tsv --model my-model/ --format json
    """
    from searchkit.evaluation.bitext import average, mine, read_bitexts
    from searchkit.tasks import get_task

    instruction = wording.text()
    bitexts = read_bitexts(files)
    embedder = model.embedder()
    if instruction is None and embedder.conventions.default_instruction is not None:
        instruction = get_task("bitext").instruction
        note(f"instruction: {instruction}")
    results = [
        mine(embedder, pair, instruction=instruction, on_side=lambda side: note(f"{side} ...")) for pair in bitexts
    ]
    for item in results:
        if item.repeated:
            note(f"{item.name}: repeated second sentences: {item.repeated}; only the one on the same line is correct")
        if item.truncated:
            note(f"{item.name}: sentences cut at the model's {embedder.max_length} tokens: {item.truncated}")
    if output == "json":
        print_json(
            {
                "model": embedder.name,
                "instruction": instruction,
                "pairs": [asdict(item) for item in results],
                "average": average(results),
            }
        )
    else:
        _print_results(results)


def _print_results(results: list[Mined]) -> None:
    from searchkit.evaluation.bitext import METRICS, average

    def row(name: str, sentences: str, forward: dict[str, float], backward: dict[str, float]) -> list[str]:
        return [name, sentences, *(f"{forward[metric]:.4f}" for metric in METRICS), f"{backward['f1']:.4f}"]

    rows: list[list[str] | None] = [
        row(item.name, f"{item.sentences:,}", item.forward, item.backward) for item in results
    ]
    if len(results) > 1:
        means = average(results)
        rows += [None, row(f"average of {len(results)}", "", means["forward"], means["backward"])]
    print_table(["languages", "pairs", *METRICS, "f1, backward"], rows)
