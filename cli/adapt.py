"""`searchkit adapt`: a model that knows the index's own documents."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import click

from searchkit.cli.judgements import JudgementOptions, judgement_options
from searchkit.cli.options import InstructionOptions, as_record, instruction_options, table_or_json
from searchkit.cli.output import count as counted
from searchkit.cli.output import note, print_json, print_table, say
from searchkit.cli.synthesize import WriterOptions, WritingBar, writer_options
from searchkit.cli.train import TrainingBar
from searchkit.cli.types import FILE, INDEX, NEW_FOLDER, Finite

if TYPE_CHECKING:
    from searchkit.records import Judgements
    from searchkit.training.adaptation.config import AdaptConfig
    from searchkit.training.adaptation.report import AdaptReport
    from searchkit.training.synthesis.settings import SynthesizeConfig

_STAGES = {
    "pairs": "filtering the pairs",
    "fit": "fitting a linear map to the vectors of the pairs",
    "mine": "mining hard negatives",
    "general": "writing general examples",
    "train": "training",
    "export": "exporting the model",
    "index": "indexing with the new model",
    "evaluate": "evaluating both models",
}


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How the model is trained; named as in AdaptConfig."""

    train: str | None
    general: tuple[Path, ...]
    held_out: float
    steps: int | None
    batch_size: int
    learning_rate: float | None
    max_length: int
    lora_rank: int | None
    seed: int


_training_options = as_record(
    "training",
    TrainingOptions,
    click.option(
        "--train",
        type=click.Choice(["head", "all"]),
        help="head: fit a linear map to the vectors in INDEX, in seconds. all: train the model and embed everything "
        "again, in minutes to hours; needs the extra train. [default: all if an option below from --steps on is given, "
        "else head]",
    ),
    click.option(
        "--held-out",
        default=0.2,
        show_default=True,
        type=Finite(0, 1, min_open=True, max_open=True),
        help="Without judgements: share of the pairs' queries to evaluate on.",
    ),
    click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Random seed."),
    click.option("--steps", type=click.IntRange(1), help="Training steps. [default: one epoch, from 60 to 400 steps]"),
    click.option("--batch-size", default=16, show_default=True, type=click.IntRange(2), help="Queries per step."),
    click.option(
        "--learning-rate",
        type=Finite(0, min_open=True),
        help="Peak learning rate. [default: 6e-5; LoRA: 1e-4]",
    ),
    click.option(
        "--max-length", default=96, show_default=True, type=click.IntRange(64), help="Tokens per text in training."
    ),
    click.option(
        "--rank",
        "lora_rank",
        type=click.IntRange(0),
        help="LoRA rank; 0: train all weights. [default: 0 up to 100 million weights, else 16]",
    ),
    click.option(
        "--general", type=FILE, multiple=True, help="Examples from other domains, against forgetting. Repeatable."
    ),
)

_OF_WEIGHTS = ("steps", "batch_size", "learning_rate", "max_length", "lora_rank", "general")
"""Options that only say how weights are trained."""


