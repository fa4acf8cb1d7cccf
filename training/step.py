"""The gradient of one batch: its texts become rows, the rows a loss, the loss a gradient."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from searchkit.models.embedder import Embedder
from searchkit.training.batches import Batch
from searchkit.training.config import TrainConfig
from searchkit.training.gradcache import cached_backward, gather_list
from searchkit.training.log import TrainReport
from searchkit.training.loss import info_nce, matryoshka
from searchkit.training.model import torch_model
from searchkit.training.teacher import Taught, Teachers, teaching_loss


@dataclass(frozen=True, slots=True)
class Step:
    """Adds the gradient of a batch to the model's parameters.

    Args:
        config: The run.
        embedder: Has the model.
        teachers: The teachers, if any.
        accelerator: accelerate's, which has prepared the model.
    """

    config: TrainConfig
    embedder: Embedder
    teachers: Teachers | None
    accelerator: Any

    def backward(self, batch: Batch, report: TrainReport) -> tuple[float, float]:
        """Add the gradient of one batch, and count its tokens in the report.

        Returns:
            The loss, and the norm of the gradient before clipping.
        """
        accelerator, model = self.accelerator, torch_model(self.embedder)
        rng = random.Random(f"{self.config.seed}/{report.steps}")
        instructed = [rng.random() < self.config.instructed for _ in batch.examples]
        # In order of length, so that of several processes each gets as many long texts.
        order = sorted(range(len(batch)), key=lambda i: len(batch.examples[i].positive))
        shares = [order[rank :: accelerator.num_processes] for rank in range(accelerator.num_processes)]
        duplicates = batch.part([i for share in shares for i in share]).duplicates()
        own = shares[accelerator.process_index]
        batch, instructed = batch.part(own), [instructed[i] for i in own]
        groups = self._tokens(batch, instructed, report)
        loss = self._loss(batch, instructed, torch.from_numpy(duplicates).to(accelerator.device))
        if sum(map(len, groups)) <= self.config.chunk and accelerator.num_processes == 1:
            value = loss(*map(self._encode, groups))
            accelerator.backward(value)
        else:
            value = cached_backward(
                self._encode, groups, loss, chunk=self.config.chunk, no_sync=partial(_no_sync, accelerator, model),
                backward=accelerator.backward, size=len,
            )  # fmt: skip
        norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded weights
        return float(value.detach()), math.nan if norm is None else float(norm)

    def _tokens(self, batch: Batch, instructed: list[bool], report: TrainReport) -> list[list[list[int]]]:
        """Token ids of the queries, the positives and the hard negatives."""
        embedder, passages = self.embedder, batch.passages()
        passages = [embedder.conventions.document_prefix + text for text in passages]
        instructions = [
            (example.instruction or "") if use else "" for example, use in zip(batch.examples, instructed, strict=True)
        ]
        truncated = embedder.stats.truncated
        groups = [
            embedder.tokenize_queries([example.query for example in batch.examples], instructions),
            embedder.tokenize(passages[: len(batch)]),
            embedder.tokenize(passages[len(batch) :]),
        ]
        report.tokens += sum(gather_list([sum(len(ids) for group in groups for ids in group)]))
        report.texts += sum(gather_list([sum(map(len, groups))]))
        report.truncated += sum(gather_list([embedder.stats.truncated - truncated]))
        return groups

    def _encode(self, tokens: Sequence[list[int]]) -> Tensor:
        """(len(tokens), dim) unit rows, with a graph where gradients are on."""
        if not tokens:
            return torch.empty(0, self.embedder.dim, device=self.accelerator.device)
        runtime: Any = self.embedder.runtime
        with self.accelerator.autocast():
            return F.normalize(runtime.pooled(list(tokens), self.embedder.conventions), dim=-1)

    def _loss(self, batch: Batch, instructed: list[bool], duplicates: Tensor) -> _Loss:
        config, device = self.config, self.accelerator.device
        contrast = bool(config.contrast) and not batch.kept
        # A teacher that ignores instructions must not teach the opposite of what contrast teaches instructed queries.
        confused = contrast and not config.teacher_follows
        apart = [
            bool(confused and use and example.instruction)
            for example, use in zip(batch.examples, instructed, strict=True)
        ]
        return _Loss(
            config, contrast, duplicates, self.embedder.dim,
            taught=None if self.teachers is None else self.teachers.teach(batch, instructed).to(device),
            apart=torch.tensor(gather_list(apart), dtype=torch.bool, device=device),
            neighbours=1.0 if batch.kept else config.teacher_neighbours,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Loss:
    """The loss of one batch of all processes together, as a function of its rows.

    Args:
        config: The run.
        contrast: Include the contrastive loss.
        duplicates: (queries, passages) bool, passages that are not negatives of a query.
        dim: Width of the rows.
        taught: What the teachers say of all texts, or None.
        apart: (queries,) bool, see :func:`teaching_loss`.
        neighbours: Weight of the teacher's similarities between texts.
    """

    config: TrainConfig
    contrast: bool
    duplicates: Tensor
    dim: int
    taught: Taught | None
    apart: Tensor
    neighbours: float

    def __call__(self, queries: Tensor, *passages: Tensor) -> Tensor:
        config, others = self.config, torch.cat(passages)
        value = queries.new_zeros(())
        if self.contrast:
            contrast = partial(
                info_nce, temperature=config.temperature, duplicates=self.duplicates, margin=config.margin
            )
            if config.matryoshka:
                widths = sorted({*config.matryoshka, self.dim}, reverse=True)
                value = value + config.contrast * matryoshka(contrast, queries, others, dims=widths)
            else:
                value = value + config.contrast * contrast(queries, others)
        if self.taught is not None:
            value = value + teaching_loss(
                torch.cat([queries, others]), self.taught.rows, self.apart, weight=config.teacher_weight,
                neighbours=self.neighbours, teachers=self.taught.teachers,
            )  # fmt: skip
        return value


@contextmanager
def _no_sync(accelerator: Any, model: Any) -> Iterator[None]:
    """Keep gradients in the process, and DeepSpeed from stepping."""
    with accelerator.no_sync(model):
        accelerator.sync_gradients = False
        try:
            yield
        finally:
            accelerator.sync_gradients = True
