"""Which metadata keys an index has, and which conditions of a filter can match none of its documents."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, Protocol

from searchkit.indexer.conditions import Condition
from searchkit.indexer.filters import COLUMNS, compile_filter, normalised_name, top_key, written_part
from searchkit.indexer.instants import DATE

_EXAMPLES = 3
_LISTED = 20
# For each kind of operand: what every stored value of that type matches, and what a message calls it.
_PROBES: dict[str, tuple[Mapping[str, Any], str]] = {
    "number": ({"$gte": -1.7976931348623157e308}, "numbers"),
    "text": ({"$gte": ""}, "text"),
    "date": ({"$gte": {"$date": "0001-01-01"}}, "dates"),
    "boolean": ({"$in": [True, False]}, "true or false"),
}


@dataclass
class MetadataKey:
    """What is stored under one key; a key inside an object is "outer.inner", as filters write it.

    Args:
        types: How many values there are of each type: integer, decimal, boolean, date, text or null.
        examples: The first different values, as JSON.
    """

    types: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def described(self) -> str:
        """The types, the most frequent first."""
        return " or ".join(type for type, _ in self.types.most_common()) or "other values"


class FilterFault(NamedTuple):
    """A condition that no value in the index can satisfy.

    Args:
        message: What is wrong, and what there is.
        always: The condition is negated, so that it holds for every document.
    """

    message: str
    always: bool


class Searched(Protocol):
    """Documents whose metadata can be searched and read."""

    def any_matches(self, condition: Condition) -> bool:
        """Whether a document passes a filter."""

    def metadata(self) -> Iterator[str]:
        """The metadata of the documents in order, as filters read them."""

    def counted_values(self, *, all_keys: bool) -> Iterable[tuple[str, int]] | None:
        """JSON objects with one metadata key and a value each, and how many documents have them.

        None where this takes as long as reading all metadata. Without `all_keys`, keys with very many values are left
        out.
        """


def metadata_keys(documents: Searched, limit: int | None = None) -> dict[str, MetadataKey]:
    """Every metadata key of the living documents in order of first appearance; reads the first `limit`, or all.

    Keys and values are normalised as filters compare them.
    """
    keys: dict[str, MetadataKey] = {}
    counted: Iterable[tuple[str, int]] | None = documents.counted_values(all_keys=True) if limit is None else None
    if counted is None:
        counted = ((metadata, 1) for metadata in islice(documents.metadata(), limit))
    for metadata, count in counted:
        for name, value in values_of("", json.loads(metadata)):
            key = keys.setdefault(name, MetadataKey())
            key.types[_type(value)] += count
            if len(key.examples) < _EXAMPLES and value is not None:
                example = json.dumps(value, ensure_ascii=False)
                example = example if len(example) <= 40 else f'{example[:36]}..."'
                if example not in key.examples:
                    key.examples.append(example)
    return keys


def filter_faults(where: Mapping[str, Any], documents: Searched) -> list[FilterFault]:
    """The conditions of a filter that can match no document: an unknown key, or a value of another type.

    Args:
        where: A filter that can be compiled.
        documents: Those of the index. Conditions that can match are recognised by the first document that shows it.
    """
    faults = []
    for key, operator, operand, negated in _conditions(where, negated=False):
        kinds = {_kind(each) for each in (operand if operator in ("$in", "$nin") else [operand])}
        if not kinds or "null" in kinds or key in COLUMNS:
            continue
        if not documents.any_matches(compile_filter({key: {"$exists": True}})):
            faults.append(FilterFault(_unknown(key, documents, negated), negated))
        elif operator != "$exists" and not any(
            documents.any_matches(compile_filter({key: _PROBES[kind][0]})) for kind in kinds
        ):
            faults.append(FilterFault(_wrong_type(key, kinds, documents, negated), negated))
    return faults


def absent_keys(keys: Iterable[str], documents: Searched) -> list[str]:
    """For each metadata key that no document has, a sentence that says so and names what there is."""
    absent = [key for key in keys if not documents.any_matches(compile_filter({top_key(key)[0]: {"$exists": True}}))]
    return ["; ".join(_absence(key, documents)) for key in absent]


def _conditions(where: Mapping[str, Any], *, negated: bool) -> Iterator[tuple[str, str, Any, bool]]:
    """(key, operator, operand, whether it holds where the operand does not match) of every condition."""
    for key, value in where.items():
        if key == "$not":
            yield from _conditions(value, negated=not negated)
        elif key.startswith("$"):
            for part in value:
                yield from _conditions(part, negated=negated != (key == "$nor"))
        else:
            operators = value if isinstance(value, Mapping) and "$date" not in value else {"$eq": value}
            for operator, operand in operators.items():
                if operator == "$not":
                    yield from _conditions({key: operand}, negated=not negated)
                else:
                    inverted = operator in ("$ne", "$nin") or (operator == "$exists" and not operand)
                    yield key, operator, operand, negated != inverted


def _kind(operand: object) -> str:
    if operand is None:
        return "null"
    if isinstance(operand, bool):
        return "boolean"
    return "number" if isinstance(operand, int | float) else "text" if isinstance(operand, str) else "date"


def _unknown(key: str, documents: Searched, negated: bool) -> str:
    absence, listed = _absence(key, documents)
    effect = "holds for every document" if negated else "matches nothing"
    return f"{absence}, so the filter's condition on it {effect}; {listed}"


def _absence(key: str, documents: Searched) -> tuple[str, str]:
    """That no document has a key, and which keys there are."""
    keys = metadata_keys(documents)
    if not keys:
        return f'no document has the key "{key}"', "no document has metadata"
    close = difflib.get_close_matches(normalised_name(key), keys, n=1)
    meant = f' (did you mean "{close[0]}"?)' if close else ""
    listed = ", ".join(f"{name} ({known.described})" for name, known in list(keys.items())[:_LISTED])
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return f'no document has the key "{key}"{meant}', f"keys are {listed}{more}"


def _wrong_type(key: str, kinds: Iterable[str], documents: Searched, negated: bool) -> str:
    known = metadata_keys(documents).get(normalised_name(key), MetadataKey())
    wanted = " or ".join(_PROBES[kind][1] for kind in sorted(kinds))
    advice = "compare it with a value of that type"
    if known.types.keys() & {"text"} and "number" in kinds:
        advice = "write the value in double quotes, or index a CSV again with --column NAME:TYPE"
    effect = "holds for every document" if negated else "matches nothing"
    return (
        f'the filter compares "{key}" with {wanted}, but it holds {known.described} '
        f"({', '.join(known.examples)}), so its condition {effect}; {advice}"
    )


def values_of(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(key, value) of everything in a piece of metadata, keys as filters write them; of lists, their elements."""
    if isinstance(value, dict):
        for key, inner in value.items():
            written = written_part(key, first=not name)
            yield from values_of(f"{name}.{written}" if name else written, inner)
    elif isinstance(value, list):
        for item in value:
            if not isinstance(item, list):  # filters do not enter lists in lists
                yield from values_of(name, item)
    else:
        yield name, value


def _type(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, int | float):
        return "integer" if isinstance(value, int) else "decimal"
    return "date" if DATE.fullmatch(value) else "text"
