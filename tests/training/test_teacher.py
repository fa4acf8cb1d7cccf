from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_models import build_tokenizer
from torch import Tensor

from searchkit.models.embedder import Embedder
from searchkit.training.batches import Batch
from searchkit.training.config import TrainConfig
from searchkit.training.dataset import Example
from searchkit.training.teacher import Teacher, teaching_loss
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


@pytest.mark.parametrize("follows", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_what_an_instructed_query_is_taught(kept: bool, follows: bool, mistral: Path) -> None:
    teacher = Teacher(str(mistral), device="cpu", max_length=64, follows=follows)
    examples = [Example("tea", "Tea is hot.", (), "Find tea"), Example("oil", "Oil is thick.", (), None)]
    embedder = Embedder(mistral, device="cpu", dtype="float32")
    plain, told = (torch.from_numpy(embedder.encode_queries(["tea"], said)[0]) for said in ("", "Find tea"))
    expected = told if follows else plain if kept else F.normalize(plain + told, dim=0)
    rows = teacher.rows(Batch(examples, [[], []], kept=kept), [True, True])
    torch.testing.assert_close(rows[0], expected, rtol=0, atol=1e-5)
    assert (plain - told).abs().max() > 1e-3
    untold = teacher.rows(Batch(examples, [[], []], kept=kept), [False, True])
    torch.testing.assert_close(untold[0], plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(untold[1], torch.from_numpy(embedder.encode_queries(["oil"], "")[0]), rtol=0, atol=1e-5)
