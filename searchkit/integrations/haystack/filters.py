"""Haystack's filters: compiled where they surely mean the same, and otherwise judged document by document by Haystack.

Haystack compares values as Python does, reads strings as dates, and refuses what cannot be ordered. Whether a compiled
filter means the same depends on what is stored under its keys, so the kinds of values under each key are noted.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from haystack import Document
from haystack.errors import FilterError
from haystack.utils.filters import document_matches_filter

from searchkit.errors import FilterError as WhereError
from searchkit.indexer.documents import Documents
from searchkit.indexer.filters import compile_filter, written_part
from searchkit.indexer.unicode import is_normalised, normalised_key
from searchkit.integrations.haystack.documents import KEPT, split
from searchkit.validation import described

Path = tuple[str, ...]
Where = dict[str, Any]

NOTHING: Where = {"_id": {"$in": []}}
_ORDER = {
    ">": ("$gt", operator.gt),
    ">=": ("$gte", operator.ge),
    "<": ("$lt", operator.lt),
    "<=": ("$lte", operator.le),
}
# Dates without a time zone, as both sides read them.
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?)?")


@dataclass
class Kinds:
    """What is stored under the metadata keys of an index: of each path the kinds of its values.

    Kinds are null, boolean, number, text, date (without a time zone), object, list, and odd: what one of both sides
    reads in a way of its own. More kinds than there are do no harm.

    Args:
        generation: The commit that this is true of.
        paths: Keys, from the outermost on, without those inside lists.
    """

    generation: int
    paths: dict[Path, set[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, documents: Documents, generation: int) -> Kinds:
        """Read the metadata of all documents."""
        kinds = cls(generation)
        for metadata in documents.metadata():
            kinds.add(json.loads(metadata))
        if documents.any_matches(compile_filter({"_title": {"$gt": ""}})):  # documents of other tools, see to_haystack
            kinds._note(("title",), "odd")
        return kinds

    def add(self, metadata: Mapping[str, Any]) -> None:
        """Note the kinds of a stored document's values."""
        meta, extras = split(metadata)
        for key in extras.get("meta", {}):
            self._note((normalised_key(str(key)),), "odd")
        self._walk((), meta)

    def certain(self, path: Path, *kinds: str) -> bool:
        """Whether all values under a path are of these kinds, and no part of it is read in two ways."""
        above = (self.paths.get(path[:count], set()) for count in range(1, len(path)))
        return self.paths.get(path, set()) <= {*kinds, "null"} and not any({"list", "odd"} & kinds for kinds in above)

    def _note(self, path: Path, kind: str) -> None:
        self.paths.setdefault(path, set()).add(kind)

    def _walk(self, path: Path, value: Any) -> None:
        if not isinstance(value, dict):
            self._note(path, _kind(value))
            return
        if path:
            self._note(path, "object")
        for key, inner in value.items():
            if (plain := normalised_key(key)) == key:
                self._walk((*path, key), inner)
            else:
                self._note((*path, plain), "odd")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number" if math.isfinite(value) else "odd"
    if isinstance(value, list):
        return "list"
    if not isinstance(value, str) or not is_normalised(value) or "\0" in value:
        return "odd"
    if _DATE.fullmatch(value):
        try:
            datetime.fromisoformat(value)
            return "date"
        except ValueError:
            return "odd"
    return "odd" if value[4:5] == value[7:8] == "-" and len(value) >= 10 else "text"  # maybe a date to Haystack


def matches(filters: object, document: Document) -> bool:
    """Whether Haystack's own filter matches.

    Raises:
        haystack.errors.FilterError: It is malformed, or compares what has no order.
    """
    if not isinstance(filters, Mapping):
        raise FilterError(
            f"filters is {described(filters)}; expected a dict with field, operator and value, or with operator and "
            "conditions"
        )
    try:
        return bool(document_matches_filter(dict(filters), document))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:  # 3 > {}, conditions that are no dicts
        raise FilterError(f"the filter {filters} cannot be applied to document {document.id!r}: {error}") from error


def compiled(filters: Mapping[str, Any], kinds: Kinds) -> Where | None:
    """A filter of searchkit that matches exactly the same documents; None where that is not certain."""
    try:
        where = _condition(filters, kinds)
        compile_filter(where)
    except (_UncertainError, WhereError):
        return None
    return where


class _UncertainError(Exception):
    """Haystack has to decide."""


def _condition(filters: Any, kinds: Kinds) -> Where:
    if not isinstance(filters, Mapping):
        raise _UncertainError
    name = filters.get("operator")
    if "field" in filters:
        if not isinstance(filters["field"], str) or not isinstance(name, str) or "value" not in filters:
            raise _UncertainError
        return _comparison(filters["field"], name, filters["value"], kinds)
    conditions = filters.get("conditions")
    if name not in ("AND", "OR", "NOT") or not isinstance(conditions, list):
        raise _UncertainError
    parts = [_condition(part, kinds) for part in conditions]
    if name == "OR":
        return {"$or": parts} if parts else NOTHING
    every = {"$and": parts} if parts else {}
    return {"$not": every} if name == "NOT" else every


def _comparison(name: str, comparison: str, value: Any, kinds: Kinds) -> Where:
    if name == "id":
        if comparison not in ("==", "!=", "in", "not in"):
            raise _UncertainError
        values = value if comparison.endswith("in") else [value]
        if not isinstance(values, list) or not all(isinstance(id, str) and _kind(id) == "text" for id in values):
            raise _UncertainError
        return {"_id": {"$in" if comparison in ("==", "in") else "$nin": values}}
    path = tuple(name.split("."))
    if path[0] == "meta" and len(path) > 1:
        path = path[1:]
    elif len(path) > 1 or name in Document.__dataclass_fields__:
        raise _UncertainError
    if path[0] == KEPT or any(normalised_key(part) != part for part in path):
        raise _UncertainError
    key = ".".join(written_part(part, first=number == 0) for number, part in enumerate(path))
    if comparison in _ORDER:
        return _ordered(path, key, comparison, value, kinds)
    if comparison not in ("==", "!=", "in", "not in"):
        raise _UncertainError
    values = value if comparison.endswith("in") else [value]
    if not isinstance(values, list) or not kinds.certain(path, "boolean", "number", "text", "date", "object"):
        raise _UncertainError
    operands = [operand for value in values for operand in _equal_to(value)]
    return {key: {"$in" if comparison in ("==", "in") else "$nin": operands}}


def _equal_to(value: Any) -> list[Any]:
    """The values that equal one in Python, where 1 is also True."""
    kind = _kind(value)
    if kind == "date":
        return [{"$date": value}]
    if kind not in ("null", "boolean", "number", "text"):
        raise _UncertainError
    if value in (0, 1) and kind != "text":
        return [bool(value), int(value)]
    return [value]


def _ordered(path: Path, key: str, comparison: str, value: Any, kinds: Kinds) -> Where:
    """A comparison by order; values that have none with the given one make Haystack raise, so they must not exist."""
    name, holds = _ORDER[comparison]
    kind = _kind(value)
    if kind == "null":
        return NOTHING
    if kind == "date" and kinds.certain(path, "date"):
        return {key: {name: {"$date": value}}}
    if kind not in ("boolean", "number") or not kinds.certain(path, "boolean", "number"):
        raise _UncertainError
    number = int(value) if kind == "boolean" else value
    truths = [truth for truth in (True, False) if holds(truth, number)]
    return {"$or": [{key: {name: number}}, {key: {"$in": truths}}]}
