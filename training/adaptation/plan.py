"""The training run that adapts a model: its settings follow from the pairs, the base and the index's own binding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchkit.models.location import find_model
from searchkit.training.adaptation.config import AdaptConfig
from searchkit.training.config import TrainConfig

_ALL_WEIGHTS_UP_TO = 100e6  # weights; larger models get adapters


@dataclass(frozen=True, slots=True)
class TrainingFiles:
    """What a run trains on.

    Args:
        mined: File of the pairs with hard negatives.
        pairs: Number of examples in it.
        general: File of the examples against forgetting.
        examples: Number of examples in it.
    """

    mined: Path
    pairs: int
    general: Path
    examples: int


def training_run(
    config: AdaptConfig, files: TrainingFiles, identity: dict[str, Any], *, width: int, out: Path
) -> TrainConfig:
    """The settings of the training run.

    Args:
        config: The user's settings.
        files: What to train on.
        identity: The model that the index is bound to; the base and the teacher.
        width: Full width of the model's vectors.
        out: Folder for the result.
    """
    base, dim = str(identity["model"]), int(identity["dim"])
    share = config.general_share  # of general examples in a batch, so 1 - share are pairs
    steps = config.steps or min(400, max(60, math.ceil(files.pairs / config.batch_size / (1 - share))))
    sources = [f"{files.mined}@1,mixed"]
    if share:
        sources.append(f"{files.general}@{share / (1 - share) * files.pairs / files.examples:.4f},mixed,kept")
    rank = config.lora_rank
    if rank is None:
        rank = 0 if _count_weights(base) <= _ALL_WEIGHTS_UP_TO else 16
    return TrainConfig(
        sources=tuple(sources), base=base, out=str(out), max_steps=steps,
        epochs=1 + math.ceil(steps * config.batch_size * (1 - share) / files.pairs), batch_size=config.batch_size,
        chunk=4 * config.batch_size, learning_rate=config.learning_rate or (1e-4 if rank else 6e-5),
        warmup_steps=steps // 10, weight_decay=0.01, temperature=0.05, negatives_per_query=1, teacher=base,
        teacher_weight=config.teacher_weight, teacher_neighbours=0, teacher_follows=True, lora_rank=rank,
        query_repeats=identity.get("query_repeats", 1), append_eos=identity["append_eos"],
        max_length=min(config.max_length, identity["max_length"]), matryoshka=(dim,) if dim < width else (),
        checkpoint_every=max(1, steps // 8), seed=config.seed,
    )  # fmt: skip


def _count_weights(base: str) -> int:
    """The number of weights of a model, by its config."""
    import torch
    from transformers import AutoConfig, AutoModel

    make: Any = AutoModel
    with torch.device("meta"):
        model = make.from_config(AutoConfig.from_pretrained(find_model(base)[0]))
    return sum(parameter.numel() for parameter in model.parameters())
