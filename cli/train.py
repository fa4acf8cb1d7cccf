"""`searchkit train`: a base model and examples become an embedder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.output import count, note, progress_bar, say
from searchkit.cli.types import NEW_FOLDER, Finite, ListOf

if TYPE_CHECKING:
    from searchkit.training.log import Leaking, TrainReport

_FILE = click.Path(exists=True, dir_okay=False)


@click.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("--base", required=True, help="Model to start from: folder, hub id or built-in name.")
@click.option("--out", required=True, type=NEW_FOLDER, help="Folder for the model.")
@click.option(
    "--corpus", type=click.Path(exists=True), help="Corpus or index with the documents of positive_id and negative_ids."
)
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(1), help="Passes over the examples.")
@click.option("--max-steps", type=click.IntRange(1), help="Stop after this many steps.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(2), help="Queries per step.")
@click.option(
    "--chunk", default=32, show_default=True, type=click.IntRange(1), help="Texts per forward pass (GradCache)."
)
@click.option("--learning-rate", default=1e-4, show_default=True, help="Peak learning rate; decays linearly to 0.")
@click.option(
    "--warmup-steps", default=100, show_default=True, type=click.IntRange(0), help="Capped at a tenth of all steps."
)
@click.option("--weight-decay", default=0.1, show_default=True, help="AdamW weight decay.")
@click.option("--temperature", default=0.02, show_default=True, help="Softmax temperature of the contrastive loss.")
@click.option("--margin", type=float, help="Ignore negatives that score above the positive by more than this.")
@click.option(
    "--negatives-per-query", default=1, show_default=True, type=click.IntRange(0), help="Hard negatives per query."
)
@click.option(
    "--matryoshka", default=(), type=ListOf(int, "256,128,64"), help="Also train these dimensions, as 256,128,64."
)
@click.option("--contrast", default=1.0, show_default=True, help="Weight of the contrastive loss; 0: off.")
@click.option("--teacher", multiple=True, help="Distil the vectors of this model; repeat it for several together.")
@click.option("--teacher-weight", default=5.0, show_default=True, help="Weight of the cosine to the teacher.")
@click.option(
    "--teacher-vectors", type=NEW_FOLDER, help="Folder that keeps the teachers' vectors, for this run and others."
)
@click.option("--instructions", type=_FILE, help="JSON {source name: [instructions]} for examples without their own.")
@click.option(
    "--instructed",
    default=1.0,
    show_default=True,
    type=Finite(0, 1),
    help="Share of queries that get their instruction.",
)
@click.option(
    "--rank", "lora_rank", default=16, show_default=True, type=click.IntRange(0), help="LoRA rank; 0: all weights."
)
@click.option("--alpha", "lora_alpha", type=click.IntRange(1), help="LoRA alpha. [default: twice the rank]")
@click.option(
    "--pooling",
    type=click.Choice(["last", "mean", "weighted-mean", "cls", "max"]),
    help="Pooling. [default: that of the base]",
)
@click.option(
    "--eos/--no-eos",
    "append_eos",
    default=None,
    help="End every text with EOS. [default: yes for a decoder that pools at the last token]",
)
@click.option(
    "--attention",
    type=click.Choice(["causal", "bidirectional"]),
    help="Give an encoder causal or a decoder bidirectional attention. [default: that of the base]",
)
@click.option(
    "--query-repeats",
    type=click.IntRange(1),
    help="Repeat queries, so that causal attention sees all of each. [default: as the base]",
)
@click.option("--max-length", default=512, show_default=True, type=click.IntRange(8), help="Tokens per text.")
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="Precision of training.",
)
@click.option("--gradient-checkpointing", is_flag=True, help="Less memory, a third more time.")
@click.option("--checkpoint-every", default=500, show_default=True, type=click.IntRange(0), help="Steps; 0: never.")
@click.option("--dev", help="BEIR folder to evaluate on, as FOLDER or FOLDER:SPLIT. [default split: dev]")
@click.option(
    "--evaluate-every", default=0, show_default=True, type=click.IntRange(0), help="Steps; 0: only at the end."
)
@click.option("--allow-leaks", is_flag=True, help="Train even if examples contain queries of --dev.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Random seed.")
def train(
    sources: tuple[str, ...],
    out: Path,
    teacher: tuple[str, ...],
    teacher_vectors: Path | None,
    allow_leaks: bool,
    **options: Any,
) -> None:
    """Train an embedder on SOURCES: JSON lines of query, positive and, optionally, negatives and instruction.

    FILE@0.5 takes half of a file in every epoch. Examples with different instructions never share a batch, except
    those of FILE@mixed or FILE@0.5,mixed: use it for synthetic data, where every example has its own. OUT also gets
    log.jsonl, TensorBoard files in logs/, training.png and training.svg. Run the command again to resume from the last
    checkpoint.

    \b
        searchkit train pairs.jsonl --base my-model/ --out my-embedder --dev my-set/
        searchkit train a.jsonl.gz@0.5 b.jsonl --base mistralai/Mistral-7B-v0.1 --pooling last --out e5
        searchkit train synthetic.jsonl@mixed --base Qwen/Qwen3-0.6B --attention bidirectional --pooling mean --out q
        accelerate launch --config_file ddp.yaml -m searchkit.cli.main train pairs.jsonl --base my-model/ --out mine
    """
    from searchkit.training.config import TrainConfig
    from searchkit.training.train import train as run

    config = TrainConfig(
        sources=sources,
        out=str(out),
        teacher=teacher if len(teacher) > 1 else "".join(teacher) or None,
        teacher_vectors=None if teacher_vectors is None else str(teacher_vectors),
        **options,
    )
    with TrainingBar() as bar:
        report = run(config, allow_leaks=allow_leaks, on_leaks=partial(_show_leaks, config.dev), on_step=bar.update)
    if report.process:
        return  # one of several processes prints
    rate = report.tokens / max(report.seconds, 1e-9)
    say(
        f"{out}: {count(report.steps, 'step')} on {count(report.examples, 'example')} in {report.seconds:.0f} s "
        f"({rate:.0f} tokens/s, {report.peak_memory_mib:.0f} MiB), {report.trainable} weights trained"
    )
    for step, value in report.dev:
        say(f"nDCG@10 on {config.dev} after {count(step, 'step')}: {value:.4f}")
    if report.refused:
        note(f"rows skipped: {report.refused}; see {out / 'rejects.jsonl'}")
    if report.truncated:
        note(f"texts cut at --max-length or the model's limit: {report.truncated} of {report.texts}")
    if leaking := sum(leaking.questions for leaking in report.leaks):
        note(f"examples with queries of {config.dev}: {leaking}; its scores mean little")


def _show_leaks(dev: str | None, leaks: Sequence[Leaking]) -> None:
    """What each source shares with the dev set, as a small table."""
    names = [Path(leaking.source).name for leaking in leaks]
    width = max(map(len, [*names, "examples of"]))
    note(f"examples that share text with {dev}: its queries, its documents, or a few words that may be chance")
    note(f"{'examples of':<{width}}  {'all':>9}  {'queries':>9}  {'documents':>9}  {'few words':>9}")
    for name, row in zip(names, leaks, strict=True):
        counts = (row.examples, row.questions, row.documents, row.low_entropy)
        note(f"{name:<{width}}  " + "  ".join(f"{number:>9}" for number in counts))


class TrainingBar:
    """Steps, loss, rate, memory and time left, on a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        self._bar = progress_bar(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps · loss {task.fields[loss]:.3f} · {task.fields[rate]:,.0f} tokens/s"),
            TextColumn("· {task.fields[memory]:,.0f} MiB · left:"),
            TimeRemainingColumn(),
        )
        first = os.environ.get("RANK", "0") == "0"  # one of several processes shows the bar
        self._task = self._bar.add_task("", total=None, visible=first, loss=0.0, rate=0.0, memory=0.0)

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, report: TrainReport, planned: int) -> None:
        """Show the state of the run."""
        from searchkit.training.log import moving_average

        self._bar.update(
            self._task,
            total=planned,
            completed=report.steps,
            loss=moving_average(report.losses),
            rate=report.tokens / max(report.seconds, 1e-9),
            memory=report.peak_memory_mib,
        )
