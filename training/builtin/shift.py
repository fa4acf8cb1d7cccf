"""The built-in model's shift: what an instruction's own vector adds to the vectors of its queries.

Learnt on vectors that the finished model gives, all read without a prefix. Examples whose instruction decides say where
queries have to go; instructions that change nothing, given to queries of all kinds, say when they have to stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from searchkit.models.embedder import Embedder
from searchkit.training.builtin.objective import contrast, divergence, learning_rate
from searchkit.training.builtin.rows import NEGATIVES, Rows, Tensors, answers
from searchkit.training.dataset import Example


@dataclass(frozen=True, slots=True)
class ShiftConfig:
    """How a shift is learnt.

    Args:
        hidden: Units between the instruction's vector and the shift.
        temperature: Of telling the passage that an instruction asks for from others.
        keep: Weight of leaving queries where they are when their instruction changes nothing.
        scale: What cosines are multiplied by for the distribution over passages that is kept.
        decay: Weight of the squared weights.
        candidates: Passages that this distribution is over.
        batch: Queries of each kind in a step.
        steps: How many.
        learning_rate: Adam's, the highest.
        seed: Draws the start, queries and candidates.
    """

    hidden: int = 64
    temperature: float = 0.05
    keep: float = 4.0
    scale: float = 20.0
    decay: float = 1e-3
    candidates: int = 1024
    batch: int = 256
    steps: int = 300
    learning_rate: float = 2e-3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ShiftData(Tensors):
    """Vectors of texts, and which belong together.

    Args:
        queries: (queries, dim) unit rows.
        instructions: (instructions, dim) unit rows.
        passages: (passages, dim) unit rows.
        asked: (n, 3 + NEGATIVES) rows of `queries`, `instructions` and `passages`: what an instruction asks for, and
            what it does not.
        plain: (m, 2) rows of `queries` and `instructions`: instructions that change nothing for these queries.
        general: (k,) rows of `instructions` that change nothing for any query.
    """

    queries: Tensor
    instructions: Tensor
    passages: Tensor
    asked: Tensor
    plain: Tensor
    general: Tensor


def prepare(
    plain: Sequence[Example], instructed: Sequence[Example], general: Sequence[str], model: Embedder
) -> ShiftData:
    """Embed the texts of all examples that have an instruction.

    Args:
        plain: Pairs whose instruction changes nothing.
        instructed: Examples whose instruction decides, each with negatives.
        general: Instructions that change nothing for any query.
        model: Without a shift.
    """
    plain = [example for example in plain if example.instruction]
    instructed = [example for example in instructed if example.instruction and example.negatives]
    examples = [*plain, *instructed]
    queries = Rows(example.query for example in examples)
    instructions = Rows([*(example.instruction for example in examples), *general])
    passages = Rows(text for example in examples for text in (example.positive, *example.negatives))
    asked = [(queries[e.query], instructions[e.instruction], *answers(e, passages)) for e in instructed]
    kept = [(queries[e.query], instructions[e.instruction]) for e in plain]
    return ShiftData(
        queries=torch.from_numpy(model.encode_queries(queries.keys, "")),
        instructions=torch.from_numpy(model.encode_queries(instructions.keys, "")),
        passages=torch.from_numpy(model.encode_passages(passages.keys)),
        asked=torch.tensor(asked).reshape(-1, 3 + NEGATIVES),
        plain=torch.tensor(kept).reshape(-1, 2),
        general=torch.tensor([instructions[text] for text in general], dtype=torch.long),
    )


class _Network(torch.nn.Module):
    """The vector of an instruction to what is added to a query's; zero before training."""

    centre: Tensor

    def __init__(self, centre: Tensor, hidden: int) -> None:
        super().__init__()
        self.register_buffer("centre", centre)
        self.inner = torch.nn.Linear(len(centre), hidden)
        self.outer = torch.nn.Linear(hidden, len(centre), bias=False)
        torch.nn.init.normal_(self.inner.weight, std=3 * len(centre) ** -0.5)
        torch.nn.init.zeros_(self.inner.bias)
        torch.nn.init.zeros_(self.outer.weight)

    def forward(self, queries: Tensor, instructions: Tensor) -> Tensor:
        hidden = torch.relu(self.inner(instructions - self.centre))
        return F.normalize(queries + self.outer(hidden), dim=-1)


def learn(
    data: ShiftData, config: ShiftConfig, on_step: Callable[[int, float, float], None] | None = None
) -> dict[str, np.ndarray]:
    """The network's arrays, as :class:`searchkit.models.instruction_shift.InstructionShift` takes them.

    Args:
        data: What to learn from.
        config: How.
        on_step: Called after each step with its number, the mean divergence from the distribution that has to stay, and
            the contrastive loss.
    """
    torch.manual_seed(config.seed)
    draw = torch.Generator().manual_seed(config.seed)
    centre = data.instructions[torch.cat([data.asked[:, 1], data.plain[:, 1]])].mean(dim=0)
    network = _Network(centre, config.hidden)
    optimizer = torch.optim.Adam(network.parameters())

    def some(count: int, most: int) -> Tensor:
        return torch.randperm(count, generator=draw)[:most]

    def moved(rows: Tensor, instructions: Tensor, passages: Tensor) -> Tensor:
        queries = data.queries[rows]
        shifted = network(queries, data.instructions[instructions])
        return divergence(config.scale * shifted @ passages, config.scale * queries @ passages)

    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(config.learning_rate, step, config.steps)
        query, instruction, *rows = data.asked[some(len(data.asked), config.batch)].T
        shifted = network(data.queries[query], data.instructions[instruction])
        each = torch.stack(rows, dim=1)
        asked = contrast(shifted, data.passages[each.flatten()], each, config.temperature)
        passages = data.passages[some(len(data.passages), config.candidates)].T
        apart = torch.zeros(())
        if len(data.plain):
            query, instruction = data.plain[some(len(data.plain), config.batch)].T
            apart = moved(query, instruction, passages)
        if len(data.general):
            everywhere = torch.cat([data.plain[:, 0], data.asked[:, 0]])
            query = everywhere[some(len(everywhere), config.batch // 2)]
            instruction = data.general[torch.randint(len(data.general), (len(query),), generator=draw)]
            apart = apart + moved(query, instruction, passages)
        loss = asked + config.keep * apart
        loss = loss + config.decay * sum((weights**2).sum() for weights in network.parameters())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if on_step:
            on_step(step + 1, apart.item(), asked.item())
    return {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}
