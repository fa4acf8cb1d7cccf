"""The built-in model's head: a linear map after pooling, learnt on vectors that were computed once.

The transformer stays as it is. A few directions take up most of the spread of its vectors, and a covariance to a small
negative power evens that out (partial whitening). From there, the map learns which passage an instruction asks for,
while the similarities of all else to thousands of passages at once stay as whitening made them, for queries with an
instruction that changes nothing too. Everything is matrix products of kept vectors, so that a run takes a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from searchkit.models.embedder import Embedder
from searchkit.training.builtin.objective import contrast, divergence, learning_rate
from searchkit.training.builtin.rows import NEGATIVES, Rows, Tensors, answers
from searchkit.training.dataset import Example


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """How a head is learnt.

    Args:
        power: Of the covariance that the map starts from; -.5 would whiten.
        shrink: Added to the covariance's eigenvalues, whose mean is 1.
        scale: What cosines are multiplied by for the distribution over passages that has to stay.
        contrast: Weight of telling the passage that an instruction asks for from others.
        temperature: Of that.
        stay: Weight of the map's distance to the start.
        candidates: Passages that a step compares queries with.
        batch: Queries of each kind in a step.
        steps: How many.
        learning_rate: Adam's for the map, the highest.
        seed: Draws queries and candidates.
    """

    power: float = -0.2
    shrink: float = 0.3
    scale: float = 20.0
    contrast: float = 0.5
    temperature: float = 0.03
    stay: float = 0.1
    candidates: int = 4096
    batch: int = 256
    steps: int = 150
    learning_rate: float = 3e-4
    seed: int = 0


@dataclass(frozen=True, slots=True)
class HeadData(Tensors):
    """Vectors of texts, and which belong together.

    Args:
        queries: (queries, dim) unit rows, without instructions.
        told: (told, dim) unit rows of queries with their instruction.
        passages: (passages, dim) unit rows.
        plain: (n, 2) rows of `told` and `queries`: an instruction that changes nothing.
        asked: (n, 2 + NEGATIVES) rows of `told` and of `passages`: what an instruction asks for, and what it does not.
    """

    queries: Tensor
    told: Tensor
    passages: Tensor
    plain: Tensor
    asked: Tensor


def prepare(plain: Sequence[Example], instructed: Sequence[Example], model: Embedder) -> HeadData:
    """Embed the texts of all examples.

    Args:
        plain: Pairs; an instruction of theirs changes nothing.
        instructed: Examples whose instruction decides, each with negatives.
        model: Without a head.
    """
    examples = [*plain, *instructed]
    queries = Rows(example.query for example in examples)
    told = Rows((example.query, example.instruction) for example in examples if example.instruction)
    passages = Rows(text for example in examples for text in (example.positive, *example.negatives))
    vectors = [
        torch.from_numpy(rows)
        for rows in (
            model.encode_queries(queries.keys, ""),
            model.encode_tokens(model.tokenize_queries(*zip(*told.keys, strict=True))),
            model.encode_passages(passages.keys),
        )
    ]
    kept = [(told[e.query, e.instruction], queries[e.query]) for e in plain if e.instruction]
    asked = [(told[e.query, e.instruction], *answers(e, passages)) for e in instructed if e.instruction and e.negatives]
    return HeadData(
        queries=vectors[0],
        told=vectors[1],
        passages=vectors[2],
        plain=torch.tensor(kept).reshape(-1, 2),
        asked=torch.tensor(asked).reshape(-1, 2 + NEGATIVES),
    )


def whitening(rows: Tensor, *, power: float, shrink: float) -> Tensor:
    """(dim, dim) float32, symmetric: a covariance to a power, scaled so that rows keep their length on average.

    Args:
        rows: (n, dim) unit rows, queries and passages alike.
        power: Of the covariance.
        shrink: Added to its eigenvalues, whose mean is 1.
    """
    values, vectors = torch.linalg.eigh(torch.cov(rows.T.double()))
    values = values.clamp(min=0)
    matrix: Tensor = ((vectors * (values / values.mean() + shrink) ** power) @ vectors.T).float()
    length: Tensor = (rows @ matrix).norm(dim=1).mean()
    return matrix / length


def learn(data: HeadData, config: HeadConfig, on_step: Callable[[int, float, float], None] | None = None) -> Tensor:
    """The map, (dim, dim) float32: rows of the model times it are the new ones.

    Args:
        data: What to learn from.
        config: How.
        on_step: Called after each step with its number, the mean divergence from the distribution that has to stay, and
            the contrastive loss.
    """
    draw = torch.Generator().manual_seed(config.seed)
    start = whitening(torch.cat([data.queries, data.passages]), power=config.power, shrink=config.shrink)
    queries, all_passages = _mapped(data.queries, start), _mapped(data.passages, start)  # what has to stay
    matrix = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([matrix])

    def moved(rows: Tensor, passages: Tensor, query: Tensor, drawn: Tensor) -> Tensor:
        wanted = config.scale * queries[query] @ all_passages[drawn].T
        return divergence(config.scale * _mapped(rows, matrix) @ passages.T, wanted)

    def some(count: int) -> Tensor:
        return torch.randperm(count, generator=draw)[: config.batch]

    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(config.learning_rate, step, config.steps)
        drawn = torch.randperm(len(data.passages), generator=draw)[: config.candidates]
        passages = _mapped(data.passages[drawn], matrix)
        query = some(len(data.queries))
        apart = moved(data.queries[query], passages, query, drawn)
        loss = apart + config.stay * len(start) * ((matrix - start) ** 2).sum() / (start**2).sum()
        asked = torch.zeros(())
        if len(data.plain):
            told, query = data.plain[some(len(data.plain))].T
            loss = loss + moved(data.told[told], passages, query, drawn)
        if len(data.asked):
            told, *rows = data.asked[some(len(data.asked))].T
            each = torch.stack(rows, dim=1)
            mapped = _mapped(data.passages[each.flatten()], matrix)
            asked = contrast(_mapped(data.told[told], matrix), mapped, each, config.temperature)
            loss = loss + config.contrast * asked
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if on_step:
            on_step(step + 1, apart.item(), asked.item())
    return matrix.detach()


def _mapped(rows: Tensor, matrix: Tensor) -> Tensor:
    return F.normalize(rows @ matrix, dim=-1)
