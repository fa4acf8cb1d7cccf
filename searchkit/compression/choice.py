"""Choose one of the measured ways to store vectors, by limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from searchkit.compression.measure import Candidate
from searchkit.errors import InputError


@dataclass(frozen=True, slots=True)
class Limits:
    """What a recipe must satisfy; None sets no limit.

    Args:
        recall: Least k-NN recall@10.
        max_bytes: Most bytes per vector.
        max_memory: Most bytes that searches read, for the whole index.
        latency: Most seconds for a single query.
    """

    recall: float | None = 0.95
    max_bytes: float | None = None
    max_memory: float | None = None
    latency: float | None = None


@dataclass(frozen=True, slots=True)
class _Limit:
    """A limit on one field of a candidate.

    Args:
        field: Name of the field.
        phrase: Says what is required, with a place for the bound.
        shown: Shows a candidate's value.
        scale: From the field to what is shown.
        at_least: The bound is a lower one.
        bound: The limit.
    """

    field: str
    phrase: str
    shown: str
    scale: float = 1
    at_least: bool = False
    bound: float = 0

    @property
    def wanted(self) -> str:
        return self.phrase.format(self.bound * self.scale)

    def distance(self, candidate: Candidate) -> float:
        value = float(getattr(candidate, self.field))
        return self.bound - value if self.at_least else value - self.bound

    def kept(self, candidate: Candidate) -> bool:
        return self.distance(candidate) <= 0

    def nearest(self, candidates: Sequence[Candidate]) -> str:
        """The candidate that comes nearest, with its value."""
        best = min(candidates, key=self.distance)
        return f"the nearest is {best.name} with {self.shown.format(getattr(best, self.field) * self.scale)}"


def choose(candidates: Sequence[Candidate], limits: Limits) -> Candidate:
    """The candidate that needs the least memory, then disk space, of those within all limits.

    Raises:
        InputError: None is; the message names the limit that rules them out and what comes nearest to it.
    """
    if not candidates:
        raise InputError("no recipe was measured; nothing can be chosen")
    given = _given(limits)
    fits = [candidate for candidate in candidates if all(limit.kept(candidate) for limit in given)]
    if fits:
        return min(fits, key=lambda candidate: (candidate.memory, candidate.disk, candidate.latency))
    for limit in given:
        if not any(limit.kept(candidate) for candidate in candidates):
            raise InputError(f"no recipe has {limit.wanted}; {limit.nearest(candidates)}")
    details = []
    for limit in given:
        others = [one for one in candidates if all(other.kept(one) for other in given if other is not limit)]
        if others:
            details.append(f"with all but {limit.wanted} {limit.nearest(others)}")
    wanted = " and ".join(limit.wanted for limit in given)
    raise InputError(
        f"no recipe has {wanted} at once: {'; '.join(details) or 'each limit alone is kept by some recipe'}"
    )


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The Pareto front, smallest first: no other has as few bytes per vector and as much recall@10."""
    best: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda one: (one.bytes_per_vector, -one.recall_10, one.disk)):
        if not best or candidate.recall_10 > best[-1].recall_10:
            best.append(candidate)
    return best


_LIMITS = {
    "recall": _Limit("recall_10", "a recall@10 of {:g} or more", "{:.4f}", at_least=True),
    "max_bytes": _Limit("bytes_per_vector", "{:g} bytes a vector or fewer", "{:.0f} bytes"),
    "max_memory": _Limit("memory", "{:,.1f} MB of memory or less", "{:,.1f} MB", scale=1e-6),
    "latency": _Limit("latency", "{:g} ms a query or less", "{:.3g} ms", scale=1000),
}


def _given(limits: Limits) -> list[_Limit]:
    """The limits that are set."""
    bounds = {name: getattr(limits, name) for name in _LIMITS}
    return [replace(_LIMITS[name], bound=bound) for name, bound in bounds.items() if bound is not None]
