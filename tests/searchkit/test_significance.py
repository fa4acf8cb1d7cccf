"""Paired tests: equal to scipy's, exact where possible, and calibrated."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from rank_bm25 import BM25Okapi

from searchkit.metrics import score
from searchkit.readers.judgements import read_beir_split
from searchkit.significance import compare_paired, confidence_interval, holm, randomisation_test, t_test

stats = pytest.importorskip("scipy.stats")
INTENTS = Path(__file__).resolve().parents[2] / "corpora" / "intents"


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    """nDCG@10 of BM25 for every query of a real collection: discrete, skewed, full of zeros and ones."""
    queries, qrels = read_beir_split(INTENTS, "test")
    rows = [json.loads(line) for line in (INTENTS / "corpus.jsonl").read_text("utf-8").splitlines()]
    bm25 = BM25Okapi([f"{row['title']} {row['text']}".lower().split() for row in rows])
    run = {
        query.id: {
            row["_id"]: float(value)
            for row, value in zip(rows, bm25.get_scores(query.text.lower().split()), strict=True)
        }
        for query in queries
    }
    return np.array(list(score(run, qrels)[1].values()))


def differences_with_ties(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).choice([-0.5, -0.1, 0, 0, 0.1, 0.3, 1], size=count)


@pytest.mark.parametrize("seed", range(8))
def test_few_queries_give_the_exact_p_of_scipy(seed: int) -> None:
    differences = differences_with_ties(seed, 10)
    oracle = stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert randomisation_test(differences[:, None])[0] == pytest.approx(oracle.pvalue)


@pytest.mark.parametrize("seed", range(4))
def test_many_queries_give_nearly_the_exact_p(seed: int) -> None:
    rng = np.random.default_rng(seed)
    differences = rng.choice([-0.5, -0.1, 0.1, 0.3, 1], size=16)  # more than are tried exhaustively
    signs = np.array(list(itertools.product((-1, 1), repeat=16)))
    exact = (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean()
    assert randomisation_test(differences[:, None])[0] == pytest.approx(exact, abs=0.015)


@pytest.mark.parametrize("seed", range(4))
def test_the_t_test_is_scipy_s(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = rng.random(30), rng.random(30)
    oracle = stats.ttest_rel(after, before)
    test = compare_paired(before, after)
    assert test.p_t == pytest.approx(oracle.pvalue)
    assert (test.low, test.high) == pytest.approx(tuple(oracle.confidence_interval()))
    assert test.difference == pytest.approx((after - before).mean())


def test_p_is_calibrated_on_random_splits_of_one_system(values: np.ndarray) -> None:
    """2,000 times, one half of the queries against the other: each test finds a difference 5 % ± 1.5 % of the times."""
    rng = np.random.default_rng(1)
    half = len(values) // 2
    splits = np.stack([rng.permutation(values)[: 2 * half] for _ in range(2000)])
    differences = (splits[:, :half] - splits[:, half:]).T  # (half, 2000)
    for p in (randomisation_test(differences, flips=4000), t_test(differences)):
        assert 0.035 <= (p < 0.05).mean() <= 0.065
        assert np.quantile(p, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.04)


def test_a_real_difference_is_found(values: np.ndarray) -> None:
    better = np.minimum(1, values + 0.1 * np.random.default_rng(0).random(len(values)))
    test = compare_paired(values, better)
    assert test.p_randomisation == 1 / 20_001  # no random pattern was as extreme, and p is never zero
    assert test.p_t < 1e-6
    assert (test.wins, test.losses) == ((values < 1).sum(), 0)
    assert test.low < test.difference < test.high


@pytest.mark.parametrize("count", [1, 2, 40])
def test_a_system_against_itself_is_no_difference(count: int) -> None:
    row = np.linspace(0, 1, count)
    test = compare_paired(row, row + 1e-12)  # as rounding leaves it
    assert (test.difference, test.p_randomisation, test.ties) == (0, 1, count)
    assert test.p_t == 1 or count == 1


def test_one_query_proves_nothing() -> None:
    test = compare_paired(np.array([0.0]), np.array([1.0]))
    assert (test.p_randomisation, test.wins) == (1, 1)
    assert np.isnan([test.p_t, test.low, test.high]).all()


def test_the_order_of_systems_changes_only_the_sign() -> None:
    rng = np.random.default_rng(3)
    one, other = rng.random(40), rng.random(40)
    there, back = compare_paired(one, other), compare_paired(other, one)
    assert there.p_randomisation == back.p_randomisation
    assert (there.difference, there.low) == (-back.difference, -back.high)
    assert (there.wins, there.losses) == (back.losses, back.wins)


def test_a_constant_difference_is_certain_to_the_t_test() -> None:
    assert t_test(np.full((5, 1), 0.5))[0] == 0
    assert confidence_interval(np.full(5, 0.5)) == (0.5, 0.5)


@pytest.mark.parametrize("seed", range(6))
def test_holm_equals_the_closed_test_by_bonferroni(seed: int) -> None:
    """A hypothesis falls when every set of hypotheses it is in falls; tried here set by set."""
    p = list(np.random.default_rng(seed).random(5) ** 3)
    sets = [s for size in range(1, 6) for s in itertools.combinations(range(5), size)]
    closed = [max(min(1, len(s) * min(p[i] for i in s)) for s in sets if place in s) for place in range(5)]
    assert holm(p) == pytest.approx(closed)


def test_holm_counts_tests_that_are_not_given() -> None:
    assert holm([0.01, 0.04], tests=10) == pytest.approx([0.1, 0.36])
    assert holm([0.01, 0.04]) == pytest.approx([0.02, 0.04])
    assert holm([0.03, float("nan")])[0] == 0.06


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [([], [], "n of 1 or more"), ([1.0], [1.0, 2.0], r"values are \(1,\) and \(2,\)")],
)
def test_values_that_are_not_pairs_are_refused(before: list[float], after: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_paired(np.array(before), np.array(after))


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 to 1"):
        holm([0.5, 1.5])
    with pytest.raises(ValueError, match="2 p values of 1 tests"):
        holm([0.5, 0.5], tests=1)
    with pytest.raises(ValueError, match="flips is 0"):
        randomisation_test(np.ones((3, 1)), flips=0)
