"""`searchkit mine`: hard negatives for training examples."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from searchkit.cli.options import FILE, INDEX, model_options, note, open_engine

_BARE = ("instruction", "")


@click.command()
@click.argument("index", type=INDEX)
@click.argument("examples", type=FILE)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSON lines to write.")
@click.option("--count", default=4, show_default=True, type=click.IntRange(1), help="Negatives for each query.")
@click.option("--depth", default=50, show_default=True, type=click.IntRange(1), help="Hits looked at for each query.")
@click.option(
    "--margin", default=0.95, show_default=True, help="Drop hits nearer to the query than this share of the positive's."
)
@click.option("--mode", default="hybrid", show_default=True, type=click.Choice(["dense", "lexical", "hybrid"]))
@model_options
def mine(
    index: Path,
    examples: Path,
    out: Path,
    count: int,
    depth: int,
    margin: float,
    mode: str,
    model: str | None,
    adapter: str | None,
    device: str | None,
    dtype: str,
    threads: int | None,
) -> None:
    """Add to EXAMPLES passages of INDEX that rank high and are not the answer.

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
    part = out.with_name(out.name + ".part")  # what was there stays until all is done
    with (
        rejects,
        open_engine(index, model, adapter, device, dtype, threads) as engine,
        part.open("w", encoding="utf-8") as file,
    ):
        found = run(
            engine,
            read_examples(examples, corpus=engine, rejects=rejects),
            report,
            count=count,
            depth=depth,
            margin=margin,
            options=SearchOptions(mode=as_mode(mode)),
        )
        for example in found:
            values = asdict(example).items()
            # An empty instruction says that there is none, not even the model's own.
            kept = {key: value for key, value in values if value not in (None, "", ()) or (key, value) == _BARE}
            file.write(json.dumps(kept, ensure_ascii=False) + "\n")
    part.replace(out)
    click.echo(
        f"{out}: {report.examples} examples with {report.negatives} negatives; dropped as likely answers: "
        f"{report.too_close}, as copies of the positive: {report.copies}"
    )
    if report.without:
        note(f"{report.without} examples got no negative; look deeper with --depth or nearer with --margin")
    if rejects.count:
        note(f"{rejects.count} rows were left out; see {rejects.path}")
