"""The shift of queries by their instruction, on vectors made up so that the answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from searchkit.models.instruction_shift import InstructionShift
from searchkit.training.builtin.rows import NEGATIVES
from searchkit.training.builtin.shift import ShiftConfig, ShiftData, learn

DIM = 16


def rows(count: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_it_moves_where_an_instruction_decides_and_stays_where_none_does(tmp_path: Path) -> None:
    queries, ways, general = rows(200, 1), rows(2, 2), rows(6, 3)
    instructions = F.normalize(torch.cat([ways.repeat(5, 1) + 0.3 * rows(10, 4), general]), dim=1)
    passages = torch.cat([F.normalize(queries + 1.5 * way, dim=1) for way in ways])  # of each query, one for each way
    asked = torch.tensor(
        [
            [query, number, query + 200 * (number % 2), query + 200 * (1 - number % 2)]
            + [(query + 7 * n) % 200 + 200 * (1 - number % 2) for n in range(1, NEGATIVES)]
            for query in range(160)
            for number in range(8)
        ]
    )
    plain = torch.tensor([[query, 10 + query % 3] for query in range(160)])
    data = ShiftData(queries, instructions, passages, asked, plain, torch.tensor([13, 14, 15]))
    losses: list[tuple[float, float]] = []
    config = ShiftConfig(candidates=200, batch=128, learning_rate=0.01)
    arrays = learn(data, config, on_step=lambda step, *loss: losses.append(loss))
    assert len(losses) == config.steps
    assert abs(losses[0][0]) < 1e-6, "it begins by adding nothing"
    shift = InstructionShift(arrays, "")
    unseen = np.asarray(F.normalize(ways + 0.3 * rows(2, 9), dim=1))
    for way, moves in enumerate(shift(unseen)):
        scores = (queries[160:].numpy() + moves) @ passages.numpy().T
        right = scores[np.arange(40), np.arange(160, 200) + 200 * way]
        other = scores[np.arange(40), np.arange(160, 200) + 200 * (1 - way)]
        assert (right > other).mean() > 0.9
    still = shift(instructions[10:].numpy())
    assert np.linalg.norm(still, axis=1).max() < 0.4 * np.linalg.norm(shift(unseen), axis=1).min()

    data.save(tmp_path / "data")
    again = learn(ShiftData.load(tmp_path / "data"), config)
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
    assert arrays["inner.weight"].shape == (config.hidden, DIM)
