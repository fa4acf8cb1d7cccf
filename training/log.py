"""What a training run did: the report, log.jsonl, TensorBoard's event files and the picture."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from searchkit.reports.style import Panel, panels_chart

logger = logging.getLogger(__name__)

_SPAN = 20  # losses in a moving average


@dataclass(frozen=True, slots=True)
class Leaking:
    """What one source shares with the dev set; see :mod:`searchkit.training.contamination` for the classes.

    Args:
        source: Its file.
        examples: Number of examples in it.
        questions: Examples whose query is one of the dev set's.
        documents: Examples with a document of the dev set's corpus.
        low_entropy: Examples with a match of so few words that it may be chance.
        sample: One of the shared queries, or None.
    """

    source: str
    examples: int
    questions: int
    documents: int
    low_entropy: int
    sample: str | None = None


@dataclass
class TrainReport:
    """What a run did so far.

    Attributes:
        steps: Steps done.
        examples: Examples to train on.
        refused: Rows rejected.
        digests: A digest of the examples of every source.
        leaks: One entry per source; empty without a dev set.
        tokens: Tokens trained on, by all processes together, as are the next two.
        texts: Queries and passages trained on, counted each time.
        truncated: Texts among these that were too long and cut.
        seconds: Training time.
        trainable: Number of weights trained.
        peak_memory_mib: Peak memory.
        losses: (step, loss) of every step.
        dev: (step, nDCG@10) of every evaluation.
        process: Rank of the process that made this report; 0 is the one that writes files.
    """

    steps: int = 0
    examples: int = 0
    refused: int = 0
    digests: list[str] = field(default_factory=list)
    leaks: list[Leaking] = field(default_factory=list)
    tokens: int = 0
    texts: int = 0
    truncated: int = 0
    seconds: float = 0.0
    trainable: int = 0
    peak_memory_mib: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)
    dev: list[tuple[int, float]] = field(default_factory=list)
    process: int = 0

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue from a saved report, as JSON; what follows from reading the data again stays."""
        self.steps, self.tokens, self.seconds = saved["steps"], saved["tokens"], saved["seconds"]
        self.texts, self.truncated = saved.get("texts", 0), saved.get("truncated", 0)
        self.losses, self.dev = _pairs(saved["losses"]), _pairs(saved["dev"])


class TrainLog:
    """Writes during the run: OUT/log.jsonl, OUT/logs for TensorBoard, OUT/training.png and .svg.

    Args:
        out: The run's folder.
        report: The report so far; log lines of later steps, by an earlier run, are dropped.
        writes: False writes nothing, in all processes but one.
    """

    def __init__(self, out: Path, report: TrainReport, *, writes: bool = True) -> None:
        self._out, self._writes = out, writes
        self._tokens, self._seconds = report.tokens, report.seconds
        self._board: Any = None
        self._draws = writes
        if writes:
            self._file = _reopened(out / "log.jsonl", report.steps)
            self._board = _summary_writer(out / "logs", report.steps + 1)

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writes:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def step(self, report: TrainReport, *, learning_rate: float, gradient_norm: float) -> None:
        """Log the last step of the report."""
        if not self._writes:
            return
        tokens, seconds = report.tokens - self._tokens, report.seconds - self._seconds
        self._tokens, self._seconds = report.tokens, report.seconds
        step, loss = report.losses[-1]
        values = {
            "loss": loss,
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm,
            "tokens_per_second": tokens / max(seconds, 1e-9),
            "peak_memory_mib": report.peak_memory_mib,
        }
        self._file.write(json.dumps({"step": step, "tokens": report.tokens, **values}) + "\n")
        self._add({f"train/{name}": value for name, value in values.items()}, step)

    def evaluated(self, report: TrainReport) -> None:
        """Log the last evaluation of the report, and redraw the picture."""
        if not self._writes or not report.losses:
            return
        if report.dev:
            step, value = report.dev[-1]
            self._file.write(json.dumps({"step": step, "dev_ndcg@10": value}) + "\n")
            self._add({"dev/ndcg@10": value}, step)
        if self._draws:
            try:
                draw(self._out / "training", report, title=self._out.resolve().name)
            except ImportError as error:
                self._draws = False
                logger.warning("the picture is not drawn: %s", error)

    def _add(self, values: dict[str, float], step: int) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()


def draw(file: Path, report: TrainReport, *, title: str) -> list[Path]:
    """Draw the loss above the dev nDCG@10, over the steps; writes FILE.png and FILE.svg.

    Raises:
        MissingExtraError: matplotlib is missing.
    """
    smooth = {f"mean of {_SPAN} steps": moving_averages(report.losses)} if len(report.losses) >= 2 * _SPAN else {}
    panels = [Panel({"each step" if smooth else "loss": report.losses, **smooth}, y_label="loss", faint=bool(smooth))]
    if report.dev:
        panels.append(Panel({"dev set": report.dev}, y_label="nDCG@10"))
    return panels_chart(file, panels, title=title, x_label="step")


def moving_average(losses: Sequence[tuple[int, float]]) -> float:
    """The mean of the last losses; NaN before the first."""
    last = [value for _, value in losses[-_SPAN:]]
    return sum(last) / len(last) if last else math.nan


def moving_averages(losses: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The moving average at every step, from the first full span on."""
    return [(losses[n - 1][0], moving_average(losses[n - _SPAN : n])) for n in range(_SPAN, len(losses) + 1)]


def peak_memory_mib() -> float:
    """Peak memory so far: of the GPU where there is one, otherwise of the process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _reopened(file: Path, steps: int) -> TextIO:
    """A log to append to, without the lines of later steps."""
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    if lines and not lines[-1].endswith("}"):
        lines.pop()  # torn: the process was killed while writing it
    kept = [line for line in lines if json.loads(line)["step"] <= steps]
    file.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    return file.open("a", encoding="utf-8", buffering=1)


def _summary_writer(folder: Path, first_step: int) -> Any:
    """TensorBoard's writer, or None if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.warning("event files for TensorBoard are not written: pip install 'searchkit[train]'")
        return None
    writer: Any = SummaryWriter
    return writer(str(folder), purge_step=first_step)


def _pairs(values: list[Any]) -> list[tuple[int, float]]:
    return [(int(step), float(value)) for step, value in values]
