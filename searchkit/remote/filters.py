"""Filters as expressions of Milvus: the language of :mod:`searchkit.indexer.filters`, over the facts of each row.

The answers are those of a folder. Two things are refused: comparing by order with a string of more than 249 characters,
and what a folder refuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from searchkit.errors import FilterError
from searchkit.indexer.filters import COLUMNS, ORDER, compile_filter, key_parts, operands_by_kind
from searchkit.indexer.unicode import normalised
from searchkit.remote import facts

ALL, NOTHING = "row >= 0", "row < 0"

_KINDS = {"number": facts.NUMBER, "text": facts.TEXT, "date": facts.DATE}
_ALONE = {"true": facts.TRUE, "false": facts.FALSE, "null": facts.NULL}


def to_expression(where: Mapping[str, Any]) -> str:
    """Compile a filter.

    Raises:
        FilterError: It cannot be understood, or Milvus cannot compare what it compares.
    """
    compile_filter(where)  # its mistakes are reported as for a folder
    return _all_of(where)


def _all_of(where: Mapping[str, Any]) -> str:
    return _joined("and", [_entry(key, value) for key, value in where.items()])


def _entry(key: str, value: Any) -> str:
    if key == "$not":
        return _not(_all_of(value))
    if key == "$and":
        return _joined("and", [_all_of(part) for part in value])
    if key in ("$or", "$nor"):
        either = _joined("or", [_all_of(part) for part in value])
        return _not(either) if key == "$nor" else either
    return _field(key, value)


def _field(key: str, value: Any) -> str:
    operators = value if isinstance(value, Mapping) and "$date" not in value else {"$eq": value}
    return _joined("and", [_operator(key, name, operand) for name, operand in operators.items()])


def _operator(key: str, operator: str, value: Any) -> str:
    column = COLUMNS.get(key)
    name = facts.key_name((facts.ID if column == "id" else facts.TITLE) if column else key_parts(key))
    exists = _has([name + facts.EXISTS])
    if operator == "$not":
        return _not(_field(key, value))
    if operator == "$exists":
        return exists if value else _not(exists)
    by_kind = operands_by_kind(f'{operator} of "{key}"', value if operator in ("$in", "$nin") else [value])
    if column != "id" and "text" in by_kind:
        by_kind["text"] = [normalised(text) for text in by_kind["text"]]
    if operator in ORDER:
        return _joined("or", [_ordered(key, name, operator, kind, by_kind[kind][0]) for kind in by_kind])
    words = [name + word for kind, word in _ALONE.items() if kind in by_kind]
    words += [facts.equal(name, word, item) for kind, word in _KINDS.items() for item in by_kind.get(kind, ())]
    condition = _has(words) if words else NOTHING
    if "null" in by_kind:
        condition = _joined("or", [condition, _not(exists)])
    return _not(condition) if operator in ("$ne", "$nin") else condition


def _ordered(key: str, name: str, operator: str, kind: str, operand: Any) -> str:
    if kind == "text" and len(operand) >= facts.ORDERED:
        raise FilterError(
            f'{operator} of "{key}" compares with a string of {len(operand)} characters; in Milvus at most '
            f"{facts.ORDERED - 1} can be compared by order; shorten it"
        )
    word = _KINDS[kind]
    # Each operator may match another element of a list: whether any is greater, the greatest tells.
    bound = facts.bound(name, word, least=operator in ("$lt", "$lte"))
    # The first part is never unknown, whatever an engine makes of a missing key, so that the whole can be negated.
    return f'({_has([name + word])} and ranges["{bound}"] {ORDER[operator]} "{facts.sortable(word, operand)}")'


def _has(words: Sequence[str]) -> str:
    if len(words) == 1:
        return f'array_contains(facts, "{words[0]}")'
    listed = ", ".join(f'"{word}"' for word in words)
    return f"array_contains_any(facts, [{listed}])"


def _joined(word: str, parts: Sequence[str]) -> str:
    if not parts:
        return ALL
    return parts[0] if len(parts) == 1 else f"({f' {word} '.join(parts)})"


def _not(condition: str) -> str:
    return f"not ({condition})"
