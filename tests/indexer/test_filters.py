from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filter_strategies import DATES, MOMENTS, NO_DATES, documents, filters, operators, stored
from hypothesis import given, settings
from hypothesis import strategies as st

from searchkit.errors import FilterError
from searchkit.indexer.columns.build import merged, part_of
from searchkit.indexer.columns.filtering import passing
from searchkit.indexer.documents import NewDocument
from searchkit.indexer.filters import LOGICAL, MAX_DEPTH, OPERATORS, compile_filter, parse_filter
from searchkit.indexer.store import Store
from searchkit.indexer.unicode import normalised_metadata

Found = Callable[..., list[bool]]
DAY = {"$date": "2024-05-01"}


def select(db: sqlite3.Connection, where: dict[str, Any], *metadata: dict[str, Any]) -> list[bool]:
    """Of each metadata, stored with the ids "0", "1", ... and titles "t0", "t1", ..., whether the filter is true."""
    db.execute("DELETE FROM documents")
    rows = [(n, str(n), f"t{n}", json.dumps(one, ensure_ascii=False)) for n, one in enumerate(metadata)]
    db.executemany("INSERT INTO documents VALUES (?, ?, ?, ?)", rows)
    condition = compile_filter(where)
    found = [
        value for (value,) in db.execute(f"SELECT {condition.sql} FROM documents ORDER BY doc", condition.parameters)
    ]
    assert set(found) <= {0, 1}  # NULL would make NOT wrong
    return [bool(value) for value in found]


def connect() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("CREATE TABLE documents (doc INTEGER PRIMARY KEY, id TEXT, title TEXT, metadata TEXT)")
    return db


@pytest.fixture
def found() -> Iterator[Found]:
    db = connect()
    yield lambda where, *metadata: select(db, where, *metadata)
    db.close()


# An evaluator in plain Python, of the semantics the module's docstring gives


def holds(where: dict[str, Any], document: dict[str, Any]) -> bool:
    return all(entry_holds(key, value, document) for key, value in where.items())


def entry_holds(key: str, value: Any, document: dict[str, Any]) -> bool:
    if key == "$not":
        return not holds(value, document)
    if key in ("$and", "$or", "$nor"):
        results = [holds(part, document) for part in value]
        return {"$and": all(results), "$or": any(results), "$nor": not any(results)}[key]
    if not isinstance(value, dict) or "$date" in value:
        value = {"$eq": value}
    values = reached(document, [re.sub(r"\\(.)", r"\1", part) for part in re.findall(r"(?:\\.|[^.\\])+", key)])
    return all(operator_holds(operator, operand, values) for operator, operand in value.items())


def reached(document: dict[str, Any], parts: list[str]) -> list[Any]:
    values: list[Any] = [document]
    for part in parts:
        inner = [item for value in values for item in (value if isinstance(value, list) else [value])]
        values = [item[part] for item in inner if isinstance(item, dict) and part in item]
    return values


def operator_holds(operator: str, operand: Any, values: list[Any]) -> bool:
    if operator == "$exists":
        return operand == bool(values)
    if operator == "$not":
        return not all(operator_holds(*item, values) for item in operand.items())
    if operator in ("$ne", "$nin"):
        return not operator_holds({"$ne": "$eq", "$nin": "$in"}[operator], operand, values)
    if operator == "$in":
        return any(operator_holds("$eq", one, values) for one in operand)
    if operand is None and not values:
        return True
    elements = [element for value in values for element in (value if isinstance(value, list) else [value])]
    return any(compares(operator, element, operand) for element in elements)


def compares(operator: str, value: Any, operand: Any) -> bool:
    if isinstance(operand, dict):
        value, operand = instant(value), instant(operand["$date"])
        if value is None:
            return False
    elif kind(value) != kind(operand):
        return False
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        value = float(value)
    return {
        "$eq": lambda: value == operand,
        "$gt": lambda: value > operand,
        "$gte": lambda: value >= operand,
        "$lt": lambda: value < operand,
        "$lte": lambda: value <= operand,
    }[operator]()


