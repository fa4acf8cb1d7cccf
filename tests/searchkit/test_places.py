"""The contract of a place that can be searched: an index folder and a collection in Milvus answer alike.

What differs in Milvus is listed in docs/guides/milvus.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from milvus import collection_at, drop
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.errors import FilterError, InputError, StoreError
from searchkit.models.embedder import Embedder
from searchkit.ranking import MODES, SearchOptions
from searchkit.records import Document, Query
from searchkit.remote.address import parse_milvus
from searchkit.remote.engine import MilvusEngine
from searchkit.remote.push import push
from searchkit.searcher import Searcher
from searchkit.writer import Writer

pytest.importorskip("pymilvus")

KINDS = ("folder", "milvus")
QUERIES = ["yeast makes bread rise", "repairs of the bridge", "how do sailors find their way?"]
LONG = " ".join(TEXTS[:12])
DOCUMENTS = [
    Document(str(n), text, title=f"Note {n}", metadata={"n": n, "odd": bool(n % 2), "tags": ["a", "b", "c"][: n % 4]})
    for n, text in enumerate(TEXTS)
] + [
    Document("long", f"  {LONG}\n\n{LONG}\n", title="Everything", metadata={"n": 100, "by": {"name": "Ann"}}),
    Document("caf\u00e9 \"quoted\" \\ 'id'", "\u00fcber caf\u00e9s \u6771\u4eac", metadata={}),
    Document("title alone", "", title="Cuttlefish"),
]


@pytest.fixture(scope="module")
def model() -> Embedder:
    return Embedder()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, model: Embedder) -> Iterator[dict[str, Searcher]]:
    """The same documents in both."""
    folder = tmp_path_factory.mktemp("places")
    address = collection_at(folder)
    with SearchEngine.create(folder / "x.index", model=model, chunk_tokens=48) as engine:
        engine.add(DOCUMENTS)
        push(engine, parse_milvus(address))
        with MilvusEngine.open(address, model=model) as collection:
            yield {"folder": engine, "milvus": collection}
    drop(address)


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, places: dict[str, Searcher]) -> Searcher:
    return places[request.param]


Make = Callable[..., Writer]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes a place for the vectors of its user, open for writing."""
    stack, addresses = ExitStack(), []

    def made(dim: int = 3, similarity: str | None = None) -> Writer:
        engine = stack.enter_context(SearchEngine.create(tmp_path / "x.index", dim=dim, similarity=similarity))
        if request.param == "folder":
            return engine
        addresses.append(collection_at(tmp_path))
        push(engine, parse_milvus(addresses[-1]))
        return stack.enter_context(MilvusEngine.open(addresses[-1], writable=True))

    with stack:
        yield made
    for address in addresses:
        drop(address)


def rows(count: int, dim: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def plain(count: int) -> list[Document]:
    return [Document(f"d{n}", f"number {n}", metadata={"n": n}) for n in range(count)]


# Reading


def test_documents_come_back_as_they_were_added(place: Searcher) -> None:
    assert list(place.documents()) == list(place) == DOCUMENTS
    assert len(place) == len(DOCUMENTS)
    assert place.passages > len(DOCUMENTS)
    assert all(place.get(document.id) == document for document in DOCUMENTS[-4:])
    assert place.get("none") is None
    assert DOCUMENTS[-2].id in place
    assert "none" not in place
    assert 3 not in place
    assert place.known_ids(["0", "none", DOCUMENTS[-2].id]) == {"0", DOCUMENTS[-2].id}


@pytest.mark.parametrize("where", [None, {"odd": True}, {"n": {"$gte": 10}, "tags": {"$ne": "a"}}, {"by.name": "Ann"}])
@pytest.mark.parametrize("instruction", [None, "", "Find the opposite"])
def test_dense_rankings_are_those_of_the_folder(
    places: dict[str, Searcher], where: dict[str, Any] | None, instruction: str | None
) -> None:
    options = {"mode": "dense", "k": 12, "where": where, "instruction": instruction}
    here, there = (places[kind].search_many(QUERIES, **options) for kind in KINDS)
    for expected, found in zip(here, there, strict=True):
        assert [replace(hit, score=0) for hit in found] == [replace(hit, score=0) for hit in expected]
        np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in expected], atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_the_passage_that_a_query_quotes_comes_first(place: Searcher, mode: Any) -> None:
    found = place.search_many([document.text for document in DOCUMENTS[:3]], mode=mode, k=3, where={"n": {"$lt": 50}})
    assert [hits[0].id for hits in found] == ["0", "1", "2"]
    assert all([hit.rank for hit in hits] == [1, 2, 3] for hits in found)


