"""Conditions on documents' metadata in MongoDB's form, compiled to SQL over one row of the table `documents`.

    {"year": {"$gte": 2015, "$lt": 2020}, "tags": {"$in": ["survey", "review"]}, "author.name": "Ada Lovelace"}

All conditions must hold, whether on several keys or several operators of one key; a plain value means $eq.

- **Types.** Numbers compare with numbers, strings with strings (by code point), true and false only with themselves;
  a value of another type never matches. Integers of up to 64 bits are exact; longer ones in metadata are compared as
  the nearest double. A stored string is compared up to its first NUL, where SQLite ends it.
- **Null and missing.** null matches null and a missing key; $exists tells them apart.
- **Negation.** $ne, $nin and $not are true exactly where the positive form is false, so also where the key is missing.
  Recent versions of Chroma agree; old ones required the key, as {"$exists": true, "$ne": "x"} does here.
- **Lists.** A stored list matches where one of its elements does, and each operator may match a different element:
  [1, 9] matches {"$gt": 5, "$lt": 3}. Lists inside lists are not searched. Chroma has $contains instead.
- **Keys.** "author.name" is the name inside author, or inside any of a list of authors. A backslash makes a dot, $ or _
  part of the key: "a\\.b", "\\$ref", "\\_id". "_id" and "_title" are the document's own.
- **Dates.** {"$date": "2024-05-01"} compares instants, to the last digit, with strings of the same form: YYYY-MM-DD,
  then T or a space, HH:MM, :SS, a fraction, and Z or +HH:MM. UTC is assumed, and a bare day means its midnight; a whole
  day is {"$gte": {"$date": "2024-05-01"}, "$lt": {"$date": "2024-05-02"}}.

- **Unicode.** Keys, strings and titles are compared in NFKC, without the characters that are for layout only, so that
  composed and decomposed accents, ligatures, full-width forms and soft hyphens make no difference. Ids are exact.

What users write becomes SQL parameters, never SQL. The table that a condition reads is normalised already, where
:mod:`searchkit.indexer.documents` finds that it has to be.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, NoReturn

from searchkit.indexer.conditions import Condition, filled, joined, negated
from searchkit.indexer.errors import FilterError, InputError
from searchkit.indexer.instants import INSTANT, parsed_instant
from searchkit.indexer.unicode import normalised, normalised_key

MAX_DEPTH = 50  # nesting of $and, $or, $nor and $not, for Python's stack; _check_size asks SQLite for its own limit
MAX_PARTS = 8  # parts of one key, between its dots

LOGICAL = ("$and", "$or", "$nor", "$not")
ORDER = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
OPERATORS = ("$eq", "$ne", *ORDER, "$in", "$nin", "$exists", "$not")
COLUMNS = {"_id": "id", "_title": "title"}
EXAMPLE = '{"year": {"$gte": 2015}, "lang": "en"}'


Test = Callable[[Condition], Condition]
"""Makes a condition on a value from the SQL of the value."""
_NEVER = Condition("0")


def compile_filter(where: Mapping[str, Any]) -> Condition:
    """Compile a filter; `SELECT doc FROM documents WHERE {condition.sql}` finds its documents.

    Args:
        where: As the module describes; an empty filter matches every document.

    Raises:
        FilterError: An operator, key or value is not supported, or there are too many of them.
    """
    condition = _all_of(where, 0)
    _check_size(condition)
    return Condition(condition.sql, condition.parameters, where)


def parse_filter(text: str) -> dict[str, Any]:
    """The JSON object of a filter from a command line, not compiled yet.

    Raises:
        FilterError: The text is not a JSON object, or names a key twice.
    """
    try:
        where = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except FilterError:
        raise
    except (ValueError, RecursionError) as error:  # also a number of 5,000 digits, brackets 10,000 deep
        raise FilterError(
            f"the filter is not JSON ({error}): {_cut(text)}; expected something like {EXAMPLE}, "
            "in single quotes in a shell"
        ) from None
    if not isinstance(where, dict):
        raise FilterError(f"the filter is {_shown(where)}; expected an object like {EXAMPLE}")
    return where


def _all_of(where: object, depth: int) -> Condition:
    if not isinstance(where, Mapping):
        raise FilterError(f"a filter is {_shown(where)}; expected an object like {EXAMPLE}")
    _check_depth(depth)
    return joined("AND", [_entry(key, value, depth) for key, value in where.items()])


def _entry(key: object, value: object, depth: int) -> Condition:
    if not isinstance(key, str):
        raise FilterError(f"a metadata key is {_shown(key)}; expected a string")
    if not key.startswith("$"):
        return _field(_Field(key), value, depth)
    if key == "$not":
        return negated(_all_of(value, depth + 1))
    if key not in LOGICAL:
        hint = f'{key} goes inside a key: {{"year": {{"{key}": ...}}}}' if key in OPERATORS else ""
        raise _unknown(key, LOGICAL, hint or f'a metadata key that begins with $ is written "\\\\{key}"')
    if not isinstance(value, list | tuple) or not value:
        raise FilterError(f"{key} has {_shown(value)}; expected a list of one or more filters, like [{EXAMPLE}]")
    condition = joined("AND" if key == "$and" else "OR", [_all_of(part, depth + 1) for part in value])
    return negated(condition) if key == "$nor" else condition


def _field(target: _Field, value: object, depth: int) -> Condition:
    _check_depth(depth)
    if not isinstance(value, Mapping) or "$date" in value:
        value = {"$eq": value}
    if not value:
        raise FilterError(f'"{target.key}" has an empty object; expected a value or operators like {{"$gte": 2015}}')
    return joined("AND", [_operator(target, name, operand, depth) for name, operand in value.items()])


def _operator(target: _Field, operator: object, value: object, depth: int) -> Condition:
    if not isinstance(operator, str) or operator not in OPERATORS:
        hint = f'a key inside a key is written "{target.key}.{operator}"'
        if str(operator).startswith("$"):
            hint = f'{operator} goes outside keys: {{"{operator}": [...]}}' if operator in LOGICAL else ""
        raise _unknown(str(operator), OPERATORS, hint, f' of "{target.key}"')
    what = f'{operator} of "{target.key}"'
    if operator == "$not":
        if not isinstance(value, Mapping) or "$date" in value:
            raise FilterError(f"{what} has {_shown(value)}; expected operators; to exclude a value use $ne")
        return negated(_field(target, value, depth + 1))
    if operator == "$exists":
        if not isinstance(value, bool):
            raise FilterError(f"{what} has {_shown(value)}; expected true or false")
        return target.exists() if value else negated(target.exists())
    if operator in ("$in", "$nin") and not isinstance(value, list | tuple):
        raise FilterError(f"{what} has {_shown(value)}; expected a list of values")
    values = value if operator in ("$in", "$nin") and isinstance(value, list | tuple) else [value]
    by_kind = operands_by_kind(what, values)
    if target.column != "id" and "text" in by_kind:
        by_kind["text"] = [normalised(text) for text in by_kind["text"]]
    if target.column and not by_kind.keys() <= {"text"}:
        raise FilterError(f"{what} has {_shown(value)}; ids and titles are strings; expected one, in double quotes")
    if operator in ORDER and not by_kind.keys() <= {"text", "number", "date"}:
        raise FilterError(f'{what} has {_shown(value)}; expected a number, a string or {{"$date": "2024-05-01"}}')
    condition = target.matches(_tests(by_kind, ORDER.get(operator, "=")))
    if "null" in by_kind:
        condition = joined("OR", [condition, negated(target.exists())])
    return negated(condition) if operator in ("$ne", "$nin") else condition


class _Field:
    """What a key names in a document: a column, or values in the metadata."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.column = COLUMNS.get(key)
        self._parts = [] if self.column else key_parts(key)

    def exists(self) -> Condition:
        if self.column:
            return Condition("1")
        present = "json_type({}, {}) IS NOT NULL"
        direct = filled(present, Condition("metadata"), _path(self._parts))
        return joined("OR", [direct, *self._through_lists(partial(filled, " WHERE " + present))])

    def matches(self, tests: dict[str, Test]) -> Condition:
        """Whether the value, or an element of a list, has one of the types and passes its test."""
        if not tests:
            return _NEVER
        if self.column:
            return tests["text"](Condition(self.column))
        # An object is one row of json_each for each of its keys, which do not match.
        item = ", json_each({}, {}) AS item WHERE json_type({}, {}) <> 'object' AND {}"
        element = _case(Condition("item.type"), Condition("item.value"), tests)
        in_lists = self._through_lists(lambda source, path: filled(item, *[source, path] * 2, element))
        source = [Condition("metadata"), _path(self._parts)]
        kind, value = filled("json_type({}, {})", *source), filled("json_extract({}, {})", *source)
        # Reading the type first restricts searching lists, which is slow, to the rows that have them.
        some = filled("EXISTS (SELECT 1 FROM json_each({}, {}) AS item WHERE {})", *source, element)
        return _case(kind, value, {**tests, "array": lambda _: some}, *in_lists)

    def _through_lists(self, holds: Callable[[Condition, Condition], Condition]) -> list[Condition]:
        """The condition that the key passes through lists of objects and `holds` for one of them and the rest of it."""
        *way, last = self._parts
        if not way:
            return []
        prefixes = [_path(way[: count + 1]) for count in range(len(way))]
        lists = [filled("json_type(metadata, {}) IS 'array'", prefix) for prefix in prefixes]
        source, steps = Condition("metadata"), []
        for number, part in enumerate(way):
            step = (
                "json_each(CASE json_type({}, {}) WHEN 'array' THEN json_extract({}, {}) "
                f"WHEN 'object' THEN json_array(json_extract({{}}, {{}})) END) AS step{number}"
            )
            steps.append(filled(step, *[source, _path([part])] * 3))
            source = Condition(f"CASE step{number}.type WHEN 'object' THEN step{number}.value END")
        walk = filled(", ".join(["{}"] * len(steps)), *steps)
        some = filled("EXISTS (SELECT 1 FROM {}{})", walk, holds(source, _path([last])))
        return [joined("AND", [joined("OR", lists), some])]


