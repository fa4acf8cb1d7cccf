"""Facets: how often each value of a metadata key occurs among the hits of a search."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from searchkit.indexer.keys import values_of

FACET_DEPTH = 100
"""Hits that facets are counted over. To vectors every document matches to some degree, so there must be a cut; hybrid
search looks at as many candidates anyway."""

FACET_VALUES = 20
"""Values listed for a key, the most frequent first."""

_LONGEST = 200


def count_facets(
    metadata: Iterable[Mapping[str, Any]], keys: Sequence[str] | None = None
) -> dict[str, list[tuple[Any, int]]]:
    """For each key, its values with the number of documents that have them, the most frequent first.

    Args:
        metadata: Of the documents.
        keys: As filters write them ("author.name"); None for all there are, apart from long texts.

    Returns:
        {key: [(value, documents)]}; of a list, each element counts. Keys without a value among them are left out.
    """
    counts: dict[str, Counter[tuple[bool, Any]]] = {} if keys is None else {key: Counter() for key in keys}
    for each in metadata:
        # True equals 1 to Python but not to a filter; a document counts once for each of its values.
        distinct = {
            (name, isinstance(value, bool), value)
            for name, value in values_of("", each)
            if value is not None and not (isinstance(value, str) and len(value) > _LONGEST)
        }
        for name, boolean, value in distinct:
            if keys is None or name in counts:
                counts.setdefault(name, Counter())[boolean, value] += 1
    return {
        name: [
            (value, count)
            for (_, value), count in sorted(counter.items(), key=lambda item: (-item[1], str(item[0][1])))
        ][:FACET_VALUES]
        for name, counter in sorted(counts.items())
        if counter
    }