@click.command()
@click.argument("index", type=INDEX)
@click.option("--pairs", type=FILE, multiple=True, help="JSON lines of query and positive_id or positive. Repeatable.")
@click.option("--writer", metavar="MODEL", help="Let a language model write pairs first (see searchkit synthesize).")
@click.option("--count", default=1500, show_default=True, type=click.IntRange(1), help="Number of pairs to write.")
@writer_options
@click.option("--out", type=NEW_FOLDER, help="Working folder. [default: INDEX.adapted]")
@judgement_options
@instruction_options
@_training_options
@click.option("--force", is_flag=True, help="Keep the new model even if it is not better.")
@click.option("--keep-index", is_flag=True, help="Leave INDEX unchanged; the new index is in OUT.")
@table_or_json
@click.pass_context
def adapt(
    context: click.Context,
    /,
    index: Path,
    pairs: tuple[Path, ...],
    writer: str | None,
    count: int,
    writing: WriterOptions,
    out: Path | None,
    judged: JudgementOptions,
    wording: InstructionOptions,
    training: TrainingOptions,
    force: bool,
    keep_index: bool,
    output: str,
) -> None:
    """Adapt the model of INDEX to pairs of queries and its documents; keep the new model if it is better.

    By default, a linear map behind the model is fitted to the vectors in INDEX, which takes seconds. "Better" is
    decided by your judgements, or else by pairs held out from training. If it is, INDEX uses the new model, OUT/model,
    and the old index moves to OUT/before.index. Stop it at any time and run it again to resume.

    \b
        searchkit adapt papers.index --pairs pairs.jsonl
        searchkit adapt papers.index --writer gpt-4o-mini --count 2000 --max-cost 2 --price-in 0.15 --price-out 0.6
        searchkit adapt papers.index --pairs pairs.jsonl --queries queries.jsonl --qrels qrels.tsv
        searchkit adapt scifact.index --pairs pairs.jsonl --beir scifact/ --split test --keep-index
    """
    if not pairs and not writer:
        raise click.UsageError(
            "give pairs to train on, --pairs FILE: JSON lines of query and positive_id, the id of the document that "
            "answers it; or let a language model write them: --writer MODEL"
        )
    if not writer:
        _refuse_writer_options(context)
    from searchkit.training.adaptation.adapt import adapt as run
    from searchkit.training.adaptation.config import AdaptConfig
    from searchkit.training.adaptation.install import adapted, check

    out = out or index.with_name(index.name.removesuffix(".index") + ".adapted")
    written = out.with_name(out.name + ".pairs.jsonl")
    if writer:
        pairs = (*pairs, written)
    values = {field.name: getattr(training, field.name) for field in fields(training)}
    values["train"] = _chosen_training(context, training.train)
    config = AdaptConfig(index=index, pairs=pairs, out=out, **values)
    judgements = _judgements(index, judged, wording)
    if writer and adapted(config, judgements) is None:
        check(config, judgements, install=not keep_index)  # before anything is paid for
        from searchkit.training.synthesis.settings import SynthesizeConfig  # needs the extra train

        exclude = (
            (str(judged.beir) + (f":{judged.split}" if judged.split else ""),)
            if judged.beir
            else ((str(judged.queries),) if judged.queries else ())
        )
        _write_pairs(
            index,
            SynthesizeConfig(
                out=str(written), model=writer, count=count, evaluation=exclude, seed=training.seed, **asdict(writing)
            ),
        )
    try:
        with TrainingBar() as bar:
            report = run(
                config, judgements, force=force, install=not keep_index, on_stage=_announce, on_step=bar.update
            )
    except KeyboardInterrupt:
        raise click.ClickException("stopped; the same command resumes") from None
    if output == "json":
        print_json(report.to_json())
    else:
        _show(report, config, keep_index)


def _refuse_writer_options(context: click.Context) -> None:
    """Raise UsageError on an option of the language model when there is none: it would have no effect."""
    names = {"count", *(field.name for field in fields(WriterOptions))}
    if used := _given(context, names):
        raise click.UsageError(f"{used} is for a language model; name one with --writer")


def _chosen_training(context: click.Context, train: str | None) -> str:
    """What to train: as chosen, else weights where an option says how; UsageError where the two contradict."""
    used = _given(context, _OF_WEIGHTS)
    if used and train == "head":
        raise click.UsageError(f"{used} says how weights are trained; omit it, or choose --train all")
    return train or ("all" if used else "head")


def _given(context: click.Context, names: Collection[str]) -> str | None:
    """The first option on the command line among some parameters, as users write it."""
    for parameter in context.command.params:
        used = context.get_parameter_source(parameter.name or "") is not click.core.ParameterSource.DEFAULT
        if used and parameter.name in names:
            return parameter.opts[0]
    return None


