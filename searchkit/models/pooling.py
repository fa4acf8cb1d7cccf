"""Pooling: from hidden states to one vector per text, for either padding side."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The state at the last attended position, found through the mask and not by token id: pad is often EOS."""
    positions = mask.new_ones(mask.shape).cumsum(1) * mask  # 1-based position where attended, else 0
    return _at(hidden, positions.argmax(1))


def first_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The state at the first attended position (CLS)."""
    return _at(hidden, mask.argmax(1))


def _at(hidden: Tensor, positions: Tensor) -> Tensor:
    # Not indexing by range(len(...)): an export would fix the batch size.
    return hidden.gather(1, positions[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over attended positions."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over attended positions, weighting the n-th by n (SGPT)."""
    weights = (mask.cumsum(1) * mask).unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def maximum(hidden: Tensor, mask: Tensor) -> Tensor:
    """The maximum over attended positions, per dimension."""
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "last": last_token,
    "cls": first_token,
    "mean": mean,
    "weighted-mean": weighted_mean,
    "max": maximum,
}
"""Each maps hidden states (batch, tokens, dim) float32 and a 0/1 mask (batch, tokens) to (batch, dim)."""