def kind(value: Any) -> type:
    return float if type(value) is int else type(value)


def instant(text: Any) -> Fraction | None:
    """Seconds since 1970, None for what is no date."""
    form = r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(?:(?<=:\d\d:\d\d)(\.\d+))?(Z|[+-]\d\d:\d\d)?)?"
    if not isinstance(text, str) or not (match := re.fullmatch(form, text, re.ASCII)):
        return None
    day, clock, fraction, zone = match.groups()
    try:
        seconds = Fraction(
            int((datetime.fromisoformat(f"{day} {clock or '00:00'}") - datetime(1970, 1, 1)).total_seconds())
        )
    except ValueError:  # 31 February
        return None
    if zone and zone != "Z":
        seconds -= int(zone[0] + "1") * (int(zone[1:3]) * 3600 + int(zone[4:]) * 60)
    return seconds + Fraction(fraction or 0)


DB = connect()

checked = settings(deadline=None, derandomize=True, database=None)


@settings(checked, max_examples=300)
@given(filters, documents)
def test_filters_are_true_where_the_evaluator_says_so(where: dict[str, Any], metadata: list[dict[str, Any]]) -> None:
    assert select(DB, where, *metadata) == [holds(where, one) for one in metadata]


@settings(checked, max_examples=300)
@given(filters, documents, st.integers(0, 5))
def test_columns_decide_as_the_evaluator_does(
    where: dict[str, Any], metadata: list[dict[str, Any]], split: int
) -> None:
    metadata = [normalised_metadata(one) for one in metadata]
    rows = [(n, n, 1, str(n), "", json.dumps(one, ensure_ascii=False)) for n, one in enumerate(metadata)]
    split = min(split, len(rows))
    parts = [part_of(rows[:split], 0, split, 0), part_of(rows[split:], split, len(rows), 0)]
    expected = [holds(where, one) for one in metadata]
    assert passing(where, parts).tolist() == passing(where, [merged(parts)]).tolist() == expected


@settings(checked, max_examples=200)
@given(operators, st.lists(stored, min_size=1, max_size=8))
def test_operators_are_true_where_the_evaluator_says_so(where: dict[str, Any], values: list[Any]) -> None:
    metadata = [{"a": value} for value in values]
    assert select(DB, {"a": where}, *metadata) == [holds({"a": where}, one) for one in metadata]


@settings(checked, max_examples=25)
@given(st.sampled_from(["$eq", "$gt", "$gte", "$lt", "$lte"]), st.sampled_from(MOMENTS))
def test_every_form_of_date_is_compared_as_an_instant(operator: str, text: str) -> None:
    where = {"a": {operator: {"$date": text}}}
    metadata = [{"a": value} for value in (*DATES, *NO_DATES, *MOMENTS[:3])]
    assert select(DB, where, *metadata) == [holds(where, one) for one in metadata]


# The rules, one by one


def test_a_plain_value_means_equal(found: Found) -> None:
    documents = [{"year": 2015}, {"year": 2015.0}, {"year": 2016}, {"year": "2015"}, {}]
    assert found({"year": 2015}, *documents) == found({"year": {"$eq": 2015}}, *documents)
    assert found({"year": 2015}, *documents) == [True, True, False, False, False]


def test_an_empty_filter_is_true_of_everything(found: Found) -> None:
    assert found({}, {}, {"a": 1}) == [True, True]


def test_all_keys_and_all_operators_must_hold(found: Found) -> None:
    where = {"year": {"$gte": 2015, "$lt": 2020}, "lang": "en"}
    documents = [
        {"year": year, "lang": lang} for year, lang in [(2014, "en"), (2015, "en"), (2015, "de"), (2020, "en")]
    ]
    assert found(where, *documents) == [False, True, False, False]


def test_booleans_are_not_numbers(found: Found) -> None:
    documents = [{"a": True}, {"a": 1}, {"a": False}, {"a": 0}]
    assert found({"a": True}, *documents) == [True, False, False, False]
    assert found({"a": 0}, *documents) == [False, False, False, True]
    assert found({"a": {"$lt": 5}}, *documents) == [False, True, False, True]


