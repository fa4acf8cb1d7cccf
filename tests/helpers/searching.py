"""What tests of searching share."""

from __future__ import annotations

from collections.abc import Iterable

from searchkit.ranking import SearchOptions
from searchkit.records import Hit

DENSE, LEXICAL = SearchOptions(mode="dense"), SearchOptions(mode="lexical")


def ids(hits: Iterable[Hit]) -> list[str]:
    """Of the hits, best first."""
    return [hit.id for hit in hits]
