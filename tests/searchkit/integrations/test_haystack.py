"""Haystack's own suites over our store, unchanged, and what they leave out."""

from __future__ import annotations

import os

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")  # no test reaches for the network

import gc
import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("haystack", reason="needs haystack-ai: pip install 'searchkit[haystack]'; see .ci/frameworks")
pytest.importorskip("pytest_asyncio", reason="Haystack's asynchronous suites need pytest-asyncio; see .ci/frameworks")

from haystack import Document
from haystack.dataclasses import ByteStream, SparseEmbedding
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack.testing import document_store as suite
from haystack.testing import document_store_async as async_suite
from haystack.utils.filters import document_matches_filter

from searchkit.engine import SearchEngine
from searchkit.errors import InputError, StoreError
from searchkit.integrations.haystack import (
    SearchkitBM25Retriever,
    SearchkitDocumentStore,
)
from searchkit.integrations.haystack.filters import Kinds, compiled


@pytest.fixture
def store(tmp_path: Path) -> SearchkitDocumentStore:
    return SearchkitDocumentStore(tmp_path / "store.index")


class TestSuite(
    suite.DocumentStoreBaseExtendedTests,
    suite.CountDocumentsByFilterTest,
    suite.CountUniqueMetadataByFilterTest,
    suite.GetMetadataFieldsInfoTest,
    suite.GetMetadataFieldMinMaxTest,
    suite.GetMetadataFieldUniqueValuesTest,
):
    @pytest.fixture
    def document_store(self, store: SearchkitDocumentStore) -> SearchkitDocumentStore:
        return store

    def test_write_documents(self, document_store: SearchkitDocumentStore) -> None:
        """What happens without a policy is each store's own: the suite asks for this test to be written."""
        document = Document(content="one")
        assert document_store.write_documents([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents([document, Document(content="two")])
        assert document_store.filter_documents() == [document]


class TestAsyncSuite(
    async_suite.CountDocumentsAsyncTest,
    async_suite.CountDocumentsByFilterAsyncTest,
    async_suite.CountUniqueMetadataByFilterAsyncTest,
    async_suite.DeleteAllAsyncTest,
    async_suite.DeleteByFilterAsyncTest,
    async_suite.DeleteDocumentsAsyncTest,
    async_suite.FilterDocumentsAsyncTest,
    async_suite.GetMetadataFieldMinMaxAsyncTest,
    async_suite.GetMetadataFieldsInfoAsyncTest,
    async_suite.GetMetadataFieldUniqueValuesAsyncTest,
    async_suite.UpdateByFilterAsyncTest,
    async_suite.WriteDocumentsAsyncTest,
):
    @pytest.fixture
    def document_store(self, store: SearchkitDocumentStore) -> SearchkitDocumentStore:
        return store

    @pytest.mark.asyncio
    async def test_write_documents_async(self, document_store: SearchkitDocumentStore) -> None:
        """As above."""
        document = Document(content="one")
        assert await document_store.write_documents_async([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            await document_store.write_documents_async([document], DuplicatePolicy.NONE)
        assert await document_store.filter_documents_async() == [document]


# Filters: Haystack's own function is the oracle

VALUES: dict[str, list[Any]] = {
    "meta.n": [0, 1, 2, 2.5, -3, 10**12, None],
    "meta.mixed": [0, 1, 1.0, True, False, "1", None, "a", {"x": 1}],
    "meta.flag": [True, False, None],
    "meta.s": ["a", "b", "A", "", "1", "caf\u00e9", None],
    "meta.accents": ["caf\u00e9", "cafe\u0301", "\u212b", "\u00c5", "a\0b", "a"],
    "meta.day": ["2024-05-01", "2024-05-01T00:00", "2024-05-01T12:30:05.25", "1999-12-31", None],
    "meta.time": ["2024-05-01T12:00:00Z", "2024-05-01T14:00:00+02:00", "2024-05-01T12:00:00", "2024-13-45", "May 2024"],
    "meta.list": [["a"], ["a", "b"], "a", [], None, [1, [2]]],
    "meta.big": [2**70, 1, float("inf")],
    "meta.stamp": [datetime(2024, 5, 1, 12), datetime(2024, 5, 1, 12, tzinfo=UTC), "2024-05-01T12:00:00", None],
    "meta.o.x": [1, 2, "a", None],
    "meta.$odd.a b": [1, "a"],
    "meta._id": ["x", "y"],
    "n": [0, 1, 2],
    "id": ["0", "1", "17", "2024-05-01"],
    "content": ["text 1", "text 2"],
    "meta.missing": [1, "a", None],
}


def random_document(number: int, draw: random.Random) -> Document:
    meta: dict[str, Any] = {}
    for name, values in VALUES.items():
        first, *path = name.split(".")
        if first == "meta" and name != "meta.missing" and draw.random() < 0.8:
            target = meta
            for part in path[:-1]:
                target = target.setdefault(part, {})
            target[path[-1]] = draw.choice(values)
    if draw.random() < 0.2:
        meta["o"] = draw.choice([5, [{"x": 1}, {"x": "a"}], None])
    return Document(id=str(number), content=f"text {number % 3}", meta=meta)


def random_filter(draw: random.Random, names: list[str], depth: int = 0) -> dict[str, Any]:
    if depth < 3 and draw.random() < 0.4:
        conditions = [random_filter(draw, names, depth + 1) for _ in range(draw.randrange(4))]
        return {"operator": draw.choice(["AND", "OR", "NOT"]), "conditions": conditions}
    name = draw.choice(names)
    operator = draw.choice(["==", "!=", "in", "not in", ">", ">=", "<", "<="])
    value = draw.choice(VALUES[name])
    if operator.endswith("in"):
        value = draw.sample(VALUES[name], draw.randrange(3))
    return {"field": name, "operator": operator, "value": value}


def outcome(matching: Any) -> Any:
    try:
        return matching()
    except (FilterError, TypeError):  # Haystack itself raises TypeError for 1 < {}
        return "refused"


@pytest.mark.parametrize("seed", range(4))
def test_a_thousand_filters_match_what_haystack_says(store: SearchkitDocumentStore, seed: int) -> None:
    draw = random.Random(seed)
    documents = [random_document(number, draw) for number in range(40)]
    store.write_documents(documents)
    with SearchEngine.open(store._folder.path) as engine:
        kinds = Kinds.of(engine.store.documents, engine.snapshot.generation)
    sound = ["meta.n", "meta.flag", "meta.s", "meta.day", "meta.missing", "id", "n"]
    certain = refused = some = 0
    for number in range(250):
        filters = random_filter(draw, sound if number % 2 else list(VALUES))
        expected = outcome(lambda: [d.id for d in documents if document_matches_filter(filters, d)])  # noqa: B023
        received = outcome(lambda: [d.id for d in store.filter_documents(filters)])  # noqa: B023
        assert received == expected, filters
        certain += compiled(filters, kinds) is not None
        refused += expected == "refused"
        some += expected != "refused" and 0 < len(expected) < len(documents)
    assert certain > 100  # most of what is asked about keys with values of one kind
    assert refused > 20
    assert some > 60


def test_filters_are_compiled_for_new_kinds_of_values(store: SearchkitDocumentStore) -> None:
    """What is known about the stored values follows what this store, and another one, write."""
    above = {"field": "meta.year", "operator": ">", "value": 2000}
    store.write_documents([Document(id="1", content="a", meta={"year": 2020})])
    assert [d.id for d in store.filter_documents(above)] == ["1"]
    store.write_documents([Document(id="2", content="b", meta={"year": True}), Document(id="3", meta={"year": 3000})])
    assert [d.id for d in store.filter_documents(above)] == ["1", "3"]
    SearchkitDocumentStore(store._folder.path).write_documents([Document(id="4", content="c", meta={"year": "x"})])
    with pytest.raises(FilterError):
        store.filter_documents(above)
    store.delete_documents(["4"])
    store.update_by_filter({"field": "id", "operator": "==", "value": "2"}, {"year": [2020]})
    with pytest.raises(FilterError, match="document '2'"):
        store.filter_documents(above)


@pytest.mark.parametrize(
    "filters", [{"operator": "AND"}, {"name": "x"}, ["x"], {"field": "meta.n", "operator": "~", "value": 1}]
)
def test_a_malformed_filter_is_refused_by_an_empty_store(
    store: SearchkitDocumentStore, filters: dict[str, Any]
) -> None:
    with pytest.raises(FilterError):
        store.filter_documents(filters)


# Documents come back equal

DOCUMENTS = [
    Document(id="empty"),
    Document(id="blank", content=" \n"),
    Document(id="no text", content="", embedding=[1 / 3] * 8),
    Document(id="NUL", content="a\0b \ud800"),
    Document(id="blob", blob=ByteStream(b"\0\xff", meta={"n": (1, 2)}, mime_type="image/png")),
    Document(id="sparse", content="x", sparse_embedding=SparseEmbedding([1, 7], [0.5, 0.1])),
    Document(id="score", content="x", score=0.1),
    Document(id="exact", content="x", embedding=[3.0, 0.1, -1e-9, 1e30, 0.0, 1.5, 2.0, 7.0]),
    Document(id="single", content="x", embedding=[0.5, 0.25, 1.0, 0.0, 0.0, 1.5, 2.0, 7.0]),
    Document(
        id="meta",
        content="x",
        meta={
            "tuple": {"range": (0, 23)}, "date": date(2024, 5, 1), "time": datetime(2024, 5, 1, 12, tzinfo=UTC),
            "big": 2**80, "set": {1, 2}, "bytes": b"\xff", 5: "five", "_haystack": {"content": "mine"},
            "a.b": [1, None], "infinite": float("inf"), "": "empty", "title": "a title", "\ud800": 1,
            "plain": {"x": [1.5, True]},
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize("similarity", ["cosine", "inner-product", "euclidean"])
def test_documents_come_back_equal(store: SearchkitDocumentStore, tmp_path: Path, similarity: Any) -> None:
    store = SearchkitDocumentStore(tmp_path / "store.index", similarity=similarity)
    assert store.write_documents(DOCUMENTS) == len(DOCUMENTS)
    assert store.filter_documents() == DOCUMENTS
    assert SearchkitDocumentStore(tmp_path / "store.index").filter_documents() == DOCUMENTS
    found = SearchkitBM25Retriever(store, return_embedding=True).run("x")["documents"]
    assert {document.id for document in found} >= {"sparse", "score", "exact", "single", "meta"}
    assert next(document for document in found if document.id == "exact").embedding == DOCUMENTS[7].embedding


def test_embeddings_need_not_be_kept_exactly(tmp_path: Path) -> None:
    store = SearchkitDocumentStore(tmp_path / "store.index", exact_embeddings=False)
    store.write_documents([Document(id="1", content="x", embedding=[3.0, 4.0])])
    (document,) = store.filter_documents()
    assert document.embedding == pytest.approx([0.6, 0.8], abs=1e-3)


def test_metadata_that_cannot_be_kept_is_refused(store: SearchkitDocumentStore) -> None:
    with pytest.raises(InputError, match=r"document '1' cannot be stored: its meta .* \(an object\); expected strings"):
        store.write_documents([Document(id="1", content="x", meta={"thing": object()})])
    assert store.count_documents() == 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"meta": None}, "its meta is None"),
        ({"embedding": 5}, "its embedding is 5"),
        ({"embedding": ["a"]}, "vector has the dtype <U1"),
        ({"embedding": [0.0]}, "vector is all zeros"),
        ({"id": " "}, "the id is empty"),
    ],
)
def test_a_document_that_cannot_be_stored_is_named(
    store: SearchkitDocumentStore, fault: dict[str, Any], message: str
) -> None:
    document = Document(**{"id": "1", "content": "x", **fault})
    with pytest.raises(InputError, match=f"document '{document.id}'.*: {message}"):
        store.write_documents([Document(id="0", content="x"), document])
    assert store.count_documents() == 0


def test_the_first_embedding_decides_the_width(store: SearchkitDocumentStore) -> None:
    store.write_documents([Document(id="1", content="x"), Document(id="2", content="y", embedding=[1.0, 0.0])])
    with pytest.raises(InputError, match=r"'3' has an embedding of 3 numbers, but .* for 2;"):
        store.write_documents([Document(id="3", content="z", embedding=[1.0, 0.0, 0.0])])
    assert store.count_documents() == 2


@pytest.mark.parametrize(
    ("policy", "written", "contents"),
    [(DuplicatePolicy.SKIP, 1, ["old", "new 2"]), (DuplicatePolicy.OVERWRITE, 2, ["newer 1", "new 2"])],
)
def test_policies_for_ids_that_exist(
    store: SearchkitDocumentStore, policy: DuplicatePolicy, written: int, contents: list[str]
) -> None:
    store.write_documents([Document(id="1", content="old")])
    new = [Document(id="1", content="new 1"), Document(id="2", content="new 2"), Document(id="1", content="newer 1")]
    with pytest.raises(DuplicateDocumentError, match="nothing was written"):
        store.write_documents(new, DuplicatePolicy.FAIL)
    with pytest.raises(DuplicateDocumentError, match="'1' exists"):
        store.write_documents(new[:2], DuplicatePolicy.NONE)
    assert store.write_documents(new, policy) == written
    assert sorted(d.content for d in store.filter_documents()) == sorted(contents)


# One folder, several stores


def test_a_store_holds_the_lock_only_while_it_writes(store: SearchkitDocumentStore) -> None:
    store.write_documents([Document(id="1", content="x")])
    other = SearchkitDocumentStore(store._folder.path)
    other.write_documents([Document(id="2", content="y")])
    assert store.count_documents() == 2
    with SearchEngine.open(store._folder.path, writable=True) as engine:
        assert store.count_documents() == len(engine) == 2


def test_files_are_closed_with_the_store_or_when_nobody_has_it(store: SearchkitDocumentStore, tmp_path: Path) -> None:
    with store:
        store.write_documents([Document(id="1", content="x")])
        assert store.count_documents() == 1
        engine = store._folder.reader()
    assert engine is not None
    with pytest.raises(StoreError, match="closed"):
        engine.reload()
    assert store.count_documents() == 1  # it opens them again
    forgotten = SearchkitDocumentStore(tmp_path / "store.index")
    engine = forgotten._folder.reader()
    assert engine is not None
    del forgotten
    gc.collect()
    with pytest.raises(StoreError, match="closed"):
        engine.reload()


def test_other_settings_than_those_of_the_index_are_refused(store: SearchkitDocumentStore) -> None:
    path = store._folder.path
    SearchkitDocumentStore(path, vectors_from="one").write_documents([Document(content="x", embedding=[1.0, 0.0])])
    for settings in (
        {"vectors_from": "two"},
        {"embedding_dim": 3},
        {"similarity": "euclidean"},
        {"language": "german"},
    ):
        with pytest.raises(StoreError, match=r"was (made|built)"):
            SearchkitDocumentStore(path, **settings).count_documents()


def test_stores_that_write_at_the_same_time_wait_for_each_other(store: SearchkitDocumentStore) -> None:
    def write(number: int) -> None:
        other = SearchkitDocumentStore(store._folder.path)
        for n in range(3):
            other.write_documents([Document(id=f"{number}-{n}", content="x")])

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(write, range(3)))
    assert {document.id for document in store.filter_documents()} == {f"{m}-{n}" for m in range(3) for n in range(3)}


@pytest.mark.parametrize("change", ["delete_by_filter", "update_by_filter"])
def test_an_empty_filter_changes_nothing(store: SearchkitDocumentStore, change: str) -> None:
    store.write_documents([Document(id="1", content="x")])
    with pytest.raises(InputError, match="the filter is empty"):
        getattr(store, change)({}, *[{"a": 1}][: change == "update_by_filter"])
    assert store.filter_documents() == [Document(id="1", content="x")]
