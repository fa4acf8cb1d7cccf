from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filter_strategies import DATES, MOMENTS, NO_DATES, documents, filters, operators, stored
from filtered import Found, connect, holds, select
from hypothesis import given, settings
from hypothesis import strategies as st

from searchkit.indexer.columns.build import merged, part_of
from searchkit.indexer.columns.filtering import passing
from searchkit.indexer.documents import NewDocument
from searchkit.indexer.filters import compile_filter
from searchkit.indexer.store import Store
from searchkit.indexer.unicode import normalised_metadata

DAY = {"$date": "2024-05-01"}
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
