"""`searchkit mine`: hard negatives for training examples."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from searchkit.cli.options import ModelOptions, model_options
from searchkit.cli.output import count as counted
from searchkit.cli.output import note, say
from searchkit.cli.types import FILE, INDEX, MODES, NEW_FILE

_NO_INSTRUCTION = ("instruction", "")


@click.command()
@click.argument("index", type=INDEX)
@click.argument("examples", type=FILE)
@click.option("--out", required=True, type=NEW_FILE, help="JSON lines file to write.")
@click.option("--count", default=4, show_default=True, type=click.IntRange(1), help="Negatives per query.")
@click.option("--depth", default=50, show_default=True, type=click.IntRange(1), help="Hits considered per query.")
@click.option(
    "--margin",
    default=0.95,
    show_default=True,
    help="Skip hits whose similarity to the query exceeds this share of the positive's: likely answers.",
)
@click.option("--mode", default="hybrid", show_default=True, type=click.Choice(MODES), help="How hits are ranked.")
@model_options
def mine(
    index: Path, examples: Path, out: Path, count: int, depth: int, margin: float, mode: str, model: ModelOptions
) -> None:
    """Add hard negatives to EXAMPLES: passages of INDEX that rank high but are not the answer.

    \b
        searchkit mine papers.index pairs.jsonl --out mined.jsonl
        searchkit train mined.jsonl --base my-model/ --out my-embedder
    """
    from searchkit.ranking import SearchOptions, as_mode
    from searchkit.readers.rejects import Rejects
    from searchkit.training.dataset import read_examples
    from searchkit.training.negatives import MineReport
    from searchkit.training.negatives import mine as run

    if out.exists() and out.samefile(examples):
        raise click.UsageError(f"--out is {examples} itself; name another file")
    report = MineReport()
    rejects = Rejects(out.with_name(out.name + ".rejects.jsonl"))
    part = out.with_name(out.name + ".part")  # an earlier file stays until the new one is complete
    out.parent.mkdir(parents=True, exist_ok=True)
    with rejects, model.open(index) as engine, part.open("w", encoding="utf-8") as file:
        mined = run(
            engine,
            read_examples(examples, corpus=engine, rejects=rejects),
            report,
            count=count,
            depth=depth,
            margin=margin,
            options=SearchOptions(mode=as_mode(mode)),
        )
        for example in mined:
            values = asdict(example).items()
            # An empty instruction is kept: it means none at all, not even the model's own.
            kept = {
                key: value for key, value in values if value not in (None, "", ()) or (key, value) == _NO_INSTRUCTION
            }
            file.write(json.dumps(kept, ensure_ascii=False) + "\n")
    part.replace(out)
    say(
        f"{out}: {counted(report.examples, 'example')} with {counted(report.negatives, 'negative')}; skipped as likely "
        f"answers: {report.too_close:,}, as copies of the positive: {report.copies:,}"
    )
    if report.without:
        note(f"examples without a negative: {report.without:,}; try a larger --depth or --margin")
    if rejects.count:
        note(f"rows skipped: {rejects.count:,}; see {rejects.path}")
