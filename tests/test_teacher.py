from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import build_tokenizer
from torch import Tensor

from searchkit.training.config import TrainConfig
from searchkit.training.teacher import teaching_loss
from searchkit.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def unit(count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, dtype=torch.float64, generator=generator), dim=1)


def plainly(rows: Tensor, taught: Tensor, apart: list[bool], weight: float, neighbours: float) -> Tensor:
    """The formula of the docstrings, text by text."""
    far = (
        [1 - row @ other for row, other in zip(rows, taught, strict=True)] if weight else [torch.zeros(())] * len(rows)
    )
    alone = [i for i, left_out in enumerate(apart) if left_out]
    rest = [i for i in range(len(rows)) if i not in alone]
    loss = 2 / 3 * weight * sum(far[i] for i in alone) / len(rows) + weight * sum(far[i] for i in rest) / len(rest)
    for i in rest:
        learnt, wanted = (
            torch.stack([side[i] @ side[j] / 0.05 for j in rest if j != i]).log_softmax(0) for side in (rows, taught)
        )
        loss = loss + neighbours * (wanted.exp() * (wanted - learnt)).sum() / len(rest)
    return torch.as_tensor(loss)


@pytest.mark.parametrize("apart", [[False] * 3, [True, False, True], [True] * 3])
@pytest.mark.parametrize(("weight", "neighbours", "width"), [(5.0, 1.0, 16), (3.0, 0.0, 16), (0.0, 1.0, 24)])
def test_what_a_teacher_teaches_is_the_plain_formula(
    apart: list[bool], weight: float, neighbours: float, width: int
) -> None:
    rows, taught = unit(8, 16, seed=1).requires_grad_(), unit(8, width, seed=2)
    found = teaching_loss(rows, taught, torch.tensor(apart), weight=weight, neighbours=neighbours)
    expected = plainly(rows, taught, apart, weight, neighbours)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(value, rows)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_a_teacher_of_another_width_teaches_neighbours_alone(config: TrainConfig, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    wide = tmp_path / "wide"
    BertModel(
        BertConfig(vocab_size=512, hidden_size=96, num_hidden_layers=1, num_attention_heads=4, intermediate_size=96)
    ).save_pretrained(wide)
    build_tokenizer(wide)
    config = replace(config, teacher=str(wide), max_steps=1)
    with pytest.raises(ValueError, match=r"of 96 .* of 64, .*--teacher-weight 0"):
        train(config)
    assert math.isfinite(train(replace(config, teacher_weight=0)).losses[0][1])
