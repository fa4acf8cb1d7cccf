from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from searchkit.significance import paired_test


def named(values: np.ndarray) -> dict[str, float]:
    return {str(n): float(value) for n, value in enumerate(values)}


@pytest.mark.parametrize("seed", range(3))
def test_it_comes_to_what_all_signs_give(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = rng.random(11), rng.random(11) + 0.15
    signs = np.array(list(product((-1, 1), repeat=11)))
    sums = np.abs(signs @ (after - before))
    exact = (sums >= abs((after - before).sum()) - 1e-9).mean()
    assert paired_test(named(before), named(after)) == pytest.approx(exact, abs=0.02)


def test_no_difference_is_no_evidence_and_a_clear_one_is() -> None:
    before = np.linspace(0, 0.8, 60)
    assert paired_test(named(before), named(before)) == 1
    assert paired_test(named(before), named(before + 0.1)) == pytest.approx(1 / 10_001)


def test_queries_that_changed_nothing_change_nothing() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.random(20), rng.random(20)
    rest = np.ones(50)
    padded = paired_test(named(np.append(before, rest)), named(np.append(after, rest)))
    assert padded == paired_test(named(before), named(after))


def test_other_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="2 queries before and 1 after, 1 of them in both"):
        paired_test({"a": 1.0, "b": 1.0}, {"a": 0.5})