def test_lexical_matches_are_the_same_documents(places: dict[str, Searcher]) -> None:
    for query in [*QUERIES, "cafe", "caf\u00e9", "\u6771\u4eac", "cuttlefish", "zebra", "the of"]:
        here, there = ({hit.id for hit in places[kind].search(query, mode="lexical", k=99)} for kind in KINDS)
        assert there == here


@pytest.mark.parametrize("fusion", ["weighted", "adaptive", "rrf"])
def test_hybrid_rankings_are_nearly_those_of_the_folder(places: dict[str, Searcher], fusion: str) -> None:
    options = SearchOptions(fusion=fusion)
    here, there = (places[kind].search_many(QUERIES, k=5, options=options, explain=True) for kind in KINDS)
    for expected, found in zip(here, there, strict=True):
        assert found[0].id == expected[0].id
        assert len({hit.id for hit in found} & {hit.id for hit in expected}) >= 4
        one, other = found[0].explanation, expected[0].explanation
        assert one
        assert other
        assert one.dense_score == pytest.approx(other.dense_score, abs=1e-6)
        assert one.lexical_score == pytest.approx(other.lexical_score, rel=0.2)
        if fusion != "rrf":
            assert one.dense_weight == pytest.approx(other.dense_weight, abs=0.1)


def test_hits_show_their_best_passage(place: Searcher) -> None:
    (hit,) = place.search(TEXTS[7], mode="dense", k=1, where={"n": 100})
    assert hit.id == "long"
    assert hit.text == DOCUMENTS[-3].text[hit.start : hit.stop]
    assert TEXTS[7].strip() in hit.text


def test_more_hits_than_documents_are_all_documents(place: Searcher) -> None:
    assert len(place.search("tea", mode="dense", k=1000)) == len(DOCUMENTS)
    assert place.search("tea", k=5, where={"n": -1}) == []
    assert place.search("tea", k=5, where={"none": 1}, mode="lexical") == []


def test_ties_at_the_cut_are_returned_where_asked_for(place: Searcher) -> None:
    vector = place.embed(["tea"])
    ranked = place.rank(["tea"], k=3, options=SearchOptions(mode="dense"), vectors=vector, ties=True)
    assert len(ranked[0]) >= 3
    assert place.ids_of(ranked).keys() == {item.doc for item in ranked[0]}


def test_similar_documents(places: dict[str, Searcher]) -> None:
    here, there = ([hit.id for hit in places[kind].similar("long", k=6)] for kind in KINDS)
    assert there == here
    with pytest.raises(InputError, match="holds no document 'none'"):
        places["milvus"].similar("none")


@pytest.mark.parametrize("keys", [None, ["tags", "by.name"], ["none"]])
@pytest.mark.parametrize("mode", ["hybrid", "lexical"])
def test_facets(places: dict[str, Searcher], keys: list[str] | None, mode: Any) -> None:
    here, there = (places[kind].facets(keys, "bread", mode=mode, where={"n": {"$gt": 3}}) for kind in KINDS)
    assert there == here


