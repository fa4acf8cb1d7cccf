"""Paired significance tests over queries: is one system better than another, or was it luck?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from searchkit.errors import InputError, MissingExtraError

FLIPS = 20_000
"""Random sign patterns that a randomisation test draws, if it cannot try them all."""

_EXACT = 14  # differing queries up to which all 2^n sign patterns are tried
_BLOCK = 1 << 22  # signs in memory at a time
_ROUNDING = 1e-9  # sums closer than this share of all absolute differences are equal
_TIE = 1e-9  # values of a metric closer than this are equal


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A system against another on the same queries.

    Args:
        difference: Mean difference; above zero, the second system is better.
        low: Lower end of the mean's 95 % confidence interval, by Student's t; NaN for a single query.
        high: Its upper end.
        p_randomisation: Two-sided p of the sign-flip test.
        p_t: Two-sided p of the paired t test; NaN for a single query.
        wins: Queries on which the second system is better.
        ties: Queries on which both are equal.
        losses: Queries on which the second is worse.
    """

    difference: float
    low: float
    high: float
    p_randomisation: float
    p_t: float
    wins: int
    ties: int
    losses: int


def compare_paired(before: np.ndarray, after: np.ndarray, *, flips: int = FLIPS, seed: int = 0) -> PairedTest:
    """Compare two systems by their values for the same queries.

    Args:
        before: (n,) one value per query.
        after: (n,) those of the other system, in the same order.
        flips: Sign patterns to draw.
        seed: Seed of the draw.

    Raises:
        InputError: The two differ in length, or there is no query.
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 1 or not len(before):
        raise InputError(f"values are {before.shape} and {after.shape}; expected two of (n,) with n of 1 or more")
    differences = after - before
    differences[np.abs(differences) <= _TIE] = 0.0
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

    If two systems were equally good, each query's difference would be as likely to have the other sign. p is the share
    of sign patterns that bring the mean at least as far from zero as observed: of all patterns if few queries differ,
    otherwise of `flips` random ones and the observed one, which keeps p valid and above zero.

    scipy's permutation_test gives the same p, but takes 13 s and 450 MB for the 6,980 queries of MS MARCO where this
    takes 0.4 s, and 0.9 s against 0.1 s for 300 queries.

    Args:
        differences: (n, comparisons) one difference per query; all comparisons get the same sign patterns.
        flips: Sign patterns to draw.
        seed: Seed of the draw.

    Returns:
        (comparisons,) float64.

    Raises:
        InputError: `flips` is less than 1.
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
    """Student's distribution, from scipy."""
    try:
        from scipy.stats import t
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"paired tests need {error.name}: pip install 'searchkit[eval]'", name=error.name
        ) from error
    return t


def t_test(differences: np.ndarray) -> np.ndarray:
    """Two-sided p values of the paired t test, for (n, comparisons) differences; (comparisons,) float64.

    Systems that are equal on every query give 1, a single query gives NaN.
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


def confidence_interval(differences: np.ndarray) -> tuple[float, float]:
    """Student's 95 % confidence interval of the mean of (n,) differences; NaN for a single one."""
    count = len(differences)
    if count < 2:
        return float("nan"), float("nan")
    half = float(_student().ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count))
    mean = float(differences.mean())
    return mean - half, mean + half


def holm(p_values: Sequence[float], *, tests: int | None = None) -> list[float]:
    """Correct p values for multiple tests by Holm's step-down method; their order is kept.

    Rejecting at .05 afterwards finds a difference that does not exist in at most 5 % of all such tables.

    Args:
        p_values: Uncorrected; NaN, of a test that is not defined, stays NaN and counts as a test.
        tests: Number of tests; None takes those given. Others are taken to have found nothing.

    Raises:
        InputError: A p value is outside 0 to 1, or there are more of them than `tests`.
    """
    if any(p < 0 or p > 1 for p in p_values):
        raise InputError(f"p values are {list(p_values)}; expected 0 to 1")
    tests = len(p_values) if tests is None else tests
    if tests < len(p_values):
        raise InputError(f"there are {len(p_values)} p values of {tests} tests; expected at most one each")
    order = sorted((p, position) for position, p in enumerate(p_values) if not np.isnan(p))
    adjusted = [float("nan")] * len(p_values)
    most = 0.0
    for rank, (p, position) in enumerate(order):
        most = max(most, min(1.0, (tests - rank) * p))
        adjusted[position] = most
    return adjusted
