"""What an index says of its metadata, and of filters that can match none of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from searchkit.engine import SearchEngine
from searchkit.errors import FilterError
from searchkit.indexer.keys import metadata_keys
from searchkit.records import Document

METADATA: list[dict[str, Any]] = [
    {"year": 2019, "price": 1.5, "sold": True, "day": "2024-05-01", "lang": "en", "a.b": 1, "_id": "x"},
    {"year": 2003, "price": 2, "tags": ["x", 7], "author": {"name": "Ada"}, "lang": None, "odd": "2019"},
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, embedder: Any) -> Any:
    with SearchEngine.create(tmp_path_factory.mktemp("keys") / "x.index", model=embedder) as engine:
        engine.add(Document(str(n), "tea", metadata=metadata) for n, metadata in enumerate(METADATA))
        yield engine


def test_keys_have_types_and_examples(engine: SearchEngine) -> None:
    keys = metadata_keys(engine.store.documents)
    assert {name: (key.described, key.examples) for name, key in keys.items()} == {
        "year": ("integer", ["2019", "2003"]),
        "price": ("decimal or integer", ["1.5", "2"]),
        "sold": ("boolean", ["true"]),
        "day": ("date", ['"2024-05-01"']),
        "lang": ("text or null", ['"en"']),
        "a\\.b": ("integer", ["1"]),
        "\\_id": ("text", ['"x"']),
        "tags": ("text or integer", ['"x"', "7"]),
        "author.name": ("text", ['"Ada"']),
        "odd": ("text", ['"2019"']),
    }


@pytest.mark.parametrize(
    "where",
    [
        {"year": {"$gte": 2015}},
        {"year": 1},  # of the right type
        {"year": {"$in": ["2019", 2019]}},
        {"tags": 8},
        {"tags": "y"},
        {"author.name": "Bob"},
        {"day": {"$lt": {"$date": "2020-01-01"}}},
        {"day": "2024"},
        {"lang": None},
        {"nowhere": None},
        {"a\\.b": 2},
        {"\\_id": "x"},
        {"_id": "5"},
        {"_title": {"$gte": "a"}},
        {"sold": False},
        {"year": {"$not": {"$lt": 5}}},
        {"year": {"$in": []}},
        {"$or": [{"year": 1}, {"$nor": [{"sold": True}]}]},
    ],
)
def test_conditions_that_could_match_have_no_faults(engine: SearchEngine, where: dict[str, Any]) -> None:
    assert engine.filter_faults(where) == []


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"yaer": {"$gte": 2015}}, r'has the key "yaer" \(did you mean "year"\?\).*; keys are .*year \(integer\)'),
        ({"odd": {"$gte": 2015}}, r'"odd" with numbers, but it holds text \("2019"\), .* in double quotes'),
        ({"odd": 2019}, "with numbers"),
        ({"year": "2019"}, r'"year" with text, but it holds integer \(2003, 2019\)|\(2019, 2003\)'),
        ({"year": {"$in": ["2019"]}}, "with text"),
        ({"lang": {"$lt": {"$date": "2020-01-01"}}}, "with dates"),
        ({"sold": "true"}, 'with text, but it holds boolean'),
        ({"sold": 1}, "with numbers"),
        ({"author.nam": "Ada"}, 'did you mean "author.name"'),
        ({"author": "Ada"}, '"author" with text, but it holds other values'),
        ({"year": 2019, "$and": [{"yaer": 1}]}, "yaer"),
        ({"nowhere": {"$exists": True}}, "no document has the key"),
    ],
)  # fmt: skip
def test_a_condition_that_can_match_nothing_is_explained(
    engine: SearchEngine, where: dict[str, Any], message: str
) -> None:
    (fault,) = engine.filter_faults(where)
    assert not fault.always
    assert "matches nothing" in fault.message
    with pytest.raises(FilterError, match=message):
        raise FilterError(fault.message)
    assert engine.search("tea", where=where) == []


@pytest.mark.parametrize(
    "where",
    [
        {"odd": {"$ne": 2019}},
        {"yaer": {"$nin": [2019]}},
        {"yaer": {"$exists": False}},
        {"$nor": [{"odd": 2019}]},
        {"$not": {"odd": {"$gt": 2019}}},
        {"odd": {"$not": {"$gt": 2019}}},
    ],
)
def test_a_negation_that_holds_for_everything_deletes_nothing(engine: SearchEngine, where: dict[str, Any]) -> None:
    with pytest.raises(FilterError, match="holds for every document"):
        engine.delete(where=where, dry_run=True)
    assert engine.delete(where={"year": {"$ne": 2019}}, dry_run=True) == (1, [])


def test_an_empty_index_has_no_faults(tmp_path: Path, embedder: Any) -> None:
    with SearchEngine.create(tmp_path / "x.index", model=embedder) as empty:
        assert empty.filter_faults({"year": 1}) == []
