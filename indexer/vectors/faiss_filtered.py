"""Searches under a filter in indexes that look at some of their vectors only.

Cells and graphs are searched as far as a query's neighbours usually lie. Those that a filter lets through may all lie
farther off: articles of one source asked for what another source writes about. Here they are looked for until as many
of them have been seen as vectors usually are, or until looking farther finds no others.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

FARTHER = 4
"""Times the breadth of a second look in a graph."""


def in_cells(
    index: Any, queries: np.ndarray, k: int, mask: np.ndarray, selector: Any, probes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best of some vectors of an inverted file, in so many of the nearest cells as hold enough of them.

    Args:
        index: Inverted file, maybe behind transformations.
        queries: (n_queries, dim) float32.
        k: Positions a query.
        mask: (ntotal,) bool, True for those that may be found.
        selector: The same as FAISS takes it.
        probes: Cells that are visited without a filter; with one, as many vectors are compared as they usually hold.

    Returns:
        (scores, positions), float32 and int64, each (n_queries, k), best first; position -1 where there are fewer.
    """
    faiss = _faiss()
    ivf = faiss.extract_index_ivf(index)
    for number in range(index.chain.size() if hasattr(index, "chain") else 0):
        queries = faiss.downcast_VectorTransform(index.chain.at(number)).apply(queries)
    cell_of_each, centres = _cells(index, ivf)
    held = np.bincount(cell_of_each[mask], minlength=ivf.nlist)
    enough = min(int(held.sum()), max(10 * k, math.ceil(index.ntotal * probes / ivf.nlist)))
    queries = np.ascontiguousarray(queries)
    similar = queries @ centres.T
    ranked = min(ivf.nlist, 4 * probes)
    while True:
        nearest = _best(similar, ranked)
        holding = held[nearest]
        before = np.cumsum(holding, axis=1) - holding
        if ranked == ivf.nlist or (before[:, -1] >= enough).all():
            break
        ranked = min(ivf.nlist, 4 * ranked)
    # A cell is visited unless it holds none, or those before it hold enough.
    visited = (holding > 0) & (before < enough)
    width = int((visited * np.arange(1, ranked + 1)).max(initial=1))
    chosen = np.ascontiguousarray(np.where(visited, nearest, -1)[:, :width])
    distances = np.ascontiguousarray(np.take_along_axis(similar, nearest[:, :width], axis=1))
    scores, positions = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    params = faiss.SearchParametersIVF(nprobe=width, sel=selector)
    # As FAISS's C++ has it: the method of Python takes no parameters.
    given = [faiss.swig_ptr(array) for array in (chosen, distances, scores, positions)]
    ivf.search_preassigned_c(len(queries), faiss.swig_ptr(queries), k, *given, False, params)
    return scores, positions


def in_graph(
    index: Any, queries: np.ndarray, k: int, allowed: int, selector: Any, breadth: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best of some vectors of a graph; one by one for queries whose answers change when more of the graph is seen.

    Args and returns as `in_cells`; `allowed` is how many may be found, `breadth` the one without a filter.
    """
    faiss = _faiss()
    wide = math.ceil(breadth * index.ntotal / allowed)
    _, before = index.search(queries, k, params=faiss.SearchParametersHNSW(efSearch=wide, sel=selector))
    farther = faiss.SearchParametersHNSW(efSearch=FARTHER * wide, sel=selector)
    scores, positions = index.search(queries, k, params=farther)
    unsure = (np.sort(before, axis=1) != np.sort(positions, axis=1)).any(axis=1) | (positions < 0).any(axis=1)
    if unsure.any():
        storage = faiss.downcast_index(index.storage)
        params = faiss.SearchParameters(sel=selector)
        scores[unsure], positions[unsure] = storage.search(np.ascontiguousarray(queries[unsure]), k, params=params)
    return scores, positions


def _best(similar: np.ndarray, count: int) -> np.ndarray:
    """(n_queries, count), the columns of the greatest values, greatest first."""
    if count == similar.shape[1]:
        return np.argsort(-similar, axis=1)
    found = np.argpartition(-similar, count, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(similar, found, axis=1), axis=1)
    return np.take_along_axis(found, order, axis=1)


def _cells(index: Any, ivf: Any) -> tuple[np.ndarray, np.ndarray]:
    """The cell that each vector is in, (ntotal,) int32, and the cells' centres; found once and kept with the index."""
    found: tuple[np.ndarray, np.ndarray] | None = index.__dict__.get("cells")
    if found is None:
        faiss, cells = _faiss(), np.empty(index.ntotal, np.int32)
        for cell in range(ivf.nlist):
            if size := ivf.invlists.list_size(cell):
                cells[faiss.rev_swig_ptr(ivf.invlists.get_ids(cell), size)] = cell
        found = cells, ivf.quantizer.reconstruct_n(0, ivf.nlist)
        index.__dict__["cells"] = found  # FAISS allows no attributes of one's own
    return found


def _faiss() -> Any:
    import faiss

    return faiss
