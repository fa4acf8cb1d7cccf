"""`searchkit synthesize`: training examples, written by a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.options import as_record, table_or_json
from searchkit.cli.output import count, note, print_json, print_table, progress_bar, say
from searchkit.cli.types import INDEX, NEW_FILE, Finite, ListOf

if TYPE_CHECKING:
    from searchkit.training.synthesis.outcomes import Outcome, Outcomes
    from searchkit.training.synthesis.settings import Progress, SynthesisReport

_FILE = click.Path(exists=True, dir_okay=False)
_FOLDER = click.Path(exists=True, file_okay=False)


class _Weights(ListOf):
    """ "en=3,de" -> {"en": 3, "de": 1}."""

    name = "weights"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, Mapping):
            return value
        weights = {}
        for part in super().convert(value, param, ctx):
            name, _, weight = part.partition("=")
            try:
                weights[name.strip()] = float(weight or 1)
            except ValueError:
                self.fail(f"{part!r} is no name with a weight, such as {self.example.partition(',')[0]}", param, ctx)
        return weights


@dataclass(frozen=True, slots=True)
class WriterOptions:
    """How a language model is asked for examples, and what may be spent; named as in SynthesizeConfig."""

    base_url: str | None
    key_variable: str
    concurrency: int
    timeout: float
    temperature: float
    max_tokens: int | None
    max_cost: float | None
    price_in: float
    price_out: float
    samples: str | None
    judge: bool
    batch: bool


writer_options = as_record(
    "writing",
    WriterOptions,
    click.option("--base-url", help="Server that speaks OpenAI's protocol: URL up to /v1. [default: OpenAI]"),
    click.option(
        "--key-variable",
        default="OPENAI_API_KEY",
        show_default=True,
        help="Environment variable that holds the API key.",
    ),
    click.option(
        "--concurrency",
        default=16,
        show_default=True,
        type=click.IntRange(1),
        help="Concurrent requests; fewer while the server is slow.",
    ),
    click.option("--timeout", default=120.0, show_default=True, help="Seconds to wait for an answer."),
    click.option("--temperature", default=1.0, show_default=True, help="Sampling temperature."),
    click.option("--max-tokens", type=click.IntRange(1), help="Stop after this many tokens, over all runs."),
    click.option("--max-cost", type=Finite(0, min_open=True), help="Stop at this cost, by --price-in and --price-out."),
    click.option("--price-in", default=0.0, help="Price of a million input tokens."),
    click.option("--price-out", default=0.0, help="Price of a million output tokens."),
    click.option("--samples", type=_FILE, help="Real queries whose style to imitate: pairs or queries.jsonl."),
    click.option(
        "--judge", is_flag=True, help="Let the model grade hits of INDEX: better positives, and hard negatives."
    ),
    click.option("--batch", is_flag=True, help="Use the batch API: cheaper, answers within a day."),
)


@click.command()
@click.argument("index", type=INDEX, required=False)
@click.option("--out", required=True, type=NEW_FILE, help="JSON lines file to write.")
@click.option("--model", required=True, help="Name of the language model on its server.")
@click.option("--count", default=1000, show_default=True, type=click.IntRange(1), help="Number of examples.")
@writer_options
@click.option("--retries", default=6, show_default=True, type=click.IntRange(0), help="Retries after server errors.")
@click.option("--top-p", default=1.0, show_default=True, help="Nucleus sampling.")
@click.option("--max-output-tokens", default=4096, show_default=True, type=click.IntRange(1), help="Longest answer.")
@click.option("--prompts", type=_FOLDER, help="Folder of your own prompts and mix.toml, used before the built-in ones.")
@click.option(
    "--groups",
    type=_Weights(str, "short-long=2,sts=1"),
    help="Without INDEX: weights of task groups, as short-long=2,sts=1. [default: the paper's]",
)
@click.option(
    "--languages",
    type=_Weights(str, "en=3,de=1"),
    help="Without INDEX: weights of languages, as en=3,de=1. [default: the paper's 93]",
)
@click.option(
    "--examples-per-task",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Without INDEX: examples of each task.",
)
@click.option(
    "--queries-per-passage",
    default=3,
    show_default=True,
    type=click.IntRange(1),
    help="Queries per call.",
)
@click.option(
    "--kinds",
    default=(),
    type=ListOf(str, "question,keywords"),
    help="Kinds of query, as question,keywords. [default: all]",
)
@click.option("--instruction", help="Instruction of all examples. [default: the model writes some for the collection]")
@click.option("--min-words", default=15, show_default=True, type=click.IntRange(0), help="Skip shorter passages.")
@click.option(
    "--round-trip",
    default=20,
    show_default=True,
    type=click.IntRange(0),
    help="Keep a query only if its passage is among this many hits of INDEX; 0: keep all.",
)
@click.option("--likeness", default=0.8, show_default=True, help="Similarity at which a query counts as a duplicate.")
@click.option(
    "--check-language/--any-language", default=True, show_default=True, help="Drop examples in the wrong language."
)
@click.option(
    "--judged", default=6, show_default=True, type=click.IntRange(1), help="With --judge: hits graded per query."
)
@click.option("--poll", default=30.0, show_default=True, help="With --batch: seconds between checks.")
@click.option(
    "--evaluation", multiple=True, help="Drop queries of this test set: a file, FOLDER or FOLDER:SPLIT. Repeatable."
)
@click.option(
    "--tries", default=4, show_default=True, type=click.IntRange(1), help="Rounds, to replace what was dropped."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Random seed.")
@table_or_json
def synthesize(index: Path | None, out: Path, writing: WriterOptions, output: str, **options: Any) -> None:
    """Let a language model write training examples: queries for the passages of INDEX, or everything without INDEX.

    OUT is input for `searchkit train`. A report, a chart, dropped examples with their reasons, and all answers are
    kept beside it: run the command again to resume, and nothing is paid for twice.

    \b
        searchkit synthesize papers.index --out pairs.jsonl --model gpt-4o-mini --count 3000
        searchkit synthesize papers.index --out pairs.jsonl --model qwen3:8b --base-url http://localhost:11434/v1
        searchkit synthesize --out general.jsonl --model gpt-4o-mini --count 500 --max-cost 2 \\
            --price-in 0.15 --price-out 0.6
    """
    from searchkit.engine import SearchEngine
    from searchkit.training.synthesis.settings import SynthesizeConfig
    from searchkit.training.synthesis.synthesize import synthesize as run

    config = SynthesizeConfig(out=str(out), **asdict(writing), **options)
    try:
        with WritingBar() as bar:
            if index is None:
                report = run(config, on_progress=bar.update)
            else:
                with SearchEngine.open(index) as engine:
                    report = run(config, engine, on_progress=bar.update)
    except KeyboardInterrupt:
        raise click.ClickException("stopped; all answers are kept, and the same command resumes from here") from None
    if output == "json":
        print_json(report.to_json())
    else:
        _show(config.out, report)
    _draw(config.beside(""), report)
    if report.stopped:
        note(f"stopped early: {report.stopped}")
        if not report.out_of_budget:
            raise SystemExit(1)


def _show(out: str, report: SynthesisReport) -> None:
    cost = f", {report.cost:.2f} by the given prices" if report.cost else ""
    say(
        f"{out}: {report.examples} of {count(report.wanted, 'example')}, from {count(report.answers, 'answer')} "
        f"({report.asked} new) and {count(report.tokens_in + report.tokens_out, 'token')}{cost}, "
        f"in {report.seconds:.0f} s"
    )
    per = report.per_example
    say(
        f"per example: {per(report.tokens_in):,.0f} tokens in, {per(report.tokens_out):,.0f} out"
        + (f", {per(report.waited):.1f} s of waiting for the server" if report.waited else "")
    )
    for name, counts in (
        ("languages", report.languages),
        ("positives", report.judged),
        ("dropped", report.refused),
        ("errors", report.troubles),
    ):
        if counts:
            ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            listed = ", ".join(f"{key} {number}" for key, number in ranked[:14])
            rest = f", {len(ranked) - 14} more {sum(number for _, number in ranked[14:])}" if len(ranked) > 14 else ""
            say(f"{name}: {listed}{rest}")
    _show_outcomes(report.outcomes)
    if report.estimated:
        note(f"the server did not report the tokens of {count(report.estimated, 'answer')}; they are estimates")


def _show_outcomes(outcomes: Outcomes) -> None:
    """Print a row for each group and prompt: what was asked for, what of it is usable, and why the rest is not."""

    def row(outcome: Outcome) -> Sequence[str]:
        reasons = ", ".join(f"{reason} {number}" for reason, number in outcome.refused.most_common())
        numbers = (f"{outcome.asked:,}", f"{outcome.usable:,}", f"{outcome.share:.0%}")
        return (outcome.group, outcome.prompt, *numbers, reasons)

    say()
    print_table(
        ("group", "prompt", "asked", "usable", "share", "not usable because"),
        [*map(row, outcomes.all()), None, row(outcomes.total())],
        left=2,
        last_left=True,
    )


def _draw(file: Path, report: SynthesisReport) -> None:
    """Draw the chart, for light and for dark pages, if matplotlib is installed."""
    from searchkit.errors import MissingExtraError
    from searchkit.training.synthesis.plot import synthesis_chart

    try:
        synthesis_chart(file, report)
        synthesis_chart(file.with_name(file.name + ".dark"), report, dark=True)
    except MissingExtraError as error:
        note(f"no chart: {error}")


class WritingBar:
    """Examples, tokens, cost and time left, on a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

        self._bar = progress_bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f} of {task.total:.0f} examples"),
            TextColumn("· {task.fields[tokens]:,} tokens{task.fields[cost]} · {task.fields[refused]} dropped · left:"),
            TimeRemainingColumn(),
            smoothing=60,
        )
        self._task: Any = None

    def __enter__(self) -> WritingBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, progress: Progress) -> None:
        """Show the state of the run."""
        stages = {"tasks": "writing tasks", "asking": "writing", "filtering": "filtering", "judging": "judging"}
        values: dict[str, Any] = {
            "description": stages[progress.stage],
            "tokens": progress.tokens,
            "cost": f" · {progress.cost:.2f}" if progress.cost else "",
            "refused": progress.refused,
        }
        if self._task is None:
            self._task = self._bar.add_task(total=progress.wanted, **values)
        self._bar.update(self._task, completed=min(progress.examples, progress.wanted), **values)
