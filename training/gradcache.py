"""Contrastive batches larger than memory: the gradient of a loss over all rows, one chunk of texts at a time.

GradCache (Gao et al. 2021, arXiv 2101.06983). An in-batch loss needs every row at once, but the model's activations are
needed for one chunk only: embed everything without a graph, compute the loss and its gradient with respect to the rows,
then embed each chunk again with a graph and propagate its rows' gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from searchkit.errors import InputError
from searchkit.training.loss import full

T = TypeVar("T")


def cached_backward(
    encode: Callable[[Sequence[T]], Tensor],
    groups: Sequence[Sequence[T]],
    loss: Callable[..., Tensor],
    *,
    chunk: int,
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
    backward: Callable[[Tensor], object] = torch.autograd.backward,
    size: Callable[[T], int] | None = None,
) -> Tensor:
    """Add to the parameters' ``.grad`` what ``loss(*map(encode, groups)).backward()`` adds, in the memory of one chunk.

        value = cached_backward(
            encode,
            [queries, positives, negatives],
            lambda queries, *passages: info_nce(queries, torch.cat(passages)),
            chunk=32,
            no_sync=ddp_model.no_sync,
        )

    Where ``torch.distributed`` is initialised, each group is concatenated over the processes, in order of rank, before
    the loss sees it: all queries are compared with all passages. Gradients are scaled such that their *mean* over the
    processes, which DistributedDataParallel takes, is the gradient of the loss on the whole batch. Processes may hold
    different numbers of texts, as long as each has one; all run the model equally often, since a model whose weights
    are sharded gathers them in every pass.

    Args:
        encode: Turns inputs (texts, tokens, whatever a group holds) into (n, dim) rows, for one chunk of one group. It
            has to return the same rows twice from the same random state. Autocast and normalisation belong inside it.
        groups: What to embed; the loss gets one tensor of rows for each. Positives and hard negatives are two groups:
            in a single one, the second process's positives would come after the first's hard negatives.
        loss: Takes a (n, dim) tensor for each group, float32 (float64 if ``encode`` returns that), and returns a
            scalar. It has to be the same function in all processes; its own parameters get no gradient. To scale
            gradients (for float16 or accumulation), scale what it returns.
        chunk: Inputs to embed at once.
        no_sync: Entered around the graph of every chunk but the last, so that DistributedDataParallel averages the
            gradients once.
        backward: Propagates the gradient of a chunk's scalar; DeepSpeed's engine needs its own.
        size: Size of an input, such as ``len`` of its tokens: inputs of similar size share a chunk, which saves
            padding. The loss still sees the order of the groups. None fills chunks in that order.

    Returns:
        The loss on the whole batch, detached.
    """
    if chunk < 1:
        raise InputError(f"chunk is {chunk}; expected 1 or more")
    counts = _counts_by_process(groups)  # before any work, so that all processes fail together
    orders = [_order(group, size) for group in groups]
    chunks: list[Sequence[T]] = [
        [group[i] for i in order[start : start + chunk]]
        for group, order in zip(groups, orders, strict=True)
        for start in range(0, len(order), chunk)
    ]
    most = max(sum(math.ceil(count / chunk) for count in of_rank) for of_rank in counts)
    idle = most - len(chunks)  # passes without a gradient, since other processes make more
    chunks = [chunks[0][:1]] * idle + chunks

    states, parts = [], []
    with torch.no_grad():
        for inputs in chunks:
            states.append(_random_state())
            parts.append(_rows(encode, inputs))
    rows = torch.cat(parts[idle:])  # (all inputs here, dim)

    gradients = [torch.zeros_like(part) for part in parts[:idle]]
    embedded = torch.split(rows, [len(group) for group in groups])
    own = [part[torch.tensor(order).argsort()] for part, order in zip(embedded, orders, strict=True)]
    gathered = [_gather(part, [of_rank[g] for of_rank in counts]).requires_grad_() for g, part in enumerate(own)]
    with torch.enable_grad():
        value = loss(*gathered)
    with _no_autocast(rows):
        by_group = torch.autograd.grad(value, gathered, allow_unused=True, materialize_grads=True)
    for g, gradient in enumerate(by_group):
        first = sum(of_rank[g] for of_rank in counts[: _rank()])
        # Each process propagates the gradient of its own rows; the factor makes up for the mean over processes.
        mine = gradient[first : first + len(groups[g])][orders[g]]
        gradients.extend(torch.split(mine * len(counts), chunk))
    gradients = [
        gradient for gradient in gradients if len(gradient)
    ]  # torch.split returns an empty part for an empty group

    ended = _random_state()
    for n, inputs in enumerate(chunks):
        with torch.enable_grad(), no_sync() if n < len(chunks) - 1 else nullcontext():
            # In an autocast around the whole call, weights cast without a graph would be reused here
            # (pytorch/pytorch issue 112583): silently, without a gradient.
            torch.clear_autocast_cache()
            _set_random_state(states[n])
            again = _rows(encode, inputs)
            if not again.requires_grad:
                raise InputError(
                    "encode returns rows without a graph, so nothing would be trained; let parameters require a "
                    "gradient, run no part of it under no_grad, and with gradient checkpointing of a frozen model "
                    'call enable_input_require_grads() and checkpoint with {"use_reentrant": False}'
                )
            with _no_autocast(rows):
                backward((again * gradients[n]).sum())
    _set_random_state(ended)
    return value.detach()


def gather_list(values: Sequence[T]) -> list[T]:
    """The values of all processes in order of rank, as ``cached_backward`` concatenates the rows of a group.

    For a loss that needs more than rows, such as which passages are copies of each other.
    """
    if not _distributed():
        return list(values)
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, list(values))
    return [value for of_rank in every for value in of_rank]


def _order(group: Sequence[T], size: Callable[[T], int] | None) -> list[int]:
    """The group's positions, the largest input first, so that running out of memory shows at once."""
    sizes = [size(item) if size else 0 for item in group]
    return sorted(range(len(group)), key=sizes.__getitem__, reverse=True)


def _counts_by_process(groups: Sequence[Sequence[T]]) -> list[list[int]]:
    """The number of inputs of each process in each group."""
    counts = gather_list([[len(group) for group in groups]])
    if not all(map(sum, counts)):
        raise InputError(f"inputs by process and group are {counts}; every process needs at least one")
    if len({len(of_rank) for of_rank in counts}) > 1:
        raise InputError(f"inputs by process and group are {counts}; all processes need the same groups")
    return counts


def _rows(encode: Callable[[Sequence[T]], Tensor], inputs: Sequence[T]) -> Tensor:
    rows = full(encode(inputs))
    if rows.ndim != 2 or len(rows) != len(inputs):
        raise InputError(f"encode returns {tuple(rows.shape)} for {len(inputs)} inputs; expected a row for each")
    return rows


def _gather(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all processes, (sum(counts), dim), outside any graph; ``rows`` are those of this process."""
    if not _distributed():
        return rows.detach().clone()
    padded = rows.new_zeros(max(counts), rows.shape[1])  # all_gather() needs equal shapes
    padded[: len(rows)] = rows
    every = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(every, padded)
    return torch.cat([part[:count] for part, count in zip(every, counts, strict=True)])


def _no_autocast(rows: Tensor) -> AbstractContextManager[Any]:
    """For a backward pass inside a caller's autocast, which would multiply float32 gradients in half precision."""
    return torch.autocast(rows.device.type, enabled=False)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _rank() -> int:
    return dist.get_rank() if _distributed() else 0


def _random_state() -> list[Tensor]:
    """The state of the CPU and of every CUDA device, as a model may use several."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state_all(state[1:])
