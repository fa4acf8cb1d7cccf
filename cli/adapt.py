"""`searchkit adapt`: a better embedder for one index, from pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.options import FILE, INDEX, instruction_options, note
from searchkit.cli.synthesize import WRITER, writer_options

if TYPE_CHECKING:
    from searchkit.records import Judgements
    from searchkit.training.adaptation.report import AdaptReport

_STAGES = {
    "pairs": "sorting the pairs",
    "mine": "mining hard negatives",
    "general": "writing general examples",
    "train": "training",
    "export": "writing the model",
    "index": "indexing with the new model",
    "evaluate": "measuring both",
    "adapted": "adapting INDEX in this folder (for another round, name another --out)",
}


@click.command()
@click.argument("index", type=INDEX)
@click.option("--pairs", type=FILE, multiple=True, help="JSON lines of query and positive_id or positive. Repeatable.")
@click.option("--writer", metavar="MODEL", help="Let this language model write pairs first (see searchkit synthesize).")
@click.option("--count", default=1500, show_default=True, type=click.IntRange(1), help="Pairs that it writes.")
@writer_options
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Work folder. [default: INDEX.adapted]")
@click.option("--beir", type=INDEX, help="Judge by a BEIR folder with queries.jsonl and qrels/.")
@click.option("--split", help="Which qrels/SPLIT.tsv. [default: what published numbers use, mostly test]")
@click.option("--queries", type=FILE, help="Judge by these queries (JSONL or TSV) ...")
@click.option("--qrels", type=FILE, help="... and judgements (BEIR or TREC form).")
@instruction_options
@click.option("--drop-self/--keep-self", default=None, help="Leave out a query's own id. [default: as the set asks]")
@click.option("--general", type=FILE, multiple=True, help="More examples of other things, against forgetting.")
@click.option(
    "--held-out", default=0.2, show_default=True, type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of the pairs' documents that judges, when no judgements are given.",
)  # fmt: skip
@click.option("--steps", type=click.IntRange(1), help="Of training. [default: once through the pairs, 60 to 400]")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(2), help="Queries a step.")
@click.option("--learning-rate", type=float, help="Highest; falls to 0. [default: 6e-5, for adapters 1e-4]")
@click.option(
    "--max-length", default=96, show_default=True, type=click.IntRange(64), help="Tokens of a text, in training."
)
@click.option(
    "--rank", "lora_rank", type=click.IntRange(0),
    help="LoRA; 0: all weights. [default: 0 up to 100 million weights, then 16]",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--force", is_flag=True, help="Keep the new model although it does not win.")
@click.option("--keep-index", is_flag=True, help="Leave INDEX as it is whatever comes out; the new one is in OUT.")
@click.option("--format", "output", default="table", show_default=True, type=click.Choice(["table", "json"]))
@click.pass_context
def adapt(
    context: click.Context, /, index: Path, pairs: tuple[Path, ...], out: Path | None, output: str, **options: Any
) -> None:
    """Train the model of INDEX on pairs of its documents, and keep the new model if it finds more.

    The result is judged by your own judgements, or by a part of the pairs that is held out. When it wins, INDEX
    searches with the new model from then on, OUT/model, and the old index stays in OUT/before.index. Every stage
    leaves its files in OUT, and the same command goes on where it was stopped.

    \b
        searchkit adapt papers.index --pairs pairs.jsonl
        searchkit adapt papers.index --writer gpt-4o-mini --count 2000 --max-cost 2 --price-in 0.15 --price-out 0.6
        searchkit adapt papers.index --pairs pairs.jsonl --queries queries.jsonl --qrels qrels.tsv
        searchkit adapt scifact.index --pairs pairs.jsonl --beir scifact/ --split test --keep-index
    """
    if not pairs and not options["writer"]:
        raise click.UsageError(
            "give the queries to learn from as --pairs FILE: JSON lines of query and positive_id, the id of the "
            "document that answers it; or let a language model write them: --writer MODEL"
        )
    _check_writer(context)
    from searchkit.training.adaptation.adapt import adapt as run
    from searchkit.training.adaptation.config import AdaptConfig
    from searchkit.training.adaptation.install import adapted, check

    out = out or index.with_name(index.name.removesuffix(".index") + ".adapted")
    written = out.with_name(out.name + ".pairs.jsonl")
    names = ("general", "held_out", "steps", "batch_size", "learning_rate", "max_length", "lora_rank", "seed")
    config = AdaptConfig(
        index=index, pairs=(*pairs, written) if options["writer"] else pairs, out=out,
        **{name: options[name] for name in names},
    )  # fmt: skip
    judgements = _judgements(index, options)
    if options["writer"] and adapted(config) is None:
        check(config, judgements, install=not options["keep_index"])  # before anything is paid for
        _write(index, written, options)

    from searchkit.cli.train import Bar

    with Bar() as bar:
        report = run(
            config, judgements, force=options["force"], install=not options["keep_index"], on_stage=_tell,
            on_step=bar.update,
        )  # fmt: skip
    if output == "json":
        click.echo(json.dumps(report.to_json(), indent=1))
    else:
        _show(report, index, out, options["keep_index"])


def _check_writer(context: click.Context) -> None:
    """Raise UsageError on an option of the writer when there is none: it would have no effect."""
    for parameter in () if context.params["writer"] else context.command.params:
        given = context.get_parameter_source(parameter.name or "") is not click.core.ParameterSource.DEFAULT
        if given and parameter.name in ("count", *WRITER):
            raise click.UsageError(f"{parameter.opts[0]} is about what a language model writes; name one with --writer")


def _write(index: Path, file: Path, options: dict[str, Any]) -> None:
    """Let a language model write pairs."""
    from searchkit.cli.synthesize import Line
    from searchkit.engine import SearchEngine
    from searchkit.training.synthesis.settings import SynthesizeConfig
    from searchkit.training.synthesis.synthesize import synthesize

    judged: tuple[str, ...] = ()  # what judges must not be asked by the pairs
    if options["beir"]:
        judged = (f"{options['beir']}:{options['split']}" if options["split"] else str(options["beir"]),)
    elif options["queries"]:
        judged = (str(options["queries"]),)
    written = SynthesizeConfig(
        out=str(file), model=options["writer"], evaluation=judged, seed=options["seed"],
        **{name: options[name] for name in ("count", *WRITER)},
    )  # fmt: skip
    with SearchEngine.open(index) as engine, Line() as line:
        report = synthesize(written, engine, on_progress=line.update)
    left_out = ", ".join(f"{reason} {count}" for reason, count in report.refused.items())
    cost = f", {report.cost:.2f} by the prices given" if report.cost else ""
    note(
        f"{file}: {report.examples} pairs written ({report.asked} questions asked now; "
        f"{report.tokens_in + report.tokens_out} tokens in all{cost}); left out: {left_out or 'none'}"
    )
    if report.out_of_budget:
        note(f"{report.stopped}: going on with these pairs")
    elif report.stopped:
        raise click.ClickException(f"writing ended before its time: {report.stopped}; the same command goes on")


def _judgements(index: Path, options: dict[str, Any]) -> Judgements | None:
    from searchkit.cli.evaluate import read_judged, set_rules
    from searchkit.engine import SearchEngine
    from searchkit.records import Judgements

    if not any(options[name] for name in ("beir", "queries", "qrels")):
        for name in ("split", "instruction", "task"):
            if options[name]:
                raise click.UsageError(f"--{name} belongs to judgements; give --beir, or --queries and --qrels")
        return None
    queries, qrels, task = read_judged(options)
    with SearchEngine.open(index) as engine:
        instruction, drop_self = set_rules(task, options, engine)
    name = f"{options['beir']}, {options['split']}" if options["beir"] else str(options["qrels"])
    return Judgements(name, queries, qrels, instruction, drop_self)


def _tell(stage: str, needed: bool) -> None:
    note(f"{_STAGES[stage]} ..." if needed else f"{_STAGES[stage]}: done before")


def _show(report: AdaptReport, index: Path, out: Path, keep_index: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("mode")
    for name in ("nDCG@10 before", "after", "change", "p", "recall@100 before", "after"):
        table.add_column(name, justify="right", no_wrap=True)
    for mode, both in report.modes.items():
        found, recalled = (
            [f"{values[name]:.4f}" for values in (both.before, both.after)] for name in ("ndcg@10", "recall@100")
        )
        table.add_row(mode, *found, f"{both.gain:+.4f}", f"{both.p:.4f}", *recalled)
    Console().print(table)
    if report.out_of_domain:
        first, second = report.out_of_domain
        click.echo(f"on texts of other kinds (corpora/intents), dense: {first:.4f} before, {second:.4f} after")
    counts = report.pairs
    queries = len(next(iter(report.modes.values())).changes)
    kind = "your judgements" if report.own_judgements else "pairs that were held out, not real queries"
    click.echo(f"by {queries} queries of {report.judged_by} ({kind}); p: chance of such a change without a difference")
    click.echo(f"{counts['trained_on']} of {counts['read']} pairs trained on, {counts['held_out']} held out")
    if counts["set_aside"]:
        note(f"{counts['set_aside']} pairs were set aside; see {out / 'refused.jsonl'}")
    if not report.wins:
        click.echo("the new model is not better")
    elif not report.certain:
        click.echo("the new model is better, but it may be chance")
    else:
        click.echo("the new model is better")
    if report.kept:
        click.echo(f"{index} searches with {out / 'model'} now; as it was: {out / 'before.index'}")
    else:
        why = "" if keep_index and report.wins else "; to keep the new model all the same: --force"
        click.echo(f"{index} is as it was; the new index is {out / 'after.index'}{why}")
