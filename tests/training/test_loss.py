from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from searchkit.training.loss import distillation, info_nce, matryoshka

CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def unit(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Unit float64 rows that want a gradient; a small spread puts them close to each other."""
    rows = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(1 + spread * rows, dim=1).requires_grad_()


def plain_info_nce(
    queries: Tensor, passages: Tensor, temperature: float, drop: Callable[[int, int], bool] = lambda i, j: False
) -> Tensor:
    """The formula in loops; `drop` says which (query, passage) is no negative."""
    total = queries.new_zeros(())
    for i, query in enumerate(queries):
        below = queries.new_zeros(())
        for j, passage in enumerate(passages):
            if j == i or not drop(i, j):
                below = below + torch.exp(query.dot(passage) / temperature)
        total = total - torch.log(torch.exp(query.dot(passages[i]) / temperature) / below)
    return total / len(queries)


def plain_distillation(student: Tensor, teacher: Tensor, temperature: float, weight: float) -> Tensor:
    n, total = len(student), student.new_zeros(())
    for i in range(n):
        others = [j for j in range(n) if j != i]
        s, t = ([torch.exp(rows[i].dot(rows[j]) / temperature) for j in others] for rows in (student, teacher))
        for a, b in zip(s, t, strict=True):
            taught, learnt = b / torch.stack(t).sum(), a / torch.stack(s).sum()
            total = total + taught * (torch.log(taught) - torch.log(learnt))
        if weight:
            total = total + weight * (1 - student[i].dot(teacher[i]))
    return total / n


def assert_same(found: Tensor, expected: Tensor, *rows: Tensor) -> None:
    """The same value, and the same gradient with respect to the rows."""
    torch.testing.assert_close(found, expected, **CLOSE)
    gradients = torch.autograd.grad(found, rows), torch.autograd.grad(expected, rows)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("passages", [5, 9])
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_info_nce_equals_the_formula(passages: int, temperature: float) -> None:
    q, p = unit(5, 8), unit(passages, 8, seed=1)
    assert_same(info_nce(q, p, temperature=temperature), plain_info_nce(q, p, temperature), q, p)


def test_info_nce_has_the_right_gradient() -> None:
    duplicates = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) < 0.3
    loss = partial(info_nce, temperature=0.3, duplicates=duplicates, margin=0.1)
    assert torch.autograd.gradcheck(loss, (unit(3, 4), unit(5, 4, seed=1)))


def test_the_default_temperature_is_the_paper_s_and_another_changes_the_loss() -> None:
    q, p = unit(5, 8), unit(9, 8, seed=1)
    assert info_nce(q, p) == info_nce(q, p, temperature=0.02)
    assert abs(info_nce(q, p) - info_nce(q, p, temperature=0.03)) > 0.1


def test_all_passages_alike_cost_the_log_of_their_number() -> None:
    assert info_nce(unit(4, 8).detach(), torch.ones(7, 8).double()) == pytest.approx(math.log(7))


def test_every_hard_negative_counts_for_every_query() -> None:
    q, p = unit(3, 8), unit(5, 8, seed=1)
    for negative in (3, 4):
        for query in range(3):
            loss = info_nce(q[query : query + 1], p[[query, negative]], temperature=1)
            assert torch.autograd.grad(loss, p)[0][negative].abs().max() > 1e-3
    every, none = (torch.autograd.grad(info_nce(q, rows, temperature=1), q)[0] for rows in (p, p[:3]))
    assert (every - none).abs().amax(1).min() > 1e-3  # no query is left as it was


def test_duplicates_are_not_negatives() -> None:
    q, p = unit(4, 8), unit(7, 8, seed=1)
    duplicates = torch.zeros(4, 7, dtype=torch.bool)
    duplicates[0, 2] = duplicates[2, 0] = duplicates[3, 5] = True
    found = info_nce(q, p, temperature=0.5, duplicates=duplicates)
    assert_same(found, plain_info_nce(q, p, 0.5, lambda i, j: bool(duplicates[i, j])), q, p)
    assert found < info_nce(q, p, temperature=0.5)


def test_a_positive_counts_even_where_it_is_named_a_duplicate_of_itself() -> None:
    q, p, texts = unit(3, 8), unit(4, 8, seed=1), [0, 1, 0, 2]
    copies = torch.tensor([[texts[i] == text for text in texts] for i in range(3)])
    unmarked = copies.clone().fill_diagonal_(False)
    assert info_nce(q, p, duplicates=copies) == info_nce(q, p, duplicates=unmarked)


def test_a_batch_of_one_passage_costs_nothing_and_stays_finite() -> None:
    q, p = unit(2, 8), unit(2, 8, seed=1)
    loss = info_nce(q, p, duplicates=torch.ones(2, 2, dtype=torch.bool))
    assert loss == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, (q, p)))


@pytest.mark.parametrize("margin", [-0.1, 0.0, 0.1])
def test_the_margin_leaves_out_what_scores_above_the_positive_and_nothing_else(margin: float) -> None:
    q, p = unit(6, 8, spread=0.7), unit(9, 8, seed=1, spread=0.7)
    drop = (q @ p.T > (q @ p.T).diagonal()[:, None] + margin).tolist()
    dropped = sum(drop[i][j] for i in range(6) for j in range(9) if i != j)
    assert 0 < dropped < 6 * 8
    assert_same(
        info_nce(q, p, temperature=0.3, margin=margin), plain_info_nce(q, p, 0.3, lambda i, j: drop[i][j]), q, p
    )


def test_the_margin_is_on_the_scale_of_cosines_whatever_the_temperature() -> None:
    q = torch.tensor([[1.0, 0.0]]).double()
    cosines = torch.tensor([0.5, 0.59, 0.61]).double()
    p = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1).requires_grad_()
    for temperature in (0.02, 1.0):
        (gradient,) = torch.autograd.grad(info_nce(q, p, temperature=temperature, margin=0.1), p)
        assert gradient[1].abs().max() > 1e-3  # 0.59 is within the margin
        assert not gradient[2].any()  # 0.61 is not


def test_no_margin_keeps_every_negative() -> None:
    q, p = unit(6, 8), unit(9, 8, seed=1)
    assert info_nce(q, p) == info_nce(q, p, margin=2.1)
    assert info_nce(q, p, margin=0.0) < info_nce(q, p)


@pytest.mark.parametrize("loss", [info_nce, distillation])
def test_a_loss_is_float32_maths_whatever_the_autocast(loss: Callable[..., Tensor]) -> None:
    q, p = unit(6, 32).float(), unit(6, 32, seed=1).float()
    expected = loss(q, p)
    torch.testing.assert_close(expected.double(), loss(q.double(), p.double()), rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(q, p)
        halves = loss(q.bfloat16(), p.bfloat16())
    assert found == expected
    assert found.dtype == halves.dtype == torch.float32
    assert halves == loss(q.bfloat16().float(), p.bfloat16().float())


@pytest.mark.parametrize(("temperature", "weight"), [(0.05, 5.0), (0.5, 1.0), (0.5, 0.0)])
def test_distillation_equals_the_formula(temperature: float, weight: float) -> None:
    student, teacher = unit(6, 8), unit(6, 8, seed=1).detach()
    found = distillation(student, teacher, temperature=temperature, weight=weight)
    assert_same(found, plain_distillation(student, teacher, temperature, weight), student)


def test_distillation_has_the_right_gradient_and_none_for_the_teacher() -> None:
    student, teacher = unit(4, 5), unit(4, 5, seed=1)
    assert torch.autograd.gradcheck(partial(distillation, teacher=teacher.detach(), temperature=0.3), (student,))
    assert torch.autograd.grad(distillation(student, teacher), teacher, allow_unused=True) == (None,)


def test_a_perfect_student_costs_nothing() -> None:
    rows = unit(6, 8).detach()
    assert distillation(rows, rows) == pytest.approx(0, abs=1e-12)


def test_the_defaults_of_distillation_and_that_both_options_count() -> None:
    student, teacher = unit(6, 8), unit(6, 8, seed=1)
    default = distillation(student, teacher)
    assert default == distillation(student, teacher, temperature=0.05, weight=5.0)
    assert abs(default - distillation(student, teacher, temperature=0.1)) > 0.1
    distances = (1 - (student * teacher).sum(1)).mean()
    torch.testing.assert_close(distillation(student, teacher, weight=7.0) - default, 2 * distances, **CLOSE)


def test_one_text_has_no_neighbours_to_learn_from() -> None:
    student, teacher = unit(1, 8), unit(1, 8, seed=1).detach()
    assert_same(distillation(student, teacher), 5 * (1 - (student * teacher).sum()), student)


def test_a_wider_teacher_teaches_neighbours_only() -> None:
    student, teacher = unit(6, 8), unit(6, 12, seed=1)
    assert_same(distillation(student, teacher, weight=0), plain_distillation(student, teacher, 0.05, 0), student)
    with pytest.raises(ValueError, match=r"student's rows are 8 wide and the teacher's 12.*or set weight=0"):
        distillation(student, teacher)


def test_matryoshka_equals_the_sum_by_hand() -> None:
    q, p = unit(4, 8), unit(6, 8, seed=1)
    expected = q.new_zeros(())
    for dim in (8, 4, 2):
        cut = [torch.stack([row[:dim] / row[:dim].dot(row[:dim]).sqrt() for row in rows]) for rows in (q, p)]
        expected = expected + plain_info_nce(cut[0], cut[1], 0.5)
    loss = partial(info_nce, temperature=0.5)
    assert_same(matryoshka(loss, q, p, dims=[8, 4, 2]), expected, q, p)


def test_matryoshka_at_the_full_width_is_the_loss() -> None:
    q, p = unit(4, 8), unit(6, 8, seed=1)
    torch.testing.assert_close(matryoshka(info_nce, q, p, dims=[8]), info_nce(q, p), **CLOSE)


def test_matryoshka_takes_any_loss_of_rows() -> None:
    student, teacher = unit(5, 8), unit(5, 8, seed=1)
    found = matryoshka(distillation, student, teacher, dims=[8, 4])
    cut = [torch.nn.functional.normalize(rows[:, :4], dim=1) for rows in (student, teacher)]
    torch.testing.assert_close(found, distillation(student, teacher) + distillation(cut[0], cut[1]), **CLOSE)


@pytest.mark.parametrize("loss", [info_nce, distillation])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_cannot_divide_is_refused(loss: Callable[..., Tensor], temperature: float) -> None:
    with pytest.raises(ValueError, match="expected a number above 0"):
        loss(unit(2, 4), unit(2, 4), temperature=temperature)


def test_shapes_that_do_not_fit_are_refused() -> None:
    for q, p in (((3, 8), (2, 8)), ((0, 8), (2, 8)), ((2, 8), (2, 4))):
        with pytest.raises(ValueError, match=r"expected \(q, dim\) and \(p, dim\)"):
            info_nce(torch.ones(q), torch.ones(p))
    for duplicates in (torch.zeros(2, 2, dtype=torch.bool), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match=r"expected torch.bool \(2, 3\)"):
            info_nce(torch.ones(2, 8), torch.ones(3, 8), duplicates=duplicates)
    for teacher in (2, 0):
        with pytest.raises(ValueError, match="one row per text in both"):
            distillation(torch.ones(teacher and 3, 8), torch.ones(teacher, 8))


def test_widths_that_do_not_fit_are_refused() -> None:
    q = unit(2, 8)
    for dims in ([], [0], [4, 9]):
        with pytest.raises(ValueError, match="widths from 1 to the rows' own 8"):
            matryoshka(info_nce, q, q, dims=dims)
