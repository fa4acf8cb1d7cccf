"""Limits of filters, hostile input, and what is said of faults."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from filtered import Found, holds

from searchkit.errors import FilterError
from searchkit.indexer.filters import LOGICAL, MAX_DEPTH, OPERATORS, compile_filter, parse_filter


@pytest.mark.parametrize(
    ("wrap", "times"),
    [
        (lambda inner: {"$or": [{"x": 1}, inner]}, MAX_DEPTH),
        (lambda inner: {"$and": [{"y": 1}, inner]}, MAX_DEPTH),
        (lambda inner: {"$not": inner}, 25),
        (lambda inner: {"$nor": [{"x": 1}, inner]}, 7),
        (lambda inner: {"y": 1, "$or": [{"x": 1}, inner]}, 5),
    ],
)
def test_filters_may_nest(found: Found, wrap: Callable[[Any], Any], times: int) -> None:
    where: dict[str, Any] = {"a.b": {"$in": ["x", 1, None]}}
    for _ in range(times):
        where = wrap(where)
    documents = [{"a": {"b": 1}, "y": 1}, {"a": {"b": 2}, "y": 1}, {"a": [{"b": "x"}], "y": 2}]
    assert found(where, *documents) == [holds(where, one) for one in documents]


def test_long_filters_and_long_keys_run(found: Found) -> None:
    ranges = [{"n": {"$gte": 10 * n, "$lt": 10 * n + 1}} for n in range(300)]
    assert found({"$or": ranges}, {"n": 2990}, {"n": 2991}, {"n": [3, 20]}) == [True, False, True]
    metadata: Any = 1
    for key in "hgfedcba":
        metadata = {key: [metadata, 2]}
    assert found({"a.b.c.d.e.f.g.h": {"$in": [0, 1]}}, metadata, {"a": 1}) == [True, False]


def test_filters_too_large_for_sqlite_are_refused() -> None:
    with pytest.raises(FilterError, match=r"too large for SQLite 3\..*nest less.*\$in"):
        compile_filter({"$or": [{"a": n} for n in range(2000)]})


HOSTILE = [
    "'; DROP TABLE documents; --",
    "' OR 1=1 --",
    '" OR ""="',
    "x') OR (1=1",
    "?",
    "{}",
    "{0}",
    "%s",
    "$[0]",
    "a]b[",
    "*",
    "$.a",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_users_write_is_never_in_the_sql(found: Found, text: str) -> None:
    key = text.replace('"', "'").replace("$", "\\$").replace(".", "\\.")
    stored = text.replace('"', "'")
    for operator in ("$eq", "$gte", "$in"):
        operand = [text, "b"] if operator == "$in" else text
        plain = ["a", "b"] if operator == "$in" else "a"
        assert compile_filter({key: {operator: operand}}).sql == compile_filter({"k": {operator: plain}}).sql
        assert found({key: {operator: operand}}, {stored: text}, {stored: ""}, {"a": text}) == [True, False, False]
    assert found({}, {}) == [True]


@pytest.mark.parametrize(
    ("where", "parts"),
    [
        ([], ["a filter is []", "expected an object"]),
        ({"$and": [1]}, ["a filter is 1"]),
        ({"$and": []}, ["$and has []", "one or more"]),
        ({"$or": {"a": 1}}, ['$or has {"a": 1}', "list"]),
        ({"$xor": [{"a": 1}]}, ['"$xor"', "did you mean $or", *LOGICAL, r'"\\$xor"']),
        ({"$gte": 5}, ['"$gte"', '{"year": {"$gte": ...}}']),
        ({"a": {"$gtr": 5}}, ['"$gtr" of "a"', "did you mean $gt", *OPERATORS]),
        ({"a": {"$or": [1]}}, ['"$or" of "a"', "outside keys"]),
        ({"a": {"b": 5}}, ['"b" of "a"', '"a.b"']),
        ({"a": {"$gt": 1, "b": 5}}, ['"b" of "a"']),
        ({"a": {"$contains": "x"}}, ['"$contains" of "a"', *OPERATORS]),
        ({"a": {}}, ['"a" has an empty object']),
        ({1: 2}, ["a metadata key is 1"]),
        ({"a": [1, 2]}, ['$eq of "a" has [1, 2]', "$in takes a list"]),
        ({"a": {"$in": "x"}}, ['$in of "a" has "x"', "list"]),
        ({"a": {"$in": [[1]]}}, ['$in of "a" has [1]']),
        ({"a": {"$eq": {"b": 1}}}, ['$eq of "a" has {"b": 1}']),
        ({"a": {"$exists": 1}}, ['$exists of "a" has 1', "true or false"]),
        ({"a": {"$not": 5}}, ['$not of "a" has 5', "$ne"]),
        ({"a": {"$gt": None}}, ['$gt of "a" has null', "a number, a string"]),
        ({"a": {"$lte": True}}, ['$lte of "a" has true']),
        ({"a": float("nan")}, ["NaN", "finite"]),
        ({"a": {"$lt": float("inf")}}, ["Infinity", "finite"]),
        ({"a": 2**63}, [str(2**63), "64 bits"]),
        ({"a": {"$in": [-(2**63) - 1]}}, ["64 bits"]),
        ({"a": "x\0y"}, ['$eq of "a"', "NUL"]),
        ({"a": "\ud800"}, ['$eq of "a"', "not UTF-8"]),
        ({"a": datetime(2024, 5, 1)}, ["2024", "$date"]),
        ({"a": {"$date": "May 2024"}}, ["May 2024", "ISO 8601"]),
        ({"a": {"$gt": {"$date": "2024-02-30"}}}, ['$gt of "a"', "2024-02-30", "ISO 8601"]),
        ({"a": {"$date": 20240501}}, ["20240501", "ISO 8601"]),
        ({"a": {"$date": "2024-05-01", "$gt": 1}}, ['"$date": "2024-05-01", "$gt": 1']),
        ({"_id": 5}, ['$eq of "_id" has 5', "string"]),
        ({"_title": {"$in": ["x", None]}}, ['$in of "_title" has ["x", null]', "string"]),
        ({"": 1}, ["the key"]),
        ({'a"b': 1}, [r'the key "a\"b"', "double quote"]),
        ({"a\\b": 1}, [r'the key "a\\b"', "backslash"]),
        ({"a\nb": 1}, ["the key", "control character"]),
        ({"\udc00": 1}, ["the key"]),
        ({"a..b": 1}, ['the key "a..b"', "none empty"]),
        ({".a": 1}, ['the key ".a"']),
        ({"a.b.c.d.e.f.g.h.i": 1}, ["has 9 parts", "1 to 8"]),
    ],
)
def test_errors_say_what_came_and_what_is_expected(where: Any, parts: list[str]) -> None:
    with pytest.raises(FilterError) as error:
        compile_filter(where)
    assert not [part for part in parts if part not in str(error.value)], str(error.value)


@pytest.mark.parametrize("wrap", [lambda inner: {"$not": inner}, lambda inner: {"$or": [inner]}])
def test_filters_nested_too_deeply_are_refused(wrap: Callable[[Any], Any]) -> None:
    where: dict[str, Any] = {"a": 1}
    for _ in range(5000):
        where = wrap(where)
    with pytest.raises(FilterError, match=f"more than {MAX_DEPTH} deep"):
        compile_filter(where)
    endless: dict[str, Any] = {}
    endless["$not"] = endless
    with pytest.raises(FilterError, match=f"more than {MAX_DEPTH} deep"):
        compile_filter({"a": endless})


def test_a_filter_is_parsed_from_a_command_line() -> None:
    assert parse_filter(' {"year": {"$gte": 2015}, "lang": "en"} ') == {"year": {"$gte": 2015}, "lang": "en"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("year=2015", "year=2015"),
        ("{'year': 2015}", "{'year': 2015}"),
        ('{"year": {"": 2015', "Expecting"),
        ("", "Expecting value"),
        ("[1]", "[1]"),
        ('"year"', "year"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1' + "0" * 5000 + "}", "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
    ],
)
def test_an_invalid_filter_is_shown_with_an_example(text: str, part: str) -> None:
    with pytest.raises(FilterError) as error:
        parse_filter(text)
    assert part in str(error.value)
    assert '{"year": {"$gte": 2015}' in str(error.value)
    assert len(str(error.value)) < 500


def test_a_key_named_twice_is_refused() -> None:
    with pytest.raises(FilterError, match='"a" twice'):
        parse_filter('{"a": 1, "a": 2}')
