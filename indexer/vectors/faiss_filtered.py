"""Filtered searches in indexes that look at some of their vectors only.

IVF lists and graphs are searched as far as a query's neighbours usually lie. Those that pass a filter may all lie
farther away: articles of one source searched for what another source writes about. Here the search goes on until as
many of them have been seen as vectors usually are, or until looking farther returns no others.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from searchkit.indexer.vectors.faiss_library import faiss_module

FARTHER = 4
"""How many times as broad the second search in a graph is."""


SAMPLE = 1 << 20
"""Vectors, about, by which it is told how many of each IVF list pass a filter."""


class Lists(NamedTuple):
    """The vectors of every IVF list, or where there are very many a sample of them.

    Args:
        positions: (sampled,) int64, of one list after the other.
        ends: (nlist,) int64, where each list ends among them.
        every: One of how many is sampled.
        centroids: (nlist, dim) float32.
    """

    positions: np.ndarray
    ends: np.ndarray
    every: int
    centroids: np.ndarray

    def counted(self, mask: np.ndarray) -> np.ndarray:
        """(nlist,) int64, how many of some vectors, a mask (ntotal,) over all, each list holds."""
        until = np.concatenate([[0], np.cumsum(mask[self.positions])])[self.ends]
        return np.asarray(np.diff(until, prepend=0) * self.every)


def sampled_lists(inverted: Any) -> Lists:
    """Which vectors an inverted file has in which list.

    A search under a filter that few vectors pass compares all of those instead, so that the share to be estimated is
    never small.
    """
    faiss, every = faiss_module(), max(1, inverted.ntotal // SAMPLE)
    lists = [np.empty(0, np.int64)] * inverted.nlist
    for number in range(inverted.nlist):
        if size := inverted.invlists.list_size(number):
            lists[number] = faiss.rev_swig_ptr(inverted.invlists.get_ids(number), size)[::every]
    ends = np.cumsum([len(positions) for positions in lists])
    return Lists(np.concatenate(lists), ends, every, inverted.quantizer.reconstruct_n(0, inverted.nlist))


def in_lists(
    index: Any, centroids: np.ndarray, held: np.ndarray, queries: np.ndarray, k: int, selector: Any, probes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best of some vectors of an inverted file, in as many of the nearest lists as hold enough of them.

    Args:
        index: Inverted file, possibly behind transformations.
        centroids: (nlist, dim) float32, of its lists.
        held: (nlist,) int64, about how many of the vectors that may be returned each list holds.
        queries: (n_queries, dim) float32.
        k: Positions per query.
        selector: The vectors that may be returned, as FAISS takes them.
        probes: Lists visited without a filter; with one, as many vectors are compared as they usually hold.

    Returns:
        (positions, scores), int64 and float32, each (n_queries, k), best first; position -1 where there are fewer.
    """
    faiss = faiss_module()
    inverted = faiss.extract_index_ivf(index)
    for number in range(index.chain.size() if hasattr(index, "chain") else 0):
        queries = faiss.downcast_VectorTransform(index.chain.at(number)).apply(queries)
    enough = min(int(held.sum()), max(10 * k, math.ceil(index.ntotal * probes / inverted.nlist)))
    queries = np.ascontiguousarray(queries)
    similar = queries @ centroids.T
    ranked = min(inverted.nlist, 4 * probes)
    while True:
        nearest = _best(similar, ranked)
        holding = held[nearest]
        before = np.cumsum(holding, axis=1) - holding
        if ranked == inverted.nlist or (before[:, -1] >= enough).all():
            break
        ranked = min(inverted.nlist, 4 * ranked)
    # A list is visited unless it holds none, or those before it hold enough.
    visited = (holding > 0) & (before < enough)
    width = int((visited * np.arange(1, ranked + 1)).max(initial=1))
    chosen = np.ascontiguousarray(np.where(visited, nearest, -1)[:, :width])
    distances = np.ascontiguousarray(np.take_along_axis(similar, nearest[:, :width], axis=1))
    scores, positions = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    params = faiss.SearchParametersIVF(nprobe=width, sel=selector)
    # The method as C++ has it: Python's takes no parameters.
    arrays = [faiss.swig_ptr(array) for array in (chosen, distances, scores, positions)]
    inverted.search_preassigned_c(len(queries), faiss.swig_ptr(queries), k, *arrays, False, params)
    return positions, scores


def in_graph(
    index: Any, queries: np.ndarray, k: int, allowed: int, selector: Any, breadth: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best of some vectors of a graph; exhaustive for queries whose results change when more of it is seen.

    Args and returns as `in_lists`; `allowed` is how many may be returned, `breadth` that of an unfiltered search.
    """
    faiss = faiss_module()
    wide = math.ceil(breadth * index.ntotal / allowed)
    _, before = index.search(queries, k, params=faiss.SearchParametersHNSW(efSearch=wide, sel=selector))
    farther = faiss.SearchParametersHNSW(efSearch=FARTHER * wide, sel=selector)
    scores, positions = index.search(queries, k, params=farther)
    unsure = (np.sort(before, axis=1) != np.sort(positions, axis=1)).any(axis=1) | (positions < 0).any(axis=1)
    if unsure.any():
        storage = faiss.downcast_index(index.storage)
        params = faiss.SearchParameters(sel=selector)
        scores[unsure], positions[unsure] = storage.search(np.ascontiguousarray(queries[unsure]), k, params=params)
    return positions, scores


def _best(similar: np.ndarray, count: int) -> np.ndarray:
    """(n_queries, count), the columns of the greatest values, greatest first."""
    if count == similar.shape[1]:
        return np.argsort(-similar, axis=1)
    columns = np.argpartition(-similar, count, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(similar, columns, axis=1), axis=1)
    return np.take_along_axis(columns, order, axis=1)
