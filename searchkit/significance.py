"""Whether two ways of searching differ by more than chance: Fisher's paired randomisation test."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_ROUNDS = 10_000
_BLOCK = 1_000_000  # signs drawn at once


def paired_test(before: Mapping[str, float], after: Mapping[str, float], *, rounds: int = _ROUNDS) -> float:
    """How likely a mean difference at least as large, in either direction, would be if the two did not differ.

    If they do not, each query's two values might as well be exchanged: the sign of every difference is drawn at
    random, again and again (Smucker, Allan and Carterette, 2007). The observed signs count as one of the rounds, so
    the result is never 0.

    Args:
        before: A metric by query.
        after: The same queries.
        rounds: Draws; the smallest value that can come out is 1 / (rounds + 1).

    Raises:
        ValueError: There are no queries, or not the same ones.
    """
    if not before or before.keys() != after.keys():
        raise ValueError(
            f"{len(before)} queries before and {len(after)} after, {len(before.keys() & after.keys())} of them in "
            "both; the test compares the same queries"
        )
    differences = np.array([after[query] - before[query] for query in before])
    differences = differences[differences != 0]
    # Sums of equal differences in another order differ in the last digits; such a tie counts as at least as large.
    limit = abs(differences.sum()) - 1e-9
    rng = np.random.default_rng(0)
    extreme, block = 0, max(1, _BLOCK // max(1, len(differences)))
    for start in range(0, rounds, block):
        signs = rng.choice((-1.0, 1.0), size=(min(block, rounds - start), len(differences)))
        extreme += int((np.abs(signs @ differences) >= limit).sum())
    return (extreme + 1) / (rounds + 1)
