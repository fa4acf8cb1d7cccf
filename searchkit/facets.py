"""Facets: how often each value of a metadata key occurs among the documents that a search matches."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from searchkit.indexer.filters import normalised_name
from searchkit.indexer.keys import metadata_keys, values_of
from searchkit.indexer.store import Snapshot, Store
from searchkit.indexer.unicode import normalised_metadata

FACET_VALUES = 20
"""Values listed for a key, the most frequent first."""

_LONGEST = 200
"""Characters of a value that is counted without having been asked for."""
_COLUMNS = 64
"""Keys whose values are kept in memory."""


class Facets(NamedTuple):
    """Counts over the documents that a search matches.

    Args:
        documents: How many documents those are.
        counts: For each key, its values with the number of those documents that have them, the most frequent first, at
            most `FACET_VALUES`. Keys without a value among them are left out. A document counts once for each value of
            a list. Keys and values are normalised, as filters compare them.
    """

    documents: int
    counts: dict[str, list[tuple[Any, int]]]


def count_values(documents: Iterable[Any], keys: Sequence[str] | None) -> Facets:
    """Count the values of metadata keys, document by document.

    Args:
        documents: The metadata of each, as it was added.
        keys: As filters write them; None for all there are, apart from long texts.
    """
    names = None if keys is None else {normalised_name(key): key for key in keys}
    counts: dict[str, Counter[tuple[bool, Any]]] = {}
    total = 0
    for metadata in documents:
        total += 1
        found: dict[str, set[tuple[bool, Any]]] = {}
        for name, value in values_of("", normalised_metadata(metadata)):
            if value is not None and (names is None or name in names):
                found.setdefault(name if names is None else names[name], set()).add((isinstance(value, bool), value))
        for name, values in found.items():
            counts.setdefault(name, Counter()).update(values)
    listed = {
        name: _most_frequent([(value, number) for (_, value), number in counts[name].items()], brief=keys is None)
        for name in (sorted(counts) if keys is None else keys)
        if name in counts
    }
    return Facets(total, {name: values for name, values in listed.items() if values})


def _most_frequent(counted: Iterable[tuple[Any, int]], *, brief: bool) -> list[tuple[Any, int]]:
    shown = (item for item in counted if not (brief and isinstance(item[0], str) and len(item[0]) > _LONGEST))
    return heapq.nsmallest(FACET_VALUES, shown, key=lambda item: (-item[1], str(item[0])))


class _Column(NamedTuple):
    """One key: its values, and which document has which of them, as two arrays of equal length."""

    values: list[Any]
    docs: np.ndarray
    codes: np.ndarray


class FacetColumns:
    """The values of metadata keys in one commit, each key read when it is first asked for.

    Args:
        store: The index folder.
        snapshot: The commit.
    """

    def __init__(self, store: Store, snapshot: Snapshot) -> None:
        self._store, self._snapshot = store, snapshot
        self._columns: dict[str, _Column] = {}
        self._keys: list[str] | None = None

    def count(self, matching: np.ndarray, keys: Sequence[str] | None) -> Facets:
        """Count values over some documents.

        Args:
            matching: (documents,) bool by position.
            keys: As filters write them ("author.name"); None for all there are, apart from long texts and from keys
                that have a different value in nearly every one of very many documents.
        """
        wanted = self._all_keys() if keys is None else keys
        counts = {key: self._top(self._column(key), matching, brief=keys is None) for key in wanted}
        return Facets(int(np.count_nonzero(matching)), {key: values for key, values in counts.items() if values})

    def _all_keys(self) -> list[str]:
        if self._keys is None:
            counted = self._store.documents.counted_values(all_keys=False)
            if counted is None:
                self._keys = sorted(metadata_keys(self._store.documents))
            else:
                self._keys = sorted({name for text, _ in counted for name, _ in values_of("", json.loads(text))})
        return self._keys

    def _column(self, key: str) -> _Column:
        column = self._columns.get(key)
        if column is None:
            column = self._read(key)
            for oldest in list(self._columns)[: 1 - _COLUMNS]:
                self._columns.pop(oldest, None)  # another thread may have done so
            self._columns[key] = column
        return column

    def _read(self, key: str) -> _Column:
        known: dict[tuple[bool, Any], int] = {}  # True equals 1 to Python but not to a filter
        found = self._store.values(key, self._snapshot)
        codes: list[int] = []
        lengths: list[int] = []
        for outer in found.values:
            values = [value for name, value in values_of(found.top, outer) if name == found.name]
            distinct = dict.fromkeys((isinstance(value, bool), value) for value in values if value is not None)
            codes += [known.setdefault(value, len(known)) for value in distinct]
            lengths.append(len(distinct))
        # A document has the codes of its value, which follow each other.
        sizes = np.array(lengths, np.int64)
        firsts, counts = np.cumsum(sizes) - sizes, sizes[found.numbers]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        every = np.array(codes, np.int64)[np.repeat(firsts[found.numbers], counts) + within]
        return _Column([value for _, value in known], np.repeat(found.docs, counts), every)

    def _top(self, column: _Column, matching: np.ndarray, *, brief: bool) -> list[tuple[Any, int]]:
        counts = np.bincount(column.codes[matching[column.docs]], minlength=len(column.values))
        return _most_frequent(
            ((column.values[code], int(counts[code])) for code in np.flatnonzero(counts)), brief=brief
        )
