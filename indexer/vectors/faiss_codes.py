"""The codes inside FAISS's indexes, copied from one to another as they are: coding them again would change some."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.indexer.vectors.faiss_library import faiss_module


def inverted_file(raw: Any) -> Any:
    """The inverted file inside an index of FAISS's, or None."""
    faiss = faiss_module()
    inner = faiss.try_extract_index_ivf(raw)
    return None if inner is None else faiss.downcast_index(inner)


def flat_codes(raw: Any) -> np.ndarray:
    """(ntotal, code size) uint8, the codes of an index that is nothing but codes, where they are."""
    size = raw.code_size
    return np.asarray(faiss_module().rev_swig_ptr(raw.codes.data(), raw.ntotal * size)).reshape(-1, size)


class Places:
    """Where each vector of an inverted file lies: its list, and its place in the list.

    Both are kept in a file without a name, since they grow with the index.

    Args:
        inverted: The inverted file.
        folder: Where the file is made; it is gone once this object is.
    """

    def __init__(self, inverted: Any, folder: Path) -> None:
        faiss, count = faiss_module(), max(1, inverted.ntotal)
        with tempfile.TemporaryFile(dir=folder) as file:
            self._table = np.memmap(file, dtype=np.int32, mode="w+", shape=(2, count))
        self._inverted = inverted
        for number in range(inverted.nlist):
            if size := inverted.invlists.list_size(number):
                positions = faiss.rev_swig_ptr(inverted.invlists.get_ids(number), size)
                self._table[0, positions] = number
                self._table[1, positions] = np.arange(size)

    def codes(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lists (n,) int32 and the codes (n, code size) uint8 of some vectors (n,)."""
        faiss, inverted = faiss_module(), self._inverted
        lists, places = np.asarray(self._table[0, positions]), np.asarray(self._table[1, positions])
        codes = np.empty((len(positions), inverted.code_size), np.uint8)
        for number, chosen in by_value(lists):
            size = inverted.invlists.list_size(number) * inverted.code_size
            held = faiss.rev_swig_ptr(inverted.invlists.get_codes(number), size).reshape(-1, inverted.code_size)
            codes[chosen] = held[places[chosen]]
        return lists, codes


def by_value(values: np.ndarray) -> Sequence[tuple[int, np.ndarray]]:
    """Each value of an array (n,) in ascending order, with the positions that have it, ascending."""
    order = np.argsort(values, kind="stable")
    cuts = 1 + np.flatnonzero(np.diff(values[order]))
    return [(int(values[group[0]]), group) for group in np.split(order, cuts) if len(group)]


def add_codes(inverted: Any, lists: np.ndarray, codes: np.ndarray) -> None:
    """Add codes (n, code size) to some lists (n,) of an inverted file, numbered from its end on."""
    faiss = faiss_module()
    for number, chosen in by_value(lists):
        ids = np.ascontiguousarray(inverted.ntotal + chosen, dtype=np.int64)
        mine = np.ascontiguousarray(codes[chosen])
        inverted.invlists.add_entries(number, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(mine))
    inverted.ntotal += len(lists)


def copy_lists(source: Any, kept: np.ndarray, target: Any) -> None:
    """Add some codes of an inverted file to another; FAISS's own methods leave the numbers of removed ones unused."""
    faiss = faiss_module()
    numbers = target.ntotal + np.cumsum(kept, dtype=np.int64) - 1
    lists = source.invlists
    for number in range(source.nlist):
        if not (size := lists.list_size(number)):
            continue
        positions = faiss.rev_swig_ptr(lists.get_ids(number), size)
        codes = faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size).reshape(size, -1)
        mask = kept[positions]
        added = np.ascontiguousarray(numbers[positions[mask]]), np.ascontiguousarray(codes[mask])
        if len(added[0]):
            target.invlists.add_entries(number, len(added[0]), *map(faiss.swig_ptr, added))
    target.ntotal += int(np.count_nonzero(kept))