def key_parts(key: str) -> list[str]:
    """The parts of a filter's key between its dots, normalised as the keys of metadata are.

    Raises:
        FilterError: The key cannot be searched.
    """
    if not re.fullmatch(r'(?:[^\\"\x00-\x1f\ud800-\udfff]|\\[.$_])+', key):
        raise FilterError(
            f"the key {_shown(key)} cannot be searched; keys must not contain a double quote, a control character, "
            "or a backslash other than before a dot, $ or _; rename it in the corpus"
        )
    parts = [normalised_key(re.sub(r"\\(.)", r"\1", part)) for part in re.split(r"(?<!\\)\.", key)]
    if not all(parts) or len(parts) > MAX_PARTS:
        raise FilterError(
            f"the key {_shown(key)} has {len(parts)} parts between its dots; expected 1 to {MAX_PARTS}, none empty; "
            r'a dot that is part of the key is written "\\."'
        )
    return parts


def written_part(part: str, *, first: bool) -> str:
    """Part of a key as filters write it: a dot in it, and a $ or _ at its start that would mean something, escaped."""
    written = re.sub(r"[.]|^\$", r"\\\g<0>", part)
    return f"\\{written}" if first and written in COLUMNS else written


def first_part(key: str) -> str:
    """The first part of a key, as normalised metadata have it."""
    return key_parts(key)[0]


