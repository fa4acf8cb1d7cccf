"""Exact search over the first dimensions of an index's vectors."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from searchkit.indexer.vectors import segments
from searchkit.indexer.vectors.segments import DiskSegment

_BLOCK = 8192  # passages whose vectors are in memory at a time


def search_exactly(
    parts: Sequence[DiskSegment], dead: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """The k best documents of every query, each by its best passage, over vectors cut to the queries' width.

    Args:
        parts: The segments that hold the vectors.
        dead: Deleted rows, ascending.
        queries: (n, dim) float32 unit rows; passages keep their first `dim` dimensions, normalised again.
        k: Documents per query.

    Returns:
        (documents (n, m) int64, scores (n, m) float32, seconds of searching without reading the vectors), best first;
        m is k, or the number of documents if that is smaller.
    """
    docs = np.empty((len(queries), 0), dtype=np.int64)
    scores = np.empty((len(queries), 0), dtype=np.float32)
    seconds = 0.0
    for owners, vectors in _blocks(parts, dead, queries.shape[1]):
        began = time.perf_counter()
        firsts = _firsts(owners)
        best = np.maximum.reduceat(queries @ vectors.T, firsts, axis=1)
        docs = np.concatenate([docs, np.broadcast_to(owners[firsts], best.shape)], axis=1)
        scores = np.concatenate([scores, best], axis=1)
        if scores.shape[1] > k:
            kept = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            docs, scores = np.take_along_axis(docs, kept, 1), np.take_along_axis(scores, kept, 1)
        seconds += time.perf_counter() - began
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(docs, order, 1), np.take_along_axis(scores, order, 1), seconds


def _firsts(owners: np.ndarray) -> np.ndarray:
    """Where each document's passages begin; they are contiguous, in the order they were added."""
    return np.concatenate([[0], np.flatnonzero(np.diff(owners)) + 1])


def _blocks(parts: Sequence[DiskSegment], dead: np.ndarray, dim: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Documents (n,) and unit vectors (n, dim) of all living passages, in blocks of whole documents."""
    for part in parts:
        living = np.flatnonzero(~np.isin(segments.all_rows([part]), dead))
        if not len(living):
            continue
        owners = np.asarray(part.docs)[living]
        firsts = _firsts(owners)
        edges = [0]
        while edges[-1] < len(living):  # a block ends where the first document past its size begins
            following = np.searchsorted(firsts, edges[-1] + _BLOCK)
            edges.append(int(firsts[following]) if following < len(firsts) else len(living))
        for start, stop in pairwise(edges):
            yield owners[start:stop], unit(part.vectors(living[start:stop])[:, :dim])


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays zero, and is similar to nothing."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32)