def test_strings_compare_by_code_point_and_never_with_numbers(found: Found) -> None:
    documents = [{"a": "Z"}, {"a": "a"}, {"a": "\uffff"}, {"a": "\U0001f600"}, {"a": 5}]
    assert found({"a": {"$gt": "Z"}}, *documents) == [False, True, True, True, False]
    assert found({"a": {"$gt": "\uffff"}}, *documents) == [False, False, False, True, False]


def test_objects_and_lists_are_not_equal_to_their_text(found: Found) -> None:
    assert found({"a": '{"b":1}'}, {"a": {"b": 1}}, {"a": '{"b":1}'}) == [False, True]
    assert found({"a": '["b"]'}, {"a": ["b"]}, {"a": [["b"]]}) == [False, False]


def test_null_matches_null_and_missing_and_exists_tells_them_apart(found: Found) -> None:
    documents = [{"a": None}, {}, {"a": 0}, {"a": [1, None]}, {"a": []}]
    assert (
        found({"a": None}, *documents)
        == found({"a": {"$in": [None, 7]}}, *documents)
        == [True, True, False, True, False]
    )
    assert found({"a": {"$exists": True}}, *documents) == [True, False, True, True, True]
    assert found({"a": {"$exists": False}}, *documents) == [False, True, False, False, False]


def test_negations_are_true_of_a_missing_key(found: Found) -> None:
    documents = [{"lang": "en"}, {"lang": "de"}, {"lang": ["en", "de"]}, {"lang": 1}, {}]
    assert found({"lang": {"$ne": "en"}}, *documents) == [False, True, False, True, True]
    assert found({"lang": {"$nin": ["en", 1]}}, *documents) == [False, True, False, False, True]
    assert found({"lang": {"$exists": True, "$ne": "en"}}, *documents) == [False, True, False, True, False]
    assert found({"lang": {"$not": {"$gte": "e"}}}, *documents) == [False, True, False, True, True]


def test_a_list_matches_by_one_element_and_each_operator_by_its_own(found: Found) -> None:
    documents = [{"a": ["x", "y"]}, {"a": ["z"]}, {"a": []}, {"a": [["x"]]}, {"a": [1, 9]}]
    assert found({"a": "x"}, *documents) == [True, False, False, False, False]
    assert found({"a": {"$in": ["y", "z"]}}, *documents) == [True, True, False, False, False]
    assert found({"a": {"$gt": 5, "$lt": 3}}, *documents) == [False, False, False, False, True]


def test_and_or_nor_not(found: Found) -> None:
    documents = [{"a": a, "b": b} for a in (1, 2) for b in (1, 2)]
    assert found({"$and": [{"a": 1}, {"b": 1}]}, *documents) == [True, False, False, False]
    assert found({"$or": [{"a": 1}, {"b": 1}]}, *documents) == [True, True, True, False]
    assert found({"$nor": [{"a": 1}, {"b": 1}]}, *documents) == [False, False, False, True]
    assert found({"$not": {"a": 1, "b": 1}}, *documents) == [False, True, True, True]


def test_dots_lead_into_objects_and_through_lists_of_them(found: Found) -> None:
    ada, bob = {"name": "Ada"}, {"name": "Bob"}
    documents = [
        {"author": ada},
        {"author": bob},
        {"author": [bob, ada]},
        {"author": [bob, "Ada", [ada]]},
        {"author.name": "Ada"},
    ]
    assert found({"author.name": "Ada"}, *documents) == [True, False, True, False, False]
    assert found({"author.name": {"$ne": "Ada"}}, *documents) == [False, True, False, True, True]
    assert found({"author.name": {"$exists": True}}, *documents) == [True, True, True, True, False]
    assert found({"a.b.c": 1}, {"a": [{"b": [{"c": 2}, {"c": [1]}]}]}, {"a": {"b": [[{"c": 1}]]}}) == [True, False]


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("a.b", "a\\.b"),
        ("$ref", "\\$ref"),
        ("_id", "\\_id"),
        ("a$b", "a$b"),
        ("a[0]", "a[0]"),
        ("é 😀", "é 😀"),
        ("'", "'"),
        ("#-1", "#-1"),
    ],
)
def test_any_character_of_a_key_can_be_written(found: Found, key: str, written: str) -> None:
    assert found({written: 1}, {key: 1}, {key: 2}, {}) == [True, False, False]


