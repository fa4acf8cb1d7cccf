"""Filters on a collection give the answers that they give on the index folder."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from filter_strategies import KEYS, MOMENTS, NO_DATES, NUMBERS, STRINGS, filters, operators
from hypothesis import given, settings
from milvus import collection_at, drop

from searchkit.engine import SearchEngine
from searchkit.errors import FilterError
from searchkit.indexer.filters import compile_filter
from searchkit.records import Document
from searchkit.remote.address import parse_milvus
from searchkit.remote.client import Client
from searchkit.remote.collection import Collection
from searchkit.remote.filters import to_expression
from searchkit.remote.push import push

pytest.importorskip("pymilvus")

FILTERS = int(os.environ.get("SEARCHKIT_FILTERS", "60"))
"""Random filters that are compared; SEARCHKIT_FILTERS=10000 takes minutes."""
checked = settings(deadline=None, derandomize=FILTERS < 1000, database=None, max_examples=FILTERS)


class Both(NamedTuple):
    """An index folder, and a collection of the same documents."""

    folder: SearchEngine
    collection: Collection

    def matches(self, where: dict[str, Any]) -> tuple[set[int], set[int]]:
        """The documents that match here and there."""
        here, _ = self.folder.store.matching(compile_filter(where), self.folder.snapshot)
        there = self.collection.query(to_expression(where), ["doc"])
        return set(here.tolist()), {int(row["doc"]) for row in there}


def metadata(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    def value(depth: int) -> Any:
        kind = rng.random()
        if kind < 0.2 and depth < 3:
            return [value(depth + 1) for _ in range(rng.randrange(4))]
        if kind < 0.35 and depth < 3:
            return metadata(rng, depth + 1)
        pool = (NUMBERS, STRINGS, MOMENTS, NO_DATES, [True, False, None])
        return rng.choice(rng.choice([[number for number in pool[0] if number != 1e300], *pool[1:]]))

    return {rng.choice(KEYS): value(depth) for _ in range(rng.randrange(4))}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("filters")
    rng = random.Random(3)
    documents = [Document(rng.choice("aAb\u00e9") + str(n), "text", metadata=metadata(rng)) for n in range(150)]
    documents += [
        Document("ligature", "text", title="\ufb01ne", metadata={"\uff41": "\ufb01", "a": {"b": ["x\0y", "e\u0301"]}}),
        Document("long", "text", title="x" * 400, metadata={"a": "y" * 400, "b": ["y" * 300 + "z", "y" * 300]}),
    ]
    address = collection_at(folder)
    with SearchEngine.create(folder / "x.index", dim=2) as engine:
        engine.add(documents, vectors=np.ones((len(documents), 2), np.float32))
        push(engine, parse_milvus(address))
        client = Client(parse_milvus(address))
        collection = Collection(client)
        collection.load()
        yield Both(engine, collection)
        client.close()
    drop(address)


@checked
@given(where=filters)
def test_random_filters_match_the_same_documents(both: Both, where: dict[str, Any]) -> None:
    here, there = both.matches(where)
    assert here == there


@checked
@given(operator=operators)
def test_random_operators_match_the_same_documents(both: Both, operator: dict[str, Any]) -> None:
    here, there = both.matches({"a": operator, "b": {"$not": operator}})
    assert here == there


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"a": "fi"},
        {"\uff41": {"$in": ["\ufb01", 3]}},
        {"a.b": "x"},
        {"a.b": "\u00e9"},
        {"_title": "fine"},
        {"_title": {"$gt": "x" * 249}},
        {"_id": {"$gte": "b"}},
        {"_id": {"$in": ["ligature", "none"]}},
        {"_id": {"$exists": False}},
        {"a": {"$gt": "y" * 249}},
        {"b": {"$lte": "y" * 249}},
        {"b": {"$gte": 2**53 + 1}},
        {"a": {"$in": []}},
        {"a": {"$nin": []}},
        {"a": None},
        {"a": {"$not": {"$gt": 0, "$lt": 2}}},
        {"$nor": [{"a": {"$exists": True}}, {"b": {"$lt": {"$date": "2024-05-01"}}}]},
    ],
    ids=lambda where: json.dumps(where)[:40],
)
def test_chosen_filters_match_the_same_documents(both: Both, where: dict[str, Any]) -> None:
    here, there = both.matches(where)
    assert here == there


def test_an_order_of_long_strings_is_refused() -> None:
    with pytest.raises(FilterError, match=r"a string of 250 characters; in Milvus at most 249 .* shorten it"):
        to_expression({"a": {"$gt": "x" * 250}})


def test_what_a_folder_refuses_is_refused_alike() -> None:
    with pytest.raises(FilterError, match="did you mean"):
        to_expression({"a": {"$gtt": 1}})
