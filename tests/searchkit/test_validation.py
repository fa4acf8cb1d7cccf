from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchkit.errors import InputError
from searchkit.records import Document, Query
from searchkit.validation import check_document, check_metadata, checked_ids, checked_queries, whole_number

DOCUMENT = Document("a", "tea", "Tea", {"n": 1})
LOOP: list[Any] = []
LOOP += [LOOP, LOOP]


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"id": "a", "text": "tea"}, "a dict came in place of a document; expected searchkit.Document"),
        ("tea", "'tea' came in place of a document"),
        (None, "None came in place of a document"),
        (replace(DOCUMENT, id=5), "id is 5; expected a string"),
        (replace(DOCUMENT, id=None), "id is None; expected a string"),
        (replace(DOCUMENT, id=" "), "the id is empty"),
        (replace(DOCUMENT, text=None), "text is None; expected a string"),
        (replace(DOCUMENT, text=b"tea"), "text is a bytes; expected a string"),
        (replace(DOCUMENT, text="te\0a"), "text holds a NUL byte at character 2"),
        (replace(DOCUMENT, text="\ud800"), r"text holds the lone surrogate \ud800"),
        (replace(DOCUMENT, text=" ", title="\n"), "neither text nor title"),
        (replace(DOCUMENT, title=["Tea"]), "title is a list; expected a string"),
        (replace(DOCUMENT, place=3), "place is 3; expected a string"),
        (replace(DOCUMENT, incidental="n"), "incidental is 'n'; expected a tuple of metadata keys"),
        (replace(DOCUMENT, metadata=None), "metadata is None; expected a dict"),
        (replace(DOCUMENT, metadata=[1]), "metadata is a list; expected a dict"),
    ],
)
def test_what_is_no_document_is_refused_with_what_came(document: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        check_document(document)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), 'NaN or Infinity under "m.x", which JSON cannot express; use null'),
        (float("-inf"), "NaN or Infinity"),
        (np.float64("nan"), "NaN or Infinity"),
        ([1, {"y": [float("inf")]}], 'under "m.x[1].y[0]"'),
        (2**63, 'an integer beyond 64 bits under "m.x"; write it as a string'),
        (-(2**63) - 1, "beyond 64 bits"),
        (10**4000, "beyond 64 bits"),
        ({1, 2}, "a set"),
        (np.int64(3), "a numpy.int64"),
        (np.bool_(True), "a numpy.bool"),
        (date(2024, 5, 1), "a date"),
        (b"x", "a bytes"),
        ({1: 2}, "the key 1"),
        ({None: 2}, "the key None"),
        ("\udc00", r"lone surrogate \udc00"),
        ({"\udc00": 1}, r"lone surrogate \udc00"),
        (LOOP, "nested too deeply"),
        (nested(500), "nested too deeply"),
    ],
)
def test_metadata_that_json_or_filters_cannot_hold_is_refused_with_its_key(value: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        check_metadata({"ok": 1, "m": {"x": value}})
    assert said in str(error.value)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(st.dictionaries(TEXT, JSON, max_size=5))
def test_what_is_accepted_comes_back_equal_and_is_json_to_sqlite(metadata: dict[str, Any]) -> None:
    check_metadata(metadata)
    text = json.dumps(metadata, ensure_ascii=False, sort_keys=True)
    assert json.loads(text) == metadata
    with closing(sqlite3.connect(":memory:")) as db:
        assert db.execute("SELECT json_valid(?)", (text,)).fetchone() == (1,)


def test_the_deepest_metadata_is_json_to_sqlite() -> None:
    check_metadata(nested(500))
    with closing(sqlite3.connect(":memory:")) as db:
        assert db.execute("SELECT json_valid(?)", (json.dumps(nested(500)),)).fetchone() == (1,)


@pytest.mark.parametrize(
    ("queries", "said"),
    [
        (None, "queries is None; expected a list of strings"),
        ("tea", "queries is 'tea'; expected a list"),
        (Query("1", "tea"), "queries is a Query; expected a list"),
        (5, "queries is 5"),
        (["tea", 5], "query 2 is 5; expected a string or a searchkit.Query"),
        ([None], "query 1 is None"),
        ([{"text": "tea"}], "query 1 is a dict"),
        ([Query("1", None)], "the text of a query is None; expected a string"),  # type: ignore[arg-type]
        ([Query("1", " ")], "a query is empty"),
        ([Query("1", "tea", 5)], "instruction is 5; expected a string"),  # type: ignore[arg-type]
        (["\ud800"], "lone surrogate"),
        (["te\udcffa"], r"the text of a query holds the byte \xff, which is not UTF-8"),
    ],
)
def test_what_are_no_queries_is_refused(queries: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        checked_queries(queries)
    assert said in str(error.value)


def test_queries_come_as_strings_records_or_both_from_anything_that_can_be_read() -> None:
    assert checked_queries(iter(["tea", Query("1", "milk", "Find")])) == [Query("", "tea"), Query("1", "milk", "Find")]


@pytest.mark.parametrize("value", ["3", 2.5, True, None, [1], float("nan"), np.float32(3)])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"k is .*; expected a whole number, 1 or more"):
        whole_number("k", value, 1)


def test_whole_numbers_of_numpy_are_taken_and_small_ones_refused() -> None:
    assert whole_number("k", np.int32(3), 1) == 3
    with pytest.raises(InputError, match="k is 0; expected 1 or more"):
        whole_number("k", 0, 1)


@pytest.mark.parametrize(("ids", "said"), [("17", "ids is '17'"), (None, "ids is None"), ([17], "id is 17")])
def test_what_are_no_ids_is_refused(ids: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        checked_ids(ids)
