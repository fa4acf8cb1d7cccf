from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from searchkit.training.adaptation import linear_map
from searchkit.training.adaptation.linear_map import TEMPERATURE, VectorPairs, fit, mean_gain, most_passages

DIM = 24


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def planted(noise: float, *, pairs: int = 160, passages: int = 120, seed: int = 0) -> VectorPairs:
    """Queries are their passages in half of the dimensions, and noise in the others."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((passages, DIM))
    right = np.arange(pairs) % passages
    queries = rows[right] + 0.3 * rng.standard_normal((pairs, DIM))
    queries[:, DIM // 2 :] = noise * rng.standard_normal((pairs, DIM // 2))
    none = [np.empty(0, np.int64)] * pairs
    return VectorPairs(unit(queries), unit(rows), right, none, np.arange(pairs))


def test_what_says_nothing_is_turned_down() -> None:
    data, new = planted(2.0), planted(2.0, seed=1)
    matrix, strength = fit(data)
    assert strength == 1
    before, after = mean_gain(np.eye(DIM, dtype=np.float32), new), mean_gain(matrix, new)
    assert after > before + 0.1
    assert matrix.diagonal()[: DIM // 2].mean() > matrix.diagonal()[DIM // 2 :].mean() + 0.1


def test_pairs_from_which_nothing_follows_leave_vectors_as_they_are() -> None:
    data = planted(0.0)
    shuffled = replace(data, queries=data.passages[np.random.default_rng(1).permutation(120)[data.right]])
    exact = replace(data, queries=data.passages[data.right])
    for pairs in (shuffled, exact):  # nothing to learn, and nothing left to gain
        matrix, strength = fit(pairs)
        if strength == 0:
            np.testing.assert_array_equal(matrix, np.eye(DIM))
        assert mean_gain(matrix, exact) == 1
    assert fit(exact)[1] == 0


@pytest.mark.parametrize("passages", [120, 40])
def test_the_gradient_is_that_of_torch(passages: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    data = replace(planted(1.0), neutral=[rng.choice(np.delete(np.arange(120), n % 120), 3) for n in range(160)])
    start = np.eye(DIM) + 0.1 * rng.standard_normal((DIM, DIM))
    chosen = rng.permutation(passages)[:20]
    columns = np.union1d(data.right[chosen], rng.choice(120, passages, replace=False))
    matrix = torch.tensor(start, requires_grad=True)
    queries, rows = (
        torch.nn.functional.normalize(torch.from_numpy(each).double() @ matrix, dim=1)
        for each in (data.queries[chosen], data.passages[columns])
    )
    scores = queries @ rows.T / TEMPERATURE
    for n, pair in enumerate(chosen):
        scores[n, np.isin(columns, data.neutral[pair])] = float("-inf")
    right = [columns.tolist().index(data.right[pair]) for pair in chosen]
    torch.nn.functional.cross_entropy(scores, torch.tensor(right)).backward()
    ours = linear_map._gradient(start.astype(np.float32), data, chosen, columns)
    np.testing.assert_allclose(ours, matrix.grad.numpy(), atol=1e-4)


def test_other_answers_of_a_query_count_neither_as_right_nor_as_wrong() -> None:
    data = planted(0.0, pairs=120)
    copies = replace(
        data, passages=np.repeat(data.passages[:60], 2, axis=0), queries=data.passages[np.arange(120) // 2]
    )
    neutral = [np.array([n ^ 1]) for n in range(120)]
    assert mean_gain(np.eye(DIM, dtype=np.float32), replace(copies, neutral=neutral)) == 1
    turned = copies.passages + 0.1 * np.roll(copies.passages, 1, axis=1)  # the pair's own is not the nearest
    other = replace(copies, passages=unit(np.where((np.arange(120) % 2 == 0)[:, None], turned, copies.passages)))
    assert mean_gain(np.eye(DIM, dtype=np.float32), replace(other, neutral=neutral)) == 1
    assert mean_gain(np.eye(DIM, dtype=np.float32), other) < 0.9


def test_many_passages_are_drawn_from_a_step_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_map, "BATCH", 16)
    monkeypatch.setattr(linear_map, "_NUMBERS", 40 * DIM)
    assert most_passages(DIM) == 40
    new = planted(2.0, seed=1)
    matrix, strength = fit(planted(2.0))
    assert strength > 0
    assert mean_gain(matrix, new) > mean_gain(np.eye(DIM, dtype=np.float32), new) + 0.05


def test_a_seed_decides_all() -> None:
    one, other = (fit(planted(1.0), seed=3)[0] for _ in range(2))
    np.testing.assert_array_equal(one, other)
