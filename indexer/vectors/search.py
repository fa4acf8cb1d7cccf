"""Search over the segments of an index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from searchkit.indexer.allowed import AllowedRows, as_allowed
from searchkit.indexer.errors import InputError
from searchkit.indexer.vectors.arrays import CHUNK, best
from searchkit.indexer.vectors.backend import VectorIndex
from searchkit.indexer.vectors.recipes import RECIPES, Plan, Tuning

EXACT_BELOW = 0.1
"""Share of allowed rows below which all of them are scored: a graph loses recall there, and a scan is no quicker."""

FEW = 1000
"""Allowed rows of a segment up to which all of them are always scored."""


class Segment(Protocol):
    """Rows of the whole, in ascending order, with their index."""

    first_row: int
    count: int

    @property
    def plan(self) -> Plan:
        """How its vectors are stored."""

    @property
    def index(self) -> VectorIndex:
        """The index, its file checked."""

    @property
    def rows(self) -> np.ndarray | None:
        """(count,) int64, the row of every position; None when they follow each other from `first_row`."""

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """(n, dim) float32, as exact as they are kept."""


def search(
    segments: Sequence[Segment],
    queries: np.ndarray,
    k: int,
    *,
    tuning: Tuning | None = None,
    allowed: np.ndarray | AllowedRows | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows over all segments.

    Args:
        segments: What to search, all of one plan.
        queries: (n_queries, dim) float32, unit length where rows are.
        k: Rows per query.
        tuning: How hard to search.
        allowed: (rows,) bool by row, True for those that may be returned; better an AllowedRows if it will be used
            again. None allows all.

    Returns:
        (rows, scores): int64 and float32, each (n_queries, at most k), best first; equal scores by row. Where fewer
        rows are allowed, a query ends in row -1 with score -inf.
    """
    tuning, allowed = tuning or Tuning(), None if allowed is None else as_allowed(allowed)
    k = min(k, sum(segment.count for segment in segments))
    if k == 0 or len(queries) == 0:
        return np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    plan = segments[0].plan
    if queries.shape[1] != plan.dim:
        raise InputError(
            f"queries are {queries.shape[1]} wide but the index holds rows of {plan.dim}; "
            "embed them with the model that the index was built with"
        )
    exact = RECIPES[plan.recipe].exact
    if plan.recipe in ("rabitq", "binary"):
        # Where a filter leaves few rows these are scored by their vectors; so must all be, or scores would not compare.
        tuning = replace(tuning, rerank=max(1, tuning.rerank))
    depth = k + 1 if exact else candidates(k, sum(segment.count for segment in segments), tuning)
    rows, scores, unsure = _search_to(depth, segments, queries, k, tuning, allowed)
    # Of rows that tie at the cut an index returns any: look deeper until the tie ends.
    while exact and len(tied := np.flatnonzero(unsure)):
        depth *= 8
        rows[tied], scores[tied], unsure[tied] = _search_to(depth, segments, queries[tied], k, tuning, allowed)
    return rows, scores


def candidates(k: int, rows: int, tuning: Tuning) -> int:
    """How many rows compressed vectors yield for k: those that are scored again by exact vectors, or just k.

    The more rows there are, the more have codes that are as near: of ten million, a hundred candidates of ivf-pq:48
    held .61 of the ten nearest, and a thousand .98.

    Args:
        k: Rows wanted.
        rows: Rows of the whole index.
        tuning: How hard to search.
    """
    return max(k * tuning.rerank, round(math.sqrt(rows / 10))) if tuning.rerank else k


def _search_to(
    depth: int,
    segments: Sequence[Segment],
    queries: np.ndarray,
    k: int,
    tuning: Tuning,
    allowed: AllowedRows | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k best of `depth` rows per segment; and for each query whether an equal of the last may be left out."""
    all_rows, all_scores = [np.empty((len(queries), 0), np.int64)], [np.empty((len(queries), 0), np.float32)]
    lowest = np.full(len(queries), -np.inf, dtype=np.float32)
    for segment in segments:
        mine = None if allowed is None else _part(allowed, segment)
        count = segment.count if mine is None else mine.count
        if count == 0:
            continue
        if mine is not None and count <= max(FEW, EXACT_BELOW * segment.count):
            positions, scores = _exhaustive(segment, queries, mine.positions, min(depth, count))
        else:
            filtered = None if mine is None or count == segment.count else mine
            positions, scores = segment.index.search(queries, min(depth, count), tuning=tuning, allowed=filtered)
            if tuning.rerank:
                scores = _exact_scores(segment, queries, positions)
        if depth < count:
            lowest = np.maximum(lowest, scores[:, -1])
        missing = positions < 0
        rows = _rows(segment, positions)
        if missing.any():
            scores[missing] = -np.inf
            rows[missing] = -1
        all_rows.append(rows)
        all_scores.append(scores)
    best_rows, best_scores = best(np.concatenate(all_rows, axis=1), np.concatenate(all_scores, axis=1), k)
    if best_scores.shape[1] < k:  # a deeper search must return rows of the same width
        short = ((0, 0), (0, k - best_scores.shape[1]))
        best_rows = np.pad(best_rows, short, constant_values=-1)
        best_scores = np.pad(best_scores, short, constant_values=-np.inf)
    return best_rows, best_scores, (lowest >= best_scores[:, -1]) & np.isfinite(lowest)


def _part(allowed: AllowedRows, segment: Segment) -> AllowedRows:
    """The positions of a segment that may be returned."""
    return allowed.derived((segment.first_row, segment.count), lambda: AllowedRows(allowed.mask[_rows(segment)]))


def _rows(segment: Segment, positions: np.ndarray | None = None) -> Any:
    """The rows of some positions of a segment, or of all; arbitrary ones for negative positions."""
    if segment.rows is None:
        if positions is None:
            return slice(segment.first_row, segment.first_row + segment.count)
        return positions + segment.first_row
    return np.asarray(segment.rows) if positions is None else np.asarray(segment.rows)[positions]


def _exhaustive(segment: Segment, queries: np.ndarray, positions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of some positions, every one of them scored by its vector."""
    best_rows, best_scores = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
    for start in range(0, len(positions), CHUNK):
        part = positions[start : start + CHUNK]
        # A few at a time stay in the CPU's cache.
        products = [queries @ segment.vectors(part[n : n + FEW]).T for n in range(0, len(part), FEW)]
        scores = np.concatenate([best_scores, *products], axis=1)
        rows = np.concatenate([best_rows, np.broadcast_to(part, (len(queries), len(part)))], axis=1)
        if scores.shape[1] > 2 * k:
            nearest = np.argpartition(-scores, k, axis=1)[:, :k]
            scores, rows = np.take_along_axis(scores, nearest, 1), np.take_along_axis(rows, nearest, 1)
        best_rows, best_scores = best(rows, scores, k)
    return best_rows, best_scores


def _exact_scores(segment: Segment, queries: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(n_queries, n) float32, the scores of positions by their vectors; arbitrary ones for negative positions."""
    scores = np.empty(positions.shape, dtype=np.float32)
    for query, mine, row in zip(queries, np.maximum(positions, 0), scores, strict=True):
        np.dot(segment.vectors(mine), query, out=row)
    return scores
