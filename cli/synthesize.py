"""`searchkit synthesize`: training examples, written by a language model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.options import INDEX, F, note

if TYPE_CHECKING:
    from searchkit.training.synthesis.settings import Progress, SynthesisReport

_FILE = click.Path(exists=True, dir_okay=False)
_FOLDER = click.Path(exists=True, file_okay=False)

WRITER = (
    "base_url", "key_variable", "concurrency", "max_tokens", "max_cost", "price_in", "price_out", "samples", "judge",
    "batch",
)  # fmt: skip
"""Names of `writer_options`, which are those of SynthesizeConfig too."""


def writer_options(command: F) -> F:
    """How a language model is asked for examples, and what may be spent on it."""
    for option in reversed(
        [
            click.option(
                "--base-url", help="Of any server that speaks OpenAI's protocol, with /v1. [default: OpenAI's]"
            ),
            click.option(
                "--key-variable",
                default="OPENAI_API_KEY",
                show_default=True,
                help="Environment variable that holds the key.",
            ),
            click.option(
                "--concurrency", default=16, show_default=True, type=click.IntRange(1), help="Questions at once."
            ),
            click.option("--max-tokens", type=click.IntRange(1), help="Most tokens to spend, all runs together."),
            click.option(
                "--max-cost", type=click.FloatRange(0, min_open=True), help="Most to spend, by the prices given."
            ),
            click.option("--price-in", default=0.0, help="Of a million tokens asked."),
            click.option("--price-out", default=0.0, help="Of a million tokens answered."),
            click.option(
                "--samples", type=_FILE, help="Queries of your own, which set the tone: pairs or queries.jsonl."
            ),
            click.option(
                "--judge", is_flag=True, help="Let the model grade what INDEX finds: better positives, hard negatives."
            ),
            click.option(
                "--batch", is_flag=True, help="Hand the questions in as batches: cheaper, each answered within a day."
            ),
        ]
    ):
        command = option(command)
    return command


@click.command()
@click.argument("index", type=INDEX, required=False)
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="JSON lines to write.")
@click.option("--model", required=True, help="The writing model, as its server calls it.")
@writer_options
@click.option("--count", default=1000, show_default=True, type=click.IntRange(1), help="Examples wanted.")
@click.option("--timeout", default=120.0, show_default=True, help="Seconds for an answer.")
@click.option("--retries", default=6, show_default=True, type=click.IntRange(0), help="After failures of the server.")
@click.option("--temperature", default=1.0, show_default=True, help="Of the sampling.")
@click.option("--top-p", default=1.0, show_default=True, help="Of the sampling.")
@click.option("--max-output-tokens", default=4096, show_default=True, type=click.IntRange(1), help="Longest answer.")
@click.option("--prompts", type=_FOLDER, help="Prompts of your own, and mix.toml; they go before those that ship.")
@click.option("--groups", help="From nothing: such as short-long=2,sts=1. [default: the paper's]")
@click.option("--languages", help="From nothing: such as en=3,de=1. [default: the paper's 93]")
@click.option(
    "--examples-per-task", default=2, show_default=True, type=click.IntRange(1), help="From nothing: of each task."
)
@click.option(
    "--queries-per-passage", default=3, show_default=True, type=click.IntRange(1), help="Asked for in one call."
)
@click.option("--kinds", help="Of query, such as question,keywords. [default: all]")
@click.option("--instruction", help="For all examples. [default: some that the model writes for the collection]")
@click.option("--min-words", default=15, show_default=True, type=click.IntRange(0), help="Leave out shorter passages.")
@click.option(
    "--round-trip",
    default=20,
    show_default=True,
    type=click.IntRange(0),
    help="Keep queries whose passage is among so many that INDEX finds; 0: all.",
)
@click.option("--likeness", default=0.8, show_default=True, help="From which share of it on a query is a copy.")
@click.option("--check-language/--any-language", default=True, show_default=True, help="Leave out the wrong ones.")
@click.option("--judged", default=6, show_default=True, type=click.IntRange(1), help="Documents graded for a query.")
@click.option("--poll", default=30.0, show_default=True, help="Seconds between two looks at a batch.")
@click.option("--evaluation", multiple=True, help="Queries not to ask: a file, FOLDER or FOLDER:SPLIT of BEIR.")
@click.option("--tries", default=4, show_default=True, type=click.IntRange(1), help="Rounds for what was refused.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def synthesize(index: Path | None, **options: Any) -> None:
    """Have a language model write training examples: queries for the passages of INDEX, or all from nothing.

    OUT is what `searchkit train` reads. Beside it lie a report, a figure, what was refused and why, and a folder with
    every answer: the same command goes on where the last one ended, however it ended, and pays for nothing twice.

    \b
        searchkit synthesize papers.index --out pairs.jsonl --model gpt-4o-mini --count 3000
        searchkit synthesize papers.index --out pairs.jsonl --model qwen3:8b --base-url http://localhost:11434/v1
        searchkit synthesize --out general.jsonl --model gpt-4o-mini --count 500 --max-cost 2 \\
            --price-in 0.15 --price-out 0.6
    """
    from searchkit.engine import SearchEngine
    from searchkit.training.synthesis.settings import SynthesizeConfig
    from searchkit.training.synthesis.synthesize import synthesize as run

    for name in ("groups", "languages"):
        options[name] = _weights(options[name], f"--{name}")
    options["kinds"] = tuple(kind.strip() for kind in (options["kinds"] or "").split(",") if kind.strip())
    config = SynthesizeConfig(**options)
    try:
        with Line() as line:
            if index is None:
                report = run(config, on_progress=line.update)
            else:
                with SearchEngine.open(index) as engine:
                    report = run(config, engine, on_progress=line.update)
    except KeyboardInterrupt:
        raise click.ClickException(
            "stopped; every answer so far is kept, and the same command goes on from here"
        ) from None
    _show(config.out, report)
    _draw(config.beside(""), report)
    if report.stopped:
        note(f"Ended before its time: {report.stopped}")
        if not report.out_of_budget:
            raise SystemExit(1)


def _weights(text: str | None, option: str) -> Mapping[str, float] | None:
    """ "en=3,de" -> {"en": 3, "de": 1}."""
    if not text:
        return None
    weights = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        try:
            weights[name.strip()] = float(weight or 1)
        except ValueError:
            raise click.BadParameter(f"{part!r} is no name with a weight, such as en=3", param_hint=option) from None
    return weights


def _show(out: str, report: SynthesisReport) -> None:
    cost = f", {report.cost:.2f} by the prices given" if report.cost else ""
    click.echo(
        f"{out}: {report.examples} of {report.wanted} examples, from {report.answers} answers ({report.asked} new) and "
        f"{report.tokens_in + report.tokens_out} tokens{cost}, in {report.seconds:.0f} s"
    )
    for name, counts in (
        ("groups", report.groups),
        ("kinds", report.kinds),
        ("languages", report.languages),
        ("positives", report.judged),
        ("left out", report.refused),
        ("troubles", report.troubles),
    ):
        if counts:
            most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            shown = ", ".join(f"{one} {count}" for one, count in most[:14])
            more = f", {len(most) - 14} more {sum(count for _, count in most[14:])}" if len(most) > 14 else ""
            click.echo(f"{name}: {shown}{more}")
    if report.estimated:
        note(f"The server did not count the tokens of {report.estimated} answers; they are guessed")


def _draw(file: Path, report: SynthesisReport) -> None:
    """The figure, for light and for dark pages, where matplotlib is there."""
    from searchkit.training.synthesis.plot import synthesis_chart

    try:
        synthesis_chart(file, report)
        synthesis_chart(file.with_name(file.name + ".dark"), report, dark=True)
    except ImportError as error:
        note(f"No figure: {error}")


class Line:
    """Examples, tokens, cost and time left, on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f} of {task.total:.0f} examples"),
            TextColumn(
                "· {task.fields[tokens]:,} tokens{task.fields[cost]} · {task.fields[refused]} of no use · left:"
            ),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=60,
        )
        self._task: Any = None

    def __enter__(self) -> Line:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, progress: Progress) -> None:
        """Show where the run is."""
        stages = {"tasks": "thinking of tasks", "asking": "asking", "filtering": "filtering", "judging": "judging"}
        values: dict[str, Any] = {
            "description": stages[progress.stage],
            "tokens": progress.tokens,
            "cost": f" · {progress.cost:.2f}" if progress.cost else "",
            "refused": progress.refused,
        }
        if self._task is None:
            self._task = self._bar.add_task(total=progress.wanted, **values)
        self._bar.update(self._task, completed=min(progress.examples, progress.wanted), **values)
