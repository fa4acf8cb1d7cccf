"""Find how hard an index has to be searched to reach a recall."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from searchkit.compression.sample import InMemory, Sample
from searchkit.indexer.vectors.recipes import RECIPES, Plan, Tuning
from searchkit.indexer.vectors.search import search as search_segments

_EF = (16, 32, 64, 128, 256, 512)
_RERANK = (2, 5, 10, 20, 50)


def search(segment: InMemory, queries: np.ndarray, k: int, plan: Plan, tuning: Tuning) -> np.ndarray:
    """Rows of the k best passages, (queries, k) int64."""
    return search_segments([segment], queries, k, tuning=tuning)[0]


def tuned(plan: Plan, rerank: bool, segment: InMemory, sample: Sample, goal: float) -> Tuning:
    """The tuning that reads the fewest bytes of those that reach a recall@10 of `goal`, or nearly the best possible."""
    widths = _widths(plan)
    factors = [factor for factor in _RERANK if 10 * factor <= segment.count] or [1] if rerank else [0]
    if len(widths) == len(factors) == 1 and not rerank:
        return _tuning(plan, widths[0], 0)
    widest = {factor: _recall(plan, _tuning(plan, widths[-1], factor), segment, sample) for factor in factors}
    best = max(widest.values())
    enough = goal if best >= goal else 0.995 * best
    code = max(1, plan.code or plan.width or plan.dim)
    choices = []
    for factor, recall in widest.items():
        if recall < enough:
            continue
        width = widths[-1]
        for narrower in widths[:-1]:
            reached = _recall(plan, _tuning(plan, narrower, factor), segment, sample)
            if reached >= enough:
                width, recall = narrower, reached
                break
        bytes_read = width / widths[-1] * segment.count * code + 10 * factor * 2 * plan.dim
        choices.append((bytes_read, -recall, _tuning(plan, width, factor)))
    return min(choices, key=lambda choice: choice[:2])[2]


def _widths(plan: Plan) -> Sequence[int]:
    """Settings of the one parameter that a recipe searches harder by, from least to most."""
    if plan.lists:
        return [2**n for n in range(int(math.log2(plan.lists)) + 1) if 2**n < plan.lists] + [plan.lists]
    return _EF if RECIPES[plan.recipe].tuned else (1,)


def _tuning(plan: Plan, width: int, factor: int) -> Tuning:
    if plan.lists:
        return Tuning(probes=width, rerank=factor)
    return Tuning(ef=width, rerank=factor) if RECIPES[plan.recipe].tuned else Tuning(rerank=factor)


def _recall(plan: Plan, tuning: Tuning, segment: InMemory, sample: Sample) -> float:
    return sample.recall(search(segment, sample.queries, 10, plan, tuning), sample.tenth)
