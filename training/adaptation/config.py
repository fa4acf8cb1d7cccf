"""Settings of a run that adapts a model to an index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from searchkit.errors import InputError
from searchkit.training.checking import check_types

TRAINED = ("head", "all")


@dataclass(frozen=True, slots=True)
class AdaptConfig:
    """How a model is adapted to an index.

    Args:
        index: The index; training starts from its model.
        pairs: Files of examples: `query` with `positive_id` or `positive`, optionally `instruction` and `negatives`.
        out: Folder for what every stage writes, including the new model.
        train: "head" fits a linear map behind the model to the vectors that the index holds, in seconds; "all" trains
            the model itself and embeds the documents again. What is said below of training is of the latter.
        general: Further examples from outside the index, against forgetting, in addition to the package's own.
        held_out: Share of the pairs' queries that judge the result, and are never trained on, without judgements.
        most_held_out: Largest number of queries held out.
        depth: A pair is set aside unless its document is among this many hits for its query.
        negatives: Hard negatives mined per query.
        steps: Training steps; None goes through the pairs once, within 60 to 400 steps.
        batch_size: Queries per step.
        learning_rate: Peak learning rate; None takes 6e-5 for all weights and 1e-4 for adapters.
        max_length: Tokens of a text in training; longer texts are cut there, and only there. A query is repeated as
            often as the model reads it (`query_repeats`), or as there is room for.
        teacher_weight: How strongly vectors are held near those of the old model.
        general_share: Share of general examples in training.
        lora_rank: Rank of the adapters; 0 trains all weights, None does so for models of up to 100 million.
        seed: Random seed.
    """

    index: Path
    pairs: tuple[Path, ...]
    out: Path
    train: str = "head"
    general: tuple[Path, ...] = ()
    held_out: float = 0.2
    most_held_out: int = 300
    depth: int = 100
    negatives: int = 4
    steps: int | None = None
    batch_size: int = 16
    learning_rate: float | None = None
    max_length: int = 96
    teacher_weight: float = 3.0
    general_share: float = 0.25
    lora_rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        if not self.pairs:
            raise InputError("no pairs; give at least one file of queries with their documents")
        if self.train not in TRAINED:
            raise InputError(f"train is {self.train!r}; expected one of {', '.join(TRAINED)}")
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}; expected a share above 0 and below 1")
        if not 0 <= self.general_share < 1:
            raise InputError(f"general_share is {self.general_share}; expected a share of 0 or more, below 1")
