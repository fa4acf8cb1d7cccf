"""The linear map after pooling, on vectors made up so that the answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from searchkit.training.builtin.head import HeadConfig, HeadData, learn, whitening
from searchkit.training.builtin.rows import NEGATIVES

DIM = 16


def rows(count: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_minus_a_half_whitens_and_less_evens_out() -> None:
    uneven = rows(2000, 0) * torch.linspace(0.1, 3, DIM)
    spreads = []
    for power in (0.0, -0.2, -0.5):
        matrix = whitening(uneven, power=power, shrink=0)
        np.testing.assert_allclose((uneven @ matrix).norm(dim=1).mean(), 1, rtol=1e-5)
        values = torch.linalg.eigvalsh(torch.cov((uneven @ matrix).T))
        spreads.append(float(values[-1] / values[0]))
    assert spreads[0] > spreads[1] > spreads[2]
    np.testing.assert_allclose(spreads[2], 1, rtol=1e-3)


def test_it_learns_what_instructions_ask_for_and_keeps_similarities(tmp_path: Path) -> None:
    queries, passages, noise = rows(300, 5), rows(400, 6), rows(40, 7)
    told = F.normalize(queries[:40] + noise, dim=1)  # of 40 pairs an instruction is no more than noise
    wanted = torch.arange(40)
    shift = torch.randn(DIM, generator=torch.Generator().manual_seed(8))
    asking = F.normalize(passages[:40] + shift, dim=1)  # of 40 other queries it asks for their passage, and turns all
    asked = torch.stack([40 + wanted, wanted, *(wanted + 40 * n for n in range(1, 1 + NEGATIVES))], dim=1)
    data = HeadData(queries, torch.cat([told, asking]), passages, torch.stack([wanted, wanted], dim=1), asked)
    losses: list[tuple[float, float]] = []
    config = HeadConfig(steps=150, learning_rate=0.01, stay=0.01, candidates=200, batch=64)
    matrix = learn(data, config, on_step=lambda step, *loss: losses.append(loss))
    assert len(losses) == 150
    contrasts = [contrast for _, contrast in losses]
    assert np.mean(contrasts[-10:]) < 0.8 * np.mean(contrasts[:10])
    start = whitening(torch.cat([queries, passages]), power=config.power, shrink=config.shrink)
    before, after = (F.normalize(queries @ m, dim=1) @ F.normalize(passages @ m, dim=1).T for m in (start, matrix))
    assert np.corrcoef(before.flatten(), after.flatten())[0, 1] > 0.9

    data.save(tmp_path / "data")
    torch.testing.assert_close(learn(HeadData.load(tmp_path / "data"), config), matrix)
    near = learn(data, replace(config, stay=100.0))
    assert (near - start).norm() < 0.3 * (matrix - start).norm()