def test_id_and_title_are_the_documents_own(found: Found) -> None:
    documents = [{"_id": "1"}, {"_title": "t2"}, {}]
    assert found({"_id": "1"}, *documents) == [False, True, False]
    assert found({"_id": {"$in": ["0", "2"]}, "_title": {"$gt": "t1"}}, *documents) == [False, False, True]
    assert found({"_id": {"$exists": True}, "_title": {"$nin": []}}, *documents) == [True, True, True]


def test_large_integers_are_exact(found: Found) -> None:
    documents = [{"a": 2**53}, {"a": 2**53 + 1}, {"a": float(2**53)}, {"a": 2**63 - 1}, {"a": 2**63}]
    assert found({"a": 2**53 + 1}, *documents) == [False, True, False, False, False]
    assert found({"a": {"$gt": float(2**53)}}, *documents) == [False, True, False, True, True]
    assert found({"a": {"$in": [2**53, 2**63 - 1]}}, *documents) == [True, False, True, True, False]


def test_every_decimal_is_equal_to_itself(found: Found) -> None:
    numbers = np.random.default_rng(0).uniform(0, 1000, 200).tolist()
    documents = [{"a": number} for number in numbers]
    assert all(found({"a": {"$in": numbers}}, *documents))
    for row, number in enumerate(numbers[:50]):
        assert found({"a": number}, *documents).index(True) == row
        assert found({"a": {"$gte": number, "$lte": number}}, *documents).index(True) == row


def test_dates_are_instants_and_plain_strings_are_not(found: Found) -> None:
    texts = [
        "2024-05-01",
        "2024-05-01T01:00+02:00",
        "2024-05-01 00:00:00.000Z",
        "2024-04-30T23:59:59.9999",
        "1 May",
        2024,
    ]
    documents = [{"a": text} for text in texts]
    assert found({"a": DAY}, *documents) == [True, False, True, False, False, False]
    assert found({"a": {"$lt": DAY}}, *documents) == [False, True, False, True, False, False]
    assert found({"a": {"$gte": "2024-05-01"}}, *documents) == [True, True, True, False, False, False]
    assert found({"a": {"$in": [DAY, "1 May"]}}, *documents) == [True, False, True, False, True, False]
    assert found({"a": {"$ne": {"$date": "2024-04-30T23:59:59.9999Z"}}}, *documents) == [
        True,
        True,
        True,
        False,
        True,
        True,
    ]


def test_a_list_of_thousands_is_one_parameter(found: Found) -> None:
    values = [*range(5000), *(f"t{n}" for n in range(5000))]
    documents = [{"a": 4999}, {"a": 5000}, {"a": "t7"}, {"a": ["x", "t4999"]}, {"a": ["x"]}]
    assert found({"a": {"$in": values}}, *documents) == [True, False, True, True, False]
    assert len(compile_filter({"a": {"$in": values}}).parameters) < 20


# Limits, hostile input, errors


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


def test_conditions_select_from_an_index_folder(tmp_path: Path) -> None:
    with Store.create(tmp_path / "new.index", {}, dim=2) as store:
        documents = [
            NewDocument(f"d{n}", f"Title {n}", "text", json.dumps({"n": n}, ensure_ascii=False), "", [(0, 4)])
            for n in range(4)
        ]
        store.commit(documents, np.ones((4, 2), dtype=np.float32))
    condition = compile_filter({"$or": [{"n": {"$gte": 3}}, {"_id": "d0"}]})
    db = sqlite3.connect(tmp_path / "new.index" / "index.db")
    query = f"SELECT DISTINCT doc FROM passages JOIN documents USING (doc) WHERE {condition.sql} ORDER BY doc"
    assert db.execute(query, condition.parameters).fetchall() == [(0,), (3,)]
    db.close()