def test_faults_of_filters_and_absent_keys_are_explained(places: dict[str, Searcher]) -> None:
    for where in ({"yer": 1}, {"n": "3"}, {"n": {"$ne": "x"}}, {"n": 3}, {"$not": {"nn": 1}}):
        here, there = (places[kind].filter_faults(where) for kind in KINDS)
        assert there == here
    here, there = (places[kind].absent_keys(["n", "tag"]) for kind in KINDS)
    assert there == here


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"query": " "}, "a query is empty"),
        ({"query": "x", "k": 0}, "k is 0"),
        ({"query": "x", "mode": "fast"}, "mode is 'fast'"),
        ({"query": "x", "task": "none"}, "none"),
        ({"query": "x", "vector": [1.0]}, "vectors are"),
        ({"query": "x", "where": {"a": {"$near": 1}}}, "unknown operator"),
    ],
)
def test_mistakes_are_refused_alike(places: dict[str, Searcher], arguments: dict[str, Any], part: str) -> None:
    messages = []
    for kind in KINDS:
        with pytest.raises(InputError) as caught:
            places[kind].search(**arguments)
        messages.append(str(caught.value))
    assert part in messages[0]
    assert messages[0] == messages[1]


# Writing


def test_what_is_added_is_found_and_what_is_deleted_is_not(make: Make) -> None:
    place = make()
    vectors = rows(8)
    report = place.add(plain(8), vectors=vectors)
    assert (report.documents, report.unchanged, len(place)) == (8, 0, 8)
    assert [place.search(vector=vector, k=1)[0].id for vector in vectors] == [f"d{n}" for n in range(8)]
    assert [hit.id for hit in place.search("number 5", mode="lexical", k=1)] == ["d5"]
    assert place.delete(["d5", "none", "d1"]) == (2, ["none"])
    assert len(place) == 6
    assert place.search("5", mode="lexical") == []
    assert "d1" not in {hit.id for hit in place.search(vector=vectors[1], k=8)}
    assert place.delete(where={"n": {"$gte": 6}}, dry_run=True) == (2, [])
    assert place.delete(["d0"], where={"n": {"$gte": 6}}) == (3, [])
    assert sorted(document.id for document in place) == ["d2", "d3", "d4"]


def test_adding_again_changes_nothing_and_updates_replace(make: Make) -> None:
    place = make()
    documents, vectors = plain(5), rows(5)
    place.add(documents, vectors=vectors)
    assert place.add(documents, vectors=vectors).unchanged == 5
    other = replace(documents[2], text="another number", metadata={"n": "two"})
    with pytest.raises(InputError, match="in the index with other content"):
        place.add([other], vectors=vectors[:1])
    refused: list[str] = []
    report = place.add([other], vectors=vectors[:1], on_refused=lambda document, _: refused.append(document.id))
    assert (report.refused, refused) == (1, ["d2"])
    assert place.add([other, documents[4]], vectors=vectors[[0, 4]], update=True).updated == 1
    assert (len(place), place.passages) == (5, 5)
    assert place.get("d2").metadata == {"n": "two"}  # type: ignore[union-attr]
    assert [hit.id for hit in place.search("another", mode="lexical")] == ["d2"]
    np.testing.assert_allclose(place.get("d2").vector, vectors[0] / np.linalg.norm(vectors[0]), atol=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("similarity", ["cosine", "inner-product", "euclidean"])
def test_own_vectors_are_compared_as_the_user_chose(make: Make, similarity: str) -> None:
    place = make(dim=5, similarity=similarity)
    vectors, queries = 3 * rows(40, 5), 2 * rows(6, 5, seed=1)
    place.add(plain(40), vectors=vectors)
    if similarity == "euclidean":
        scores = -np.linalg.norm(queries[:, None] - vectors, axis=2)
    else:
        unit = (lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)) if similarity == "cosine" else (lambda x: x)
        scores = unit(queries) @ unit(vectors).T
    for query, expected in zip(queries, scores, strict=True):
        hits = place.search(vector=query, k=7)
        best = np.argsort(-expected)[:7]
        assert [hit.id for hit in hits] == [f"d{n}" for n in best]
        np.testing.assert_allclose([hit.score for hit in hits], expected[best], rtol=1e-4)
    kept = {document.id: document.vector for document in place.documents(vectors=True)}
    np.testing.assert_allclose(kept["d7"], unit(vectors)[7] if similarity == "cosine" else vectors[7], rtol=1e-5)


