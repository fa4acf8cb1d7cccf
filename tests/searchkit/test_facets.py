"""Facets count over every document that a search matches, as a count by hand does."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import Words

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.facets import FACET_VALUES
from searchkit.records import Document


def random_metadata(rng: random.Random) -> dict[str, Any]:
    def value() -> Any:
        return rng.choice([1, 1.5, 2, True, False, None, "1", "x", "caf\u00e9", "cafe\u0301", "2024-05-01", -0.0])

    return {
        "plain": value(),
        "list": [value() for _ in range(rng.randrange(4))],
        "in": rng.choice([{"deep": value()}, [{"deep": value()}, {"deep": value(), "x": 1}], value()]),
        **({"rare": value()} if rng.random() < 0.1 else {}),
        **({"a.b": value()} if rng.random() < 0.5 else {}),
        "n": rng.randrange(1000),
    }


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    rng = random.Random(1)
    return [
        Document(str(n), rng.choice(["green tea", "black coffee", "tea and coffee"]), metadata=random_metadata(rng))
        for n in range(300)
    ]


@pytest.fixture
def engine(tmp_path: Path, documents: list[Document]) -> Iterator[SearchEngine]:
    with SearchEngine.create(tmp_path / "x.index", model=Words()) as engine:
        engine.add(documents)
        yield engine


KEYS = {"plain": ["plain"], "list": ["list"], "in.deep": ["in", "deep"], "rare": ["rare"], "a\\.b": ["a.b"]}


def by_hand(documents: list[Document], key: str) -> Counter[tuple[bool, Any]]:
    counts: Counter[tuple[bool, Any]] = Counter()
    for document in documents:
        values: list[Any] = [document.metadata]
        for part in KEYS[key]:
            inner = [item for value in values for item in (value if isinstance(value, list) else [value])]
            values = [item[part] for item in inner if isinstance(item, dict) and part in item]
        flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
        one_spelling = ["caf\u00e9" if value == "cafe\u0301" else value for value in flat]
        counts.update(
            {(isinstance(value, bool), value) for value in one_spelling if not isinstance(value, dict | None)}
        )
    return counts


def counted(counts: list[tuple[Any, int]]) -> Counter[tuple[bool, Any]]:
    assert [count for _, count in counts] == sorted((count for _, count in counts), reverse=True)
    return Counter({(isinstance(value, bool), value): count for value, count in counts})


@pytest.mark.parametrize("where", [None, {"n": {"$lt": 500}}, {"plain": "cafe\u0301"}, {"n": -1}])
@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_facets_equal_a_count_by_hand(engine: SearchEngine, documents: list[Document], mode: Any, where: Any) -> None:
    hits = engine.search("tea", mode=mode, where=where, k=1000)  # so deep that everything is a hit
    found = {hit.id for hit in hits}
    facets = engine.facets(list(KEYS), "tea", mode=mode, where=where)
    matching = [document for document in documents if document.id in found]
    assert facets.documents == len(matching)
    wanted = {key: counts for key in KEYS if (counts := by_hand(matching, key))}
    assert {key: counted(counts) for key, counts in facets.counts.items()} == wanted


def test_a_facet_counts_what_its_filter_finds(engine: SearchEngine) -> None:
    for key, values in engine.facets(list(KEYS)).counts.items():
        for value, count in values:
            assert engine.facets([], where={key: value}).documents == count, (key, value)


def test_all_keys_without_long_texts(tmp_path: Path) -> None:
    with SearchEngine.create(tmp_path / "x.index", model=Words()) as engine:
        engine.add([Document("1", "tea", metadata={"abstract": "long " * 100, "lang": "en", "in": {"n": 1}})])
        assert engine.facets(None).counts == {"lang": [("en", 1)], "in.n": [(1, 1)]}
        assert engine.facets(["abstract"]).counts == {"abstract": [("long " * 100, 1)]}


def test_the_most_frequent_values_are_listed(tmp_path: Path) -> None:
    with SearchEngine.create(tmp_path / "x.index", model=Words()) as engine:
        engine.add([Document(str(n), "tea", metadata={"n": min(n, 90)}) for n in range(100)])
        (values,) = engine.facets(["n"]).counts.values()
    assert len(values) == FACET_VALUES
    assert values[0] == (90, 10)


def test_facets_follow_the_commits(engine: SearchEngine, documents: list[Document]) -> None:
    before = engine.facets(["rare"]).documents
    engine.add([Document("new", "tea", metadata={"rare": "fresh"})])
    assert ("fresh", 1) in engine.facets(["rare"]).counts["rare"]
    engine.delete(["new", documents[0].id])
    assert "fresh" not in dict(engine.facets(["rare"]).counts["rare"])
    assert engine.facets(["rare"]).documents == before - 1
    with SearchEngine(type(engine.store)(engine.store.folder), Words()) as reader:
        engine.compact()
        assert reader.facets(["plain"]) == engine.facets(["plain"])


def test_an_empty_index_has_no_facets(tmp_path: Path) -> None:
    with SearchEngine.create(tmp_path / "x.index", model=Words()) as engine:
        for mode in ("hybrid", "lexical"):
            assert engine.facets(["n"], "tea", mode=mode) == (0, {})


@pytest.mark.parametrize("keys", ["n", [1], ['a"b'], [""], 5])
def test_keys_that_cannot_be_counted_are_refused(engine: SearchEngine, keys: Any) -> None:
    with pytest.raises(InputError):
        engine.facets(keys)


def test_documents_without_vectors_match_by_their_words_alone(tmp_path: Path) -> None:
    with SearchEngine.create(tmp_path / "x.index", dim=2) as engine:
        documents = [
            Document("a", "tea", metadata={"n": 1}),
            Document("b", "tea", metadata={"n": 2}),
            Document("c", "x"),
        ]
        engine.add(documents, vectors=[[1.0, 0.0], None, [0.0, 1.0]])
        matching = {mode: engine.facets(["n"], "tea", mode=mode).documents for mode in ("dense", "lexical", "hybrid")}
    assert matching == {"dense": 2, "lexical": 2, "hybrid": 3}
