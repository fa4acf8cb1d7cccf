"""What the built-in model's head and shift are trained for: to follow instructions, and to change nothing else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrast(queries: Tensor, passages: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """InfoNCE of the first of each query's passages against its others and those of the other queries.

    Args:
        queries: (n, dim) unit rows.
        passages: (n * (1 + NEGATIVES), dim) unit rows, those of each query in turn.
        rows: (n, 1 + NEGATIVES) numbers of these passages; equal ones are the same passage.
        temperature: Of the softmax.
    """
    scores = queries @ passages.T / temperature  # (n, n * (1 + NEGATIVES))
    right = torch.arange(len(rows)) * rows.shape[1]
    same = rows[:, :1] == rows.flatten()[None]  # the right passage may also be another query's
    same[torch.arange(len(rows)), right] = False
    return F.cross_entropy(scores.masked_fill(same, float("-inf")), right)


def divergence(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean KL divergence of distributions over passages from those that have to stay, both as (n, passages) logits."""
    logs = F.log_softmax(found, dim=1)
    return F.kl_div(logs, F.log_softmax(wanted, dim=1), reduction="batchmean", log_target=True)


def learning_rate(highest: float, step: int, steps: int) -> float:
    """Of one of so many steps, from 0 on: rises over the first tenth, and falls to zero."""
    return highest * min(1.0, 10 * (step + 1) / steps) * (1 - step / steps)