def _write_pairs(index: Path, config: SynthesizeConfig) -> None:
    """Let a language model write pairs."""
    from searchkit.engine import SearchEngine
    from searchkit.training.synthesis.synthesize import synthesize

    with SearchEngine.open(index) as engine, WritingBar() as bar:
        report = synthesize(config, engine, on_progress=bar.update)
    dropped = ", ".join(f"{reason} {number}" for reason, number in report.refused.items())
    cost = f", {report.cost:.2f} by the given prices" if report.cost else ""
    note(
        f"{config.out}: {counted(report.examples, 'pair')} written, from {counted(report.asked, 'new request')}; "
        f"{counted(report.tokens_in + report.tokens_out, 'token')} in all{cost}; dropped: {dropped or 'none'}"
    )
    if report.out_of_budget:
        note(f"{report.stopped}: continuing with these pairs")
    elif report.stopped:
        raise click.ClickException(f"writing stopped early: {report.stopped}; the same command resumes")


def _judgements(index: Path, judged: JudgementOptions, wording: InstructionOptions) -> Judgements | None:
    from searchkit.engine import SearchEngine

    if not judged.given:
        for name, value in (("split", judged.split), ("instruction", wording.instruction), ("task", wording.task)):
            if value:
                raise click.UsageError(f"--{name} belongs to judgements; give --beir, or --queries and --qrels")
        return None
    with SearchEngine.open(index) as engine:
        return judged.read(engine, wording)


def _announce(stage: str, needed: bool) -> None:
    if stage == "adapted":
        note("this run is finished, and the index uses its model; for another round, choose another --out")
    else:
        note(f"{_STAGES[stage]} ..." if needed else f"{_STAGES[stage]}: done before")


def _show(report: AdaptReport, config: AdaptConfig, keep_index: bool) -> None:
    rows = []
    for mode, both in report.modes.items():
        ndcg, recall = (
            [f"{values[name]:.4f}" for values in (both.before, both.after)] for name in ("ndcg@10", "recall@100")
        )
        rows.append([mode, *ndcg, f"{both.gain:+.4f}", f"{both.p:.4f}", *recall])
    print_table(["mode", "nDCG@10 before", "after", "change", "p", "recall@100 before", "after"], rows)
    if report.out_of_domain:
        before, after = report.out_of_domain
        say(f"out-of-domain (corpora/intents), dense: {before:.4f} before, {after:.4f} after")
    counts = report.pairs
    queries = len(next(iter(report.modes.values())).changes)
    kind = "your judgements" if report.own_judgements else "often easier than real queries"
    say(
        f"evaluated on {counted(queries, 'query')} of {report.judged_by} ({kind}); "
        "p: probability of such a difference by chance"
    )
    if number := int(report.without_pairs.get("queries", 0)):  # reports of earlier versions do not have it
        changes = ", ".join(f"{mode} {report.without_pairs[mode]:+.4f}" for mode in ("dense", "hybrid"))
        say(f"change where no relevant document has a training pair ({counted(number, 'query')}): {changes}")
    trained = f"{counts['trained_on']} of {counted(counts['read'], 'pair')} trained on, {counts['held_out']} held out"
    say(trained if report.strength is None else f"{trained}; strength of the map, from 0 to 1: {report.strength:g}")
    if report.strength == 0:
        say("strength 0 leaves vectors as they are: on a part of the pairs, no strength of the map found more")
    if counts["set_aside"]:
        note(f"pairs not used: {counts['set_aside']}; see {config.out / 'refused.jsonl'}")
    say(report.verdict)
    if report.kept:
        say(f"{config.index} now uses {config.out / 'model'}; the old index is {config.out / 'before.index'}")
    else:
        hint = "" if keep_index and report.wins else "; to keep the new model anyway: --force"
        say(f"{config.index} is unchanged; the new index is {config.out / 'after.index'}{hint}")