def normalised_name(key: str) -> str:
    """What a filter's key is called among the keys of normalised metadata."""
    return key if key in COLUMNS else top_key(key)[0]


def top_key(key: str) -> tuple[str, str, str]:
    """What a key of metadata is called among normalised keys, its first part alone, and SQLite's path to that part.

    Raises:
        FilterError: The key cannot be searched.
    """
    first, *rest = key_parts(key)
    top = written_part(first, first=True)
    return ".".join([top, *(written_part(part, first=False) for part in rest)]), top, _json_path([first])


def _path(parts: list[str]) -> Condition:
    return Condition("?", (_json_path(parts),))


def _json_path(parts: Iterable[str]) -> str:
    return "$" + "".join(f'."{part}"' for part in parts)


def _case(kind: Condition, value: Condition, tests: dict[str, Test], otherwise: Condition = _NEVER) -> Condition:
    branches = "".join(f" WHEN '{name}' THEN {{}}" for name in tests)
    return filled("CASE {}" + branches + " ELSE {} END", kind, *[test(value) for test in tests.values()], otherwise)


def _tests(by_kind: dict[str, list[Any]], operator: str) -> dict[str, Test]:
    """JSON types, as json_type() calls them, each with the test of its values."""
    tests: dict[str, Test] = {kind: lambda _: Condition("1") for kind in ("true", "false", "null") if kind in by_kind}
    if numbers := by_kind.get("number"):
        tests["integer"] = tests["real"] = partial(_compared, operator, numbers)
    texts, dates = by_kind.get("text"), by_kind.get("date")

    def text_test(value: Condition) -> Condition:
        either = [_compared(operator, texts, value)] if texts else []
        # A string that is no date has no instant: NULL.
        either += [filled("{} IS TRUE", _compared(operator, dates, filled(INSTANT, value)))] if dates else []
        return joined("OR", either)

    return {**tests, "text": text_test} if texts or dates else tests