def test_documents_without_a_vector_are_found_by_words_alone(make: Make) -> None:
    place = make()
    vectors = [*rows(3), None, None]
    assert place.add(plain(5), vectors=vectors).without_vector == 2
    assert {hit.id for hit in place.search(vector=[1, 0, 0], k=9)} == {"d0", "d1", "d2"}
    assert [hit.id for hit in place.search("3", mode="lexical")] == ["d3"]
    found = place.search("number 3", vector=[1, 0, 0], k=9)
    assert {hit.id for hit in found} == {f"d{n}" for n in range(5)}
    assert place.facets(["n"], mode="dense").documents == 3
    assert place.facets(["n"], "4", mode="hybrid").documents == 4
    with pytest.raises(InputError, match="has no vector"):
        place.similar("d3")
    assert place.get("d4").vector is None  # type: ignore[union-attr]
    assert place.vectors_by_id(["d0", "d4"]).keys() == {"d0"}  # type: ignore[attr-defined]


def test_equal_vectors_rank_in_the_order_they_came(make: Make) -> None:
    place = make()
    place.add(plain(30), vectors=np.ones((30, 3), np.float32))
    assert [hit.id for hit in place.search(vector=[1, 1, 1], k=5)] == [f"d{n}" for n in range(5)]
    assert [hit.id for hit in place.search("number", mode="lexical", k=5)] == [f"d{n}" for n in range(5)]


def test_a_negated_condition_that_always_holds_deletes_nothing(make: Make) -> None:
    place = make()
    place.add(plain(3), vectors=rows(3))
    with pytest.raises(FilterError, match="holds for every document"):
        place.delete(where={"yaer": {"$ne": 3}})
    assert len(place) == 3


def test_an_empty_place_answers(make: Make) -> None:
    place = make()
    assert len(place) == 0
    assert place.search("x", mode="lexical") == place.search(vector=[1, 0, 0]) == list(place) == []
    assert place.get("x") is None
    assert place.delete(["x"]) == (0, ["x"])
    assert place.facets(None).documents == 0


def test_vectors_of_another_maker_or_width_are_refused(make: Make) -> None:
    place = make()
    with pytest.raises(InputError, match=r"expected \(n, 3\)"):
        place.add(plain(2), vectors=rows(2, 4))
    with pytest.raises(StoreError, match="without a name for what made its vectors"):
        place.add(plain(2), vectors=rows(2), vectors_from="elsewhere")
    with pytest.raises(InputError, match="has no model to embed texts with"):
        place.search("x", mode="dense")


def test_what_is_open_for_reading_or_closed_cannot_be_used_otherwise(make: Make, tmp_path: Path) -> None:
    place = make()
    place.add(plain(2), vectors=rows(2))
    if isinstance(place, MilvusEngine):
        reader: Writer = MilvusEngine.open(place.collection.address)
    else:
        reader = SearchEngine.open(tmp_path / "x.index")
    with pytest.raises(StoreError, match="reading"):
        reader.add(plain(3), vectors=rows(3))
    with pytest.raises(StoreError, match="reading"):
        reader.delete(["d0"])
    assert reader.is_current()
    place.delete(["d0"])
    assert not reader.is_current()
    reader.reload()
    assert (len(reader), reader.commit) == (1, place.commit)
    reader.close()
    with pytest.raises(StoreError, match="closed"):
        reader.search(vector=[1, 0, 0])


def test_queries_bring_their_vectors(make: Make) -> None:
    place = make()
    vectors = rows(4)
    place.add(plain(4), vectors=vectors)
    queries = [Query(str(n), "", vector=vector) for n, vector in enumerate(vectors)]
    assert [hits[0].id for hits in place.search_many(queries)] == ["d0", "d1", "d2", "d3"]
