"""Is one system better than another, or was it luck? Paired tests over queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from searchkit.errors import InputError, MissingExtraError

FLIPS = 20_000
"""Random sign patterns that a randomisation test draws, when it cannot try them all."""

_EXACT = 14  # queries that differ; up to so many, all 2^n sign patterns are tried
_BLOCK = 1 << 22  # signs held in memory at a time
_ROUNDING = 1e-9  # sums nearer than this part of all differences are equal


@dataclass(frozen=True, slots=True)
class PairedTest:
    """One system against another on the same queries.

    Args:
        difference: Mean of the differences; above zero, the second system is better.
        low: Lower end of the 95 % confidence interval of the mean, by Student's t; NaN for a single query.
        high: Its upper end.
        p_randomisation: Two-sided p of the sign-flip test.
        p_t: Two-sided p of the paired t test; NaN for a single query.
        wins: Queries on which the second system is better.
        ties: On which both are equal.
        losses: On which the second is worse.
    """

    difference: float
    low: float
    high: float
    p_randomisation: float
    p_t: float
    wins: int
    ties: int
    losses: int


def compare_paired(
    before: np.ndarray, after: np.ndarray, *, flips: int = FLIPS, seed: int = 0, tie: float = 1e-9
) -> PairedTest:
    """Compare two systems by their values for the same queries.

    Args:
        before: (n,) one value a query.
        after: (n,) of the other system, in the same order.
        flips: Sign patterns to draw.
        seed: Of the draw.
        tie: Values nearer than this are equal.

    Raises:
        ValueError: The two differ in length, or there is no query.
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 1 or not len(before):
        raise InputError(f"values are {before.shape} and {after.shape}; expected two of (n,) with n of 1 or more")
    differences = after - before
    differences[np.abs(differences) <= tie] = 0.0
    low, high = confidence_interval(differences)
    return PairedTest(
        difference=float(differences.mean()),
        low=low,
        high=high,
        p_randomisation=float(randomisation_test(differences[:, None], flips=flips, seed=seed)[0]),
        p_t=float(t_test(differences[:, None])[0]),
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences < 0).sum()),
    )


def randomisation_test(differences: np.ndarray, *, flips: int = FLIPS, seed: int = 0) -> np.ndarray:
    """Two-sided p values of Fisher's sign-flip test of mean zero, for many comparisons at once.

    Were two systems alike, each query's difference would be as likely the other way round. p is the share of sign
    patterns that bring the mean as far from zero as it is: of all patterns where few queries differ, otherwise of
    `flips` random ones and the observed one, which keeps p valid and above zero.

    Args:
        differences: (n, comparisons) one difference a query; all comparisons get the same sign patterns.
        flips: Sign patterns to draw.
        seed: Of the draw.

    Returns:
        (comparisons,) float64.

    Raises:
        ValueError: `flips` is less than 1.
    """
    if flips < 1:
        raise InputError(f"flips is {flips}; expected 1 or more, such as {FLIPS}")
    differences = np.asarray(differences, dtype=np.float64)
    differing = differences[np.any(differences != 0, axis=1)]
    count = len(differing)
    if count == 0:
        return np.ones(differences.shape[1])
    slack = _ROUNDING * np.abs(differing).sum(axis=0)
    observed = np.abs(differing.sum(axis=0)) - slack
    extreme = np.zeros(differences.shape[1], dtype=np.int64)
    if count <= _EXACT:
        patterns = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        extreme += (np.abs((2.0 * patterns - 1) @ differing) >= observed).sum(axis=0)
        return np.asarray(extreme / 2**count)
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(count, differences.shape[1]))
    for start in range(0, flips, block):
        signs = 2.0 * rng.integers(0, 2, size=(min(block, flips - start), count), dtype=np.int8) - 1
        extreme += (np.abs(signs @ differing) >= observed).sum(axis=0)
    return np.asarray((1 + extreme) / (1 + flips))


def _student() -> Any:
    """Student's distribution."""
    try:
        from scipy.stats import t
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"paired tests need {error.name}: pip install 'searchkit[eval]'", name=error.name
        ) from error
    return t


def t_test(differences: np.ndarray) -> np.ndarray:
    """Two-sided p values of the paired t test, for (n, comparisons) differences; (comparisons,) float64.

    Systems that agree on every query give 1. A single query gives NaN.
    """
    t = _student()
    differences = np.asarray(differences, dtype=np.float64)
    count = len(differences)
    if count < 2:
        return np.full(differences.shape[1], np.nan)
    mean, error = differences.mean(axis=0), differences.std(axis=0, ddof=1) / np.sqrt(count)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * t.sf(np.abs(mean / error), count - 1)
    return np.asarray(np.where(error == 0, np.where(mean == 0, 1.0, 0.0), p))


def confidence_interval(differences: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of (n,) differences; NaN for a single one."""
    count = len(differences)
    if count < 2:
        return float("nan"), float("nan")
    half = float(_student().ppf((1 + level) / 2, count - 1) * differences.std(ddof=1) / np.sqrt(count))
    mean = float(differences.mean())
    return mean - half, mean + half


def holm(p_values: Sequence[float], *, tests: int | None = None) -> list[float]:
    """Adjust p values for having made several tests, by Holm's steps; the order stays.

    Rejecting what is below .05 afterwards finds a difference where there is none in at most 5 % of all such tables.

    Args:
        p_values: As the tests gave them; NaN, of a test that could not be made, stays NaN and counts as a test.
        tests: How many there were; None takes those that are here, more are taken to have found nothing.

    Raises:
        ValueError: A p value is outside 0 to 1, or there are more of them than `tests`.
    """
    if any(p < 0 or p > 1 for p in p_values):
        raise InputError(f"p values are {list(p_values)}; expected 0 to 1")
    tests = len(p_values) if tests is None else tests
    if tests < len(p_values):
        raise InputError(f"there are {len(p_values)} p values of {tests} tests; expected at most one each")
    order = sorted((p, place) for place, p in enumerate(p_values) if not np.isnan(p))
    adjusted = [float("nan")] * len(p_values)
    most = 0.0
    for rank, (p, place) in enumerate(order):
        most = max(most, min(1.0, (tests - rank) * p))
        adjusted[place] = most
    return adjusted
