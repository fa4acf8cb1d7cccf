"""`searchkit train`: a base model and examples become an embedder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.options import note

FILE_NAME = click.Path(exists=True, dir_okay=False)

if TYPE_CHECKING:
    from searchkit.training.log import Leaking, TrainReport


@click.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("--base", required=True, help="Model to begin with: folder, hub id or packaged name.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
@click.option(
    "--corpus",
    type=click.Path(exists=True),
    help="Corpus or index that positive_id and negative_ids name documents of.",
)
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(1), help="Times through the sources.")
@click.option("--max-steps", type=click.IntRange(1), help="Stop after so many batches.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(2), help="Queries a step.")
@click.option(
    "--chunk", default=32, show_default=True, type=click.IntRange(1), help="Texts embedded at once (GradCache)."
)
@click.option("--learning-rate", default=1e-4, show_default=True, help="Highest; falls linearly to 0.")
@click.option("--warmup-steps", default=100, show_default=True, type=click.IntRange(0), help="At most a tenth of all.")
@click.option("--weight-decay", default=0.1, show_default=True, help="Of AdamW.")
@click.option("--temperature", default=0.02, show_default=True, help="Divides the cosines.")
@click.option("--margin", type=float, help="Leave out negatives that beat the positive by more than this.")
@click.option(
    "--negatives-per-query", default=1, show_default=True, type=click.IntRange(0), help="Hard negatives drawn."
)
@click.option("--matryoshka", help="Leading widths to train as well, such as 256,128,64.")
@click.option("--contrast", default=1.0, show_default=True, help="Weight of the contrastive loss; 0: none.")
@click.option("--teacher", help="Model to learn the vectors of.")
@click.option("--teacher-weight", default=5.0, show_default=True, help="Of the cosine to the teacher.")
@click.option("--instructions", type=FILE_NAME, help="JSON {source name: [instructions]} for rows without their own.")
@click.option(
    "--instructed",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of queries told their instruction.",
)
@click.option(
    "--rank", "lora_rank", default=16, show_default=True, type=click.IntRange(0), help="LoRA; 0: all weights."
)
@click.option("--alpha", "lora_alpha", type=click.IntRange(1), help="Of LoRA. [default: twice the rank]")
@click.option(
    "--pooling", type=click.Choice(["last", "mean", "weighted-mean", "cls", "max"]), help="Instead of the base's."
)
@click.option(
    "--eos/--no-eos", "append_eos", default=None,
    help="End every text with EOS. [default: yes for a decoder that pools at the last token]",
)  # fmt: skip
@click.option(
    "--attention",
    type=click.Choice(["causal", "bidirectional"]),
    help="Make an encoder a decoder, or let a decoder's tokens see the whole text. [default: the base's own]",
)
@click.option(
    "--query-repeats",
    type=click.IntRange(1),
    help="Write a query so often: read again, causal attention has seen it. [default: the base's own]",
)
@click.option(
    "--max-length",
    default=512,
    show_default=True,
    type=click.IntRange(8),
    help="Tokens of a text.",
)
@click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "float32", "bfloat16"]))
@click.option("--gradient-checkpointing", is_flag=True, help="Less memory, a third more time.")
@click.option("--checkpoint-every", default=500, show_default=True, type=click.IntRange(0), help="Steps; 0: never.")
@click.option("--dev", help="BEIR folder to evaluate on, as FOLDER or FOLDER:SPLIT. [default split: dev]")
@click.option("--evaluate-every", default=0, show_default=True, type=click.IntRange(0), help="Steps; 0: at the end.")
@click.option("--allow-leaks", is_flag=True, help="Train although queries of --dev are among the examples.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def train(sources: tuple[str, ...], out: Path, matryoshka: str | None, allow_leaks: bool, **options: Any) -> None:
    """Train an embedder on SOURCES, JSON lines of query, positive, and maybe negatives and instruction.

    FILE@0.5 takes half of a file in every epoch. Examples with different instructions never share a batch, but
    those of FILE@mixed or FILE@0.5,mixed do: for synthetic data, where each has its own. OUT gets the model, log.jsonl,
    logs/ for TensorBoard and training.png and .svg. The same command goes on from the last checkpoint.

    \b
        searchkit train pairs.jsonl --base my-model/ --out my-embedder --dev my-set/
        searchkit train a.jsonl.gz@0.5 b.jsonl --base mistralai/Mistral-7B-v0.1 --pooling last --out e5
        searchkit train synthetic.jsonl@mixed --base Qwen/Qwen3-0.6B --attention bidirectional --pooling mean --out q
        accelerate launch --config_file ddp.yaml -m searchkit.cli.main train pairs.jsonl --base my-model/ --out mine
    """
    from searchkit.training.config import TrainConfig
    from searchkit.training.train import train as run

    try:
        widths = tuple(int(width) for width in (matryoshka or "").split(",") if width.strip())
    except ValueError:
        raise click.BadParameter(
            f"{matryoshka!r} are not widths such as 256,128,64", param_hint="--matryoshka"
        ) from None
    config = TrainConfig(sources=sources, out=str(out), matryoshka=widths, **options)
    with Bar() as bar:
        report = run(config, allow_leaks=allow_leaks, on_leaks=partial(_show_leaks, config.dev), on_step=bar.update)
    if report.process:
        return  # of several processes one prints
    rate = report.tokens / max(report.seconds, 1e-9)
    click.echo(
        f"{out}: {report.steps} steps on {report.examples} examples in {report.seconds:.0f} s "
        f"({rate:.0f} tokens/s, {report.peak_memory_mib:.0f} MiB), {report.trainable} weights trained"
    )
    for step, value in report.dev:
        click.echo(f"nDCG@10 on {config.dev} after {step} steps: {value:.4f}")
    if report.refused:
        note(f"{report.refused} rows were left out; see {out / 'rejects.jsonl'}")
    if report.truncated:
        note(f"{report.truncated} of {report.texts} texts were cut, longer than --max-length or than the model takes")
    if leaking := sum(leaking.questions for leaking in report.leaks):
        note(f"{leaking} examples ask queries of {config.dev}: its scores mean little")


def _show_leaks(dev: str | None, leaks: Sequence[Leaking]) -> None:
    """What every source shares with the dev set, as a small table."""
    names = [Path(leaking.source).name for leaking in leaks]
    width = max(map(len, [*names, "examples of"]))
    note(f"Examples that share text with {dev}: its queries, its documents, or a few words that may be chance")
    note(f"{'examples of':<{width}}  {'all':>9}  {'queries':>9}  {'documents':>9}  {'few words':>9}")
    for name, row in zip(names, leaks, strict=True):
        counts = (row.examples, row.questions, row.documents, row.low_entropy)
        note(f"{name:<{width}}  " + "  ".join(f"{count:>9}" for count in counts))


class Bar:
    """Steps, loss, rate, memory and time left, on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps · loss {task.fields[loss]:.3f} · {task.fields[rate]:,.0f} tokens/s"),
            TextColumn("· {task.fields[memory]:,.0f} MiB · left:"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        first = os.environ.get("RANK", "0") == "0"  # of several processes one is shown
        self._task = self._bar.add_task("", total=None, visible=first, loss=0.0, rate=0.0, memory=0.0)

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, report: TrainReport, planned: int) -> None:
        """Show where the run is."""
        from searchkit.training.log import moving_average

        self._bar.update(
            self._task,
            total=planned,
            completed=report.steps,
            loss=moving_average(report.losses),
            rate=report.tokens / max(report.seconds, 1e-9),
            memory=report.peak_memory_mib,
        )
