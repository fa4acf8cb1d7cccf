"""Documents of a collection that are looked up: by their ids while others come, and their metadata for messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from searchkit.indexer.conditions import Condition
from searchkit.indexer.unicode import filterable
from searchkit.records import Document
from searchkit.remote.collection import Collection
from searchkit.remote.filters import to_expression

_AHEAD = 64
"""Documents whose checksums are read together."""
_READ_FOR_MESSAGES = 10_000
"""Rows whose metadata are read to say what keys there are."""


class SeenDocuments:
    """Documents of a collection by their ids, several looked up at a time."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._found: dict[str, dict[str, Any] | None] = {}

    def clear(self) -> None:
        """Forget all: a commit has changed them."""
        self._found = {}

    def ahead(self, documents: Iterable[Any]) -> Iterator[Any]:
        """The same documents, of which several are looked up before the first is passed on."""
        remaining = iter(documents)
        while batch := list(islice(remaining, _AHEAD)):
            self._look_up([one.id for one in batch if isinstance(one, Document) and _is_id(one.id)])
            yield from batch

    def checksum_of(self, document_id: str) -> str | None:
        """The checksum of the document with that id, or None when there is none."""
        row = self._row(document_id)
        return None if row is None else str(row["checksum"])

    def metadata_of(self, document_id: str) -> str:
        """The metadata of the document with that id, as JSON."""
        row = self._row(document_id)
        assert row is not None, "only asked of documents that there are"
        return json.dumps(row["metadata"], ensure_ascii=False)

    def _row(self, id: str) -> dict[str, Any] | None:
        if id not in self._found:
            self._look_up([id])
        return self._found[id]

    def _look_up(self, ids: Sequence[str]) -> None:
        rows = self._collection.rows_by_id(ids, ["id", "checksum", "metadata"]) if ids else []
        self._found = {**dict.fromkeys(ids), **{row["id"]: row for row in rows}}


class CollectionMetadata:
    """The metadata of a collection, for messages about keys."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    def any_matches(self, condition: Condition) -> bool:
        """Whether a document passes a filter."""
        assert condition.where is not None
        return self._collection.count(to_expression(condition.where)) > 0

    def counted_values(self, *, all_keys: bool) -> None:
        """None: a server keeps no such counts."""

    def metadata(self) -> Iterator[str]:
        """The metadata of the first documents, as filters read them."""
        for row in islice(self._collection.scan(["part", "metadata"], "part == 0"), _READ_FOR_MESSAGES):
            yield filterable(json.dumps(row["metadata"], ensure_ascii=False))


def _is_id(value: object) -> bool:
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)
