"""The settings of one run of the experiment: which data, and which of the paper's choices are changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchkit.errors import InputError
from searchkit.training.config import TrainConfig

DATA = ("synthetic", "pairs", "both")


@dataclass(frozen=True, slots=True)
class Settings:
    """One run; the defaults are the paper's choices, in small.

    Args:
        data: One of :data:`DATA`.
        steps: Training steps.
        batch_size: Queries a step.
        max_length: Tokens of a text, in training and in all evaluations.
        learning_rate: Peak learning rate.
        layers: Keep the first so many layers of the language model; None keeps all.
        pooling: As `TrainConfig.pooling`.
        eos: End every text with EOS.
        instructions: Queries get their instruction, in training and in all evaluations.
        rank: Rank of the adapters.
        bidirectional: Let tokens see later ones.
        negatives: Train with one hard negative a query.
        chunk: Texts in the model at once while training.
        precision: As `TrainConfig.precision`.
        evaluate_every: Steps between evaluations on the dev sets, and between checkpoints.
        pairs: How many pairs are drawn; None is as many as there are queries in all steps.
        seed: Random seed.
    """

    data: str = "both"
    steps: int = 1000
    batch_size: int = 64
    max_length: int = 128
    learning_rate: float = 1e-4
    layers: int | None = None
    pooling: str = "last"
    eos: bool = True
    instructions: bool = True
    rank: int = 16
    bidirectional: bool = False
    negatives: bool = True
    chunk: int = 32
    precision: str = "auto"
    evaluate_every: int = 50
    pairs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.data not in DATA:
            raise InputError(f"data is {self.data!r}; expected one of {', '.join(DATA)}")
        if self.evaluate_every < 1:
            raise InputError(f"evaluate_every is {self.evaluate_every}; expected 1 step or more")
        if self.layers is not None and self.layers < 1:
            raise InputError(f"layers is {self.layers}; expected 1 or more")

    @property
    def name(self) -> str:
        """The data, then what differs from the paper's choices: both, mean."""
        changes = {
            self.pooling: self.pooling != "last",
            "no EOS": not self.eos,
            "no instruction": not self.instructions,
            f"rank {self.rank}": self.rank != 16,
            "bidirectional": self.bidirectional,
            "no hard negatives": not self.negatives,
        }
        return ", ".join([self.data, *(name for name, changed in changes.items() if changed)])

    @property
    def folder(self) -> str:
        """The name as a folder's."""
        return self.name.replace(", ", "-").replace(" ", "-").lower()

    def train_config(self, base: Path, sources: list[Path], examples: int, out: Path) -> TrainConfig:
        """The training run.

        Args:
            base: Folder of the language model.
            sources: Files of examples.
            examples: How many they hold together.
            out: Folder of the run.
        """
        shared: dict[str, Any] = {"temperature": 0.02, "weight_decay": 0.1, "warmup_steps": 100}  # the paper's
        return TrainConfig(
            sources=tuple(f"{source}@mixed" for source in sources), base=str(base), out=str(out),
            epochs=-(-2 * self.steps * self.batch_size // examples), max_steps=self.steps, batch_size=self.batch_size,
            chunk=self.chunk, learning_rate=self.learning_rate, negatives_per_query=int(self.negatives),
            instructed=float(self.instructions), lora_rank=self.rank, pooling=self.pooling, append_eos=self.eos,
            attention="bidirectional" if self.bidirectional else None, max_length=self.max_length,
            precision=self.precision, checkpoint_every=self.evaluate_every, evaluate_every=self.evaluate_every,
            seed=self.seed, **shared,
        )  # fmt: skip
