"""Settings of a run that adapts a model to an index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from searchkit.errors import InputError


@dataclass(frozen=True, slots=True)
class AdaptConfig:
    """How a model is adapted to an index.

    Args:
        index: The index; its model is where training begins.
        pairs: Files of examples: `query` with `positive_id` or `positive`, maybe `instruction` and `negatives`.
        out: Folder for what every stage writes, the new model among it.
        general: Further examples, not of this index, against forgetting; the package's own come with them.
        held_out: Share of the pairs' documents that judge where there are no judgements; those are never trained on.
        most_held_out: Documents held out at most.
        depth: A pair whose document is not among so many hits for its query is set aside.
        negatives: Hard negatives mined for each query.
        steps: Steps of training; None goes through the pairs once, within 60 to 400 steps.
        batch_size: Queries a step.
        learning_rate: Highest; None takes 6e-5 for all weights and 1e-4 for adapters.
        max_length: Tokens of a text in training; longer ones are cut there, and only there. A query is written as
            often as the model reads it (`query_repeats`), or as there is room for.
        teacher_weight: How strongly vectors are held near those of the model before.
        general_share: Share of general examples among those trained on.
        lora_rank: Of adapters; 0 trains all weights, None does so for models of up to 100 million.
        seed: Of everything drawn.
    """

    index: Path
    pairs: tuple[Path, ...]
    out: Path
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
        if not self.pairs:
            raise InputError("no pairs: give at least one file of queries with their documents")
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}; it is a share, above 0 and below 1")
        if not 0 <= self.general_share < 1:
            raise InputError(f"general_share is {self.general_share}; it is a share, 0 or more and below 1")