def _compared(operator: str, operands: list[Any], value: Condition) -> Condition:
    # Since 3.43, SQLite reads the last bit of one decimal in twenty differently from Python; so it reads both sides.
    first = operands[0]
    if len(operands) == 1 and isinstance(first, float):
        return filled(f"{{}} {operator} json_extract(?, '$')", value, parameters=(json.dumps(first),))
    if len(operands) == 1:
        return filled(f"{{}} {operator} ?", value, parameters=(first,))
    listed = json.dumps(operands, ensure_ascii=False)
    return filled("{} IN (SELECT value FROM json_each(?))", value, parameters=(listed,))


def operands_by_kind(what: str, values: Sequence[object]) -> dict[str, list[Any]]:
    """Operands by kind: "text", "number", "date" (as `instant_of` gives it), "true", "false", "null".

    Args:
        what: What messages call the condition.
        values: The operands.

    Raises:
        FilterError: One of them cannot be compared.
    """
    by_kind: dict[str, list[Any]] = {}
    for value in values:
        if value is None or isinstance(value, bool):
            by_kind.setdefault(json.dumps(value), []).append(value)
        elif isinstance(value, str):
            if re.search("[\x00\ud800-\udfff]", value):
                raise FilterError(f"{what} has {_shown(value)}, with a NUL or what is not UTF-8; remove it")
            by_kind.setdefault("text", []).append(value)
        elif isinstance(value, int | float):
            if not (-(2**63) <= value < 2**63 if isinstance(value, int) else math.isfinite(value)):
                raise FilterError(f"{what} has {_shown(value)}; expected a finite number, integers within 64 bits")
            by_kind.setdefault("number", []).append(value)
        elif isinstance(value, Mapping) and value.keys() == {"$date"}:
            by_kind.setdefault("date", []).append(_instant(what, value["$date"]))
        else:
            raise FilterError(
                f"{what} has {_shown(value)}; expected a string, a number, true, false, null "
                'or {"$date": "2024-05-01"}; $in takes a list of them'
            )
    return by_kind


def _instant(what: str, text: object) -> str:
    try:
        if not isinstance(text, str):
            raise InputError("it is not of the form below")
        return parsed_instant(text)
    except ValueError as error:
        raise FilterError(
            f"{what} has the date {_shown(text)} ({error}); expected ISO 8601 in the years 0001 to 9999, "
            'like "2024-05-01", "2024-05-01T12:30" or "2024-05-01T12:30:05.25+02:00"'
        ) from None


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise FilterError(f"the filter nests $and, $or, $nor and $not more than {MAX_DEPTH} deep; write it flatter")


def _check_size(condition: Condition) -> None:
    """Let SQLite parse it: its limits on depth and length differ between versions and builds."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE TABLE documents (doc, id, title, metadata)")
        inner = f"SELECT doc FROM documents WHERE 1 AND (1 AND ({condition.sql}))"  # as deep as in the real query
        try:
            db.execute(f"EXPLAIN SELECT 1 FROM documents WHERE doc IN ({inner})", condition.parameters)
        except sqlite3.OperationalError as error:
            raise FilterError(
                f"the filter is too large for SQLite {sqlite3.sqlite_version} ({error}); "
                'nest less, and list many values of one key: {"key": {"$in": [...]}}'
            ) from None


def _unknown(name: str, known: Sequence[str], hint: str, where: str = "") -> FilterError:
    close = difflib.get_close_matches(name, known, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return FilterError(f'unknown operator "{name}"{where}{meant}; expected {", ".join(known)}{hint and "; "}{hint}')


def _shown(value: object) -> str:
    try:
        return _cut(json.dumps(value, ensure_ascii=False, default=repr))
    except (TypeError, ValueError, RecursionError):  # a key that is no string, a list inside itself
        return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise FilterError(f'the filter names "{key}" twice in one object; combine both conditions with $and')
        values[key] = value
    return values


def _no_constant(name: str) -> NoReturn:
    raise InputError(f"{name} is not a JSON number")
