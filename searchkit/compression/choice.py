"""Choose one of the ways to store vectors that were measured, by limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from searchkit.compression.measure import Candidate
from searchkit.errors import InputError


@dataclass(frozen=True, slots=True)
class Limits:
    """What a recipe must keep to; None sets no limit.

    Args:
        recall: Least k-NN recall@10.
        max_bytes: Most bytes a vector.
        max_memory: Most bytes that searches go through, for the whole index.
        latency: Most seconds a query asked alone.
    """

    recall: float | None = 0.95
    max_bytes: float | None = None
    max_memory: float | None = None
    latency: float | None = None


@dataclass(frozen=True, slots=True)
class _Test:
    """One limit: how to say it, whether a candidate keeps to it, how far it is from it, what it has."""

    wanted: str
    kept: Callable[[Candidate], bool]
    distance: Callable[[Candidate], float]
    value: Callable[[Candidate], str]


def choose(candidates: Sequence[Candidate], limits: Limits) -> Candidate:
    """The smallest in memory, then on disk, of those that keep to all limits.

    Raises:
        ValueError: None does; the message says which limit is in the way, and what comes nearest to it.
    """
    if not candidates:
        raise InputError("no recipe was measured; nothing can be chosen")
    tests = _tests(limits)
    fits = [one for one in candidates if all(test.kept(one) for test in tests)]
    if fits:
        return min(fits, key=lambda one: (one.memory, one.disk, one.latency))
    for test in tests:
        if not any(test.kept(one) for one in candidates):
            nearest = min(candidates, key=test.distance)
            raise InputError(f"no recipe has {test.wanted}; the nearest is {nearest.name} with {test.value(nearest)}")
    tries = []
    for test in tests:
        others = [one for one in candidates if all(other.kept(one) for other in tests if other is not test)]
        if others:
            nearest = min(others, key=test.distance)
            tries.append(f"with all but {test.wanted} the nearest is {nearest.name} with {test.value(nearest)}")
    wanted = " and ".join(test.wanted for test in tests)
    detail = "; ".join(tries) or "each limit alone is kept by some recipe"
    raise InputError(f"no recipe has {wanted} at once: {detail}")


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The Pareto front, smallest first: no other has as few bytes a vector and as much recall@10."""
    best: list[Candidate] = []
    for one in sorted(candidates, key=lambda one: (one.bytes_per_vector, -one.recall_10, one.disk)):
        if not best or one.recall_10 > best[-1].recall_10:
            best.append(one)
    return best


def _tests(limits: Limits) -> list[_Test]:
    tests = []
    if (recall := limits.recall) is not None:
        tests.append(
            _Test(
                f"a recall@10 of {recall:g} or more",
                lambda one: one.recall_10 >= recall,
                lambda one: -one.recall_10,
                lambda one: f"{one.recall_10:.4f}",
            )
        )
    if (most := limits.max_bytes) is not None:
        tests.append(
            _Test(
                f"{most:g} bytes a vector or fewer",
                lambda one: one.bytes_per_vector <= most,
                lambda one: one.bytes_per_vector,
                lambda one: f"{one.bytes_per_vector:.0f} bytes",
            )
        )
    if (room := limits.max_memory) is not None:
        tests.append(
            _Test(
                f"{room / 1e6:,.1f} MB of memory or less",
                lambda one: one.memory <= room,
                lambda one: one.memory,
                lambda one: f"{one.memory / 1e6:,.1f} MB",
            )
        )
    if (slowest := limits.latency) is not None:
        tests.append(
            _Test(
                f"{1000 * slowest:g} ms a query or less",
                lambda one: one.latency <= slowest,
                lambda one: one.latency,
                lambda one: f"{1000 * one.latency:.3g} ms",
            )
        )
    return tests
