"""Haystack's retrievers, embedders and rankers, alone and in pipelines."""

from __future__ import annotations

import os

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")  # no test reaches for the network

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guides import GUIDES
from rerankers import build_reranker
from texts import TEXTS

pytest.importorskip("haystack", reason="needs haystack-ai: pip install 'searchkit[haystack]'; see .ci/frameworks")
pytest.importorskip("pytest_asyncio", reason="an asynchronous test needs pytest-asyncio; see .ci/frameworks")

from haystack import Document, Pipeline
from haystack.components.embedders import MockTextEmbedder
from haystack.components.writers import DocumentWriter
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy
from haystack.utils.filters import document_matches_filter

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.integrations.haystack import (
    SearchkitBM25Retriever,
    SearchkitDocumentEmbedder,
    SearchkitDocumentStore,
    SearchkitEmbeddingRetriever,
    SearchkitHybridRetriever,
    SearchkitRanker,
    SearchkitTextEmbedder,
)
from searchkit.models.embedder import Embedder
from searchkit.models.reranker import Reranker
from searchkit.records import Document as StoredDocument


@pytest.fixture
def store(tmp_path: Path) -> SearchkitDocumentStore:
    return SearchkitDocumentStore(tmp_path / "store.index")


# Retrievers


def embedded(count: int = 30, width: int = 8) -> list[Document]:
    rows = np.random.default_rng(0).standard_normal((count, width))
    words = ["tea", "bread", "rain"]
    return [
        Document(id=str(n), content=f"{words[n % 3]} number {n}", meta={"n": n, "tags": [n]}, embedding=row.tolist())
        for n, row in enumerate(rows)
    ]


@pytest.mark.parametrize(
    "filters",
    [None, {"field": "meta.n", "operator": ">=", "value": 10}, {"field": "meta.tags", "operator": "!=", "value": [3]}],
    ids=["all", "compiled", "judged by Haystack"],
)
def test_dense_retrieval_equals_brute_force(store: SearchkitDocumentStore, filters: dict[str, Any] | None) -> None:
    documents = embedded()
    store.write_documents([*documents, Document(id="none", content="without an embedding", meta={"n": 99})])
    query = np.random.default_rng(1).standard_normal(8)
    allowed = [d for d in documents if filters is None or document_matches_filter(filters, d)]
    scores = {d.id: float(query @ d.embedding / np.linalg.norm(query) / np.linalg.norm(d.embedding)) for d in allowed}
    found = SearchkitEmbeddingRetriever(store, filters=filters).run(query.tolist(), top_k=5)["documents"]
    assert [d.id for d in found] == sorted(scores, key=lambda id: -scores[id])[:5]
    assert [d.score for d in found] == pytest.approx([scores[d.id] for d in found], abs=1e-3)
    assert found[0].embedding is None


def test_filters_of_a_call_replace_or_join_those_of_the_retriever(store: SearchkitDocumentStore) -> None:
    store.write_documents(embedded())
    few = {"field": "meta.n", "operator": "<", "value": 9}
    some = {"field": "meta.n", "operator": ">", "value": 3}
    every = {"operator": "AND", "conditions": [few]}
    retriever = SearchkitBM25Retriever(store, filters=every, top_k=30)
    assert {d.id for d in retriever.run("tea")["documents"]} == {"0", "3", "6"}
    assert len(retriever.run("tea", some)["documents"]) == 8
    merging = SearchkitBM25Retriever(store, filters=every, top_k=30, filter_policy=FilterPolicy.MERGE)
    assert {d.id for d in merging.run("tea", {"operator": "AND", "conditions": [some]})["documents"]} == {"6"}
    assert retriever.run("tea", top_k=0) == {"documents": []}


def test_hybrid_retrieval_is_that_of_the_engine(store: SearchkitDocumentStore) -> None:
    documents = embedded()
    store.write_documents(documents)
    query = documents[4].embedding
    found = SearchkitHybridRetriever(store).run("tea number 3", query_embedding=query)["documents"]
    with SearchEngine.open(store._folder.path) as engine:
        hits = engine.search("tea number 3", vector=query)
    assert [(d.id, d.score) for d in found] == [(hit.id, hit.score) for hit in hits]


def test_an_instruction_of_a_call_reaches_the_text_embedder(store: SearchkitDocumentStore) -> None:
    texts = ["The tea is hot", "Bread is baked", "It rains", "Where does tea grow?"]
    store.write_documents(SearchkitDocumentEmbedder().run([Document(content=text) for text in texts])["documents"])
    retriever = SearchkitEmbeddingRetriever(store, text_embedder=SearchkitTextEmbedder())
    instruction = "Given a statement, find a question about the same thing"
    plain = retriever.run(query="Tea grows in hills")["documents"]
    instructed = retriever.run(query="Tea grows in hills", instruction=instruction)["documents"]
    vector = Embedder().encode_queries(["Tea grows in hills"], instruction)[0]
    by_hand = retriever.run(vector.tolist())["documents"]
    assert [(d.id, d.score) for d in instructed] == [(d.id, pytest.approx(d.score)) for d in by_hand]
    assert [d.score for d in instructed] != [d.score for d in plain]
    with pytest.raises(InputError, match="both query_embedding and instruction"):
        retriever.run(vector.tolist(), instruction=instruction)
    with pytest.raises(InputError, match="needs the embedding of its query"):
        SearchkitHybridRetriever(store).run("tea")
    with pytest.raises(InputError, match="the query is empty"):
        SearchkitHybridRetriever(store).run(" ")


def test_an_index_of_passages_is_opened_as_it_is(tmp_path: Path) -> None:
    long = " ".join(f"Sentence {n} is about bread." for n in range(40)) + " The last one is about tea in China."
    with SearchEngine.create(tmp_path / "papers.index", chunk_tokens=32) as engine:
        engine.add([StoredDocument("1", long, title="Bread", metadata={"tags": ["a"]}), StoredDocument("2", "Rain.")])
    store = SearchkitDocumentStore(tmp_path / "papers.index")
    whole = Document(id="1", content=long, meta={"title": "Bread", "tags": ["a"]})
    assert store.filter_documents({"field": "meta.title", "operator": "==", "value": "Bread"}) == [whole]
    (found,) = SearchkitHybridRetriever(store, top_k=1).run("tea in China", instruction="Find it")["documents"]
    assert found.id == "1"
    assert found.content is not None
    assert "tea in China" in found.content
    assert len(found.content) < 300
    store.write_documents([Document(id="3", content="Coffee from Brazil")])
    (found,) = SearchkitEmbeddingRetriever(store, top_k=1).run(query="Coffee from Brazil")["documents"]
    assert found.id == "3"
    with pytest.raises(InputError, match="embeds texts with its model"):
        store.write_documents([Document(content="x", embedding=[0.0] * 384)])


def test_a_store_with_a_model_embeds_by_itself(tmp_path: Path) -> None:
    store = SearchkitDocumentStore(tmp_path / "store.index", model="builtin")
    store.write_documents([Document(id="1", content="Tea from China"), Document(id="2", content="Rain")])
    store.update_by_filter({"field": "id", "operator": "==", "value": "1"}, {"seen": True})
    (found,) = SearchkitEmbeddingRetriever(store, top_k=1).run(query="tea in China")["documents"]
    assert (found.id, found.meta) == ("1", {"seen": True})


def test_embeddings_from_a_component_and_of_the_store_rank_alike(store: SearchkitDocumentStore, tmp_path: Path) -> None:
    documents = [Document(id=str(n), content=text) for n, text in enumerate(TEXTS)]
    store.write_documents(SearchkitDocumentEmbedder().run(documents)["documents"])
    own = SearchkitEmbeddingRetriever(store, text_embedder=SearchkitTextEmbedder(), top_k=30)
    inside = SearchkitDocumentStore(tmp_path / "inside.index", model="builtin")
    inside.write_documents(documents)
    for query in (TEXTS[0][:30], "a hot drink"):
        one, other = (
            retriever.run(query=query, instruction="Find facts")["documents"]
            for retriever in (own, SearchkitEmbeddingRetriever(inside, top_k=30))
        )
        assert [d.id for d in one] == [d.id for d in other]
        assert [d.score for d in one] == pytest.approx([d.score for d in other], abs=1e-4)


# Embedders and ranker


def test_document_embedder_reads_metadata_and_leaves_documents_alone() -> None:
    documents = [Document(content="It is hot.", meta={"title": "Tea", "n": 1}), Document(content=None)]
    result = SearchkitDocumentEmbedder(meta_fields_to_embed=["title"]).run(documents)
    (row,) = Embedder().encode_passages(["Tea\nIt is hot."])
    np.testing.assert_allclose(result["documents"][0].embedding, row, atol=1e-6)
    assert result["documents"][1] is documents[1]
    assert documents[0].embedding is None
    assert result["meta"] == {"model": "builtin", "truncated": 0}


def test_components_share_one_model() -> None:
    assert SearchkitTextEmbedder().embedder is SearchkitDocumentEmbedder().embedder


@pytest.mark.parametrize("fault", [["text"], "text", None])
def test_embedders_refuse_what_they_cannot_embed(fault: Any) -> None:
    with pytest.raises(InputError, match="documents is"):
        SearchkitDocumentEmbedder().run(fault)
    with pytest.raises(InputError, match="text is"):
        SearchkitTextEmbedder().run(" " if fault == "text" else fault)


@pytest.mark.parametrize("kind", ["bert", "qwen3-lm"])
def test_ranker_orders_as_the_reranker_scores(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("transformers", reason="rerankers need the extra torch")
    folder = str(build_reranker(tmp_path / "reranker", kind))
    texts = ["tea grows in China", "bread is baked", "it rains in spring"]
    documents = [Document(id=str(n), content=text, meta={"title": "T"}) for n, text in enumerate(texts)]
    ranker = SearchkitRanker(folder, device="cpu", meta_fields_to_embed=["title"])
    found = ranker.run("tea", [*documents, documents[0]], top_k=2, instruction="Find drinks")["documents"]
    expected = Reranker(folder, device="cpu").rerank("tea", [f"T\n{text}" for text in texts], "Find drinks", 2)
    assert [(d.id, d.score) for d in found] == [(str(n), pytest.approx(score, abs=1e-5)) for n, score in expected]
    assert ranker.run("tea", []) == {"documents": []}


def test_ranker_by_an_embedder_orders_by_inner_products() -> None:
    texts = ["bread is baked", "tea grows in China"]
    documents = [Document(id=str(n), content=text) for n, text in enumerate(texts)]
    found = SearchkitRanker(embedder="builtin").run("a hot drink", documents)["documents"]
    embedder = Embedder()
    scores = embedder.encode_passages(texts) @ embedder.encode_queries(["a hot drink"])[0]
    assert [(d.id, d.score) for d in found] == [("1", pytest.approx(scores[1])), ("0", pytest.approx(scores[0]))]


# Pipelines


def test_pipelines_run_after_they_were_saved(tmp_path: Path) -> None:
    store = SearchkitDocumentStore(tmp_path / "store.index", vectors_from="builtin")
    indexing = Pipeline()
    indexing.add_component("embedder", SearchkitDocumentEmbedder(meta_fields_to_embed=["title"]))
    indexing.add_component("writer", DocumentWriter(store, policy=DuplicatePolicy.OVERWRITE))
    indexing.connect("embedder.documents", "writer.documents")
    querying = Pipeline()
    querying.add_component("embedder", SearchkitTextEmbedder(instruction="Find drinks"))
    querying.add_component("dense", SearchkitEmbeddingRetriever(store, filter_policy=FilterPolicy.MERGE))
    querying.add_component("ranker", SearchkitRanker(embedder="builtin", top_k=1))
    querying.connect("embedder.embedding", "dense.query_embedding")
    querying.connect("dense.documents", "ranker.documents")
    other = Pipeline()
    other.add_component("hybrid", SearchkitHybridRetriever(store, text_embedder=SearchkitTextEmbedder(), top_k=3))
    other.add_component("lexical", SearchkitBM25Retriever(store))
    indexing, querying, other = (
        Pipeline.loads(pipeline.dumps(), allowed_modules=["searchkit.*"]) for pipeline in (indexing, querying, other)
    )
    documents = [Document(id="1", content="Tea grows in China"), Document(id="2", content="Bread is baked")]
    assert indexing.run({"documents": documents})["writer"] == {"documents_written": 2}
    assert store.count_documents() == 2
    inputs = {"embedder": {"text": "hot drink", "instruction": "Find tea"}, "ranker": {"query": "hot drink"}}
    (found,) = querying.run(inputs)["ranker"]["documents"]
    assert found.id == "1"
    answers = other.run({"hybrid": {"query": "tea"}, "lexical": {"query": "tea"}})
    assert [d.id for d in answers["lexical"]["documents"]] == ["1"]
    assert answers["hybrid"]["documents"][0].id == "1"


@pytest.mark.asyncio
async def test_components_run_asynchronously(store: SearchkitDocumentStore) -> None:
    documents = (await SearchkitDocumentEmbedder().run_async([Document(id="1", content="Tea")]))["documents"]
    await store.write_documents_async(documents)
    query = (await SearchkitTextEmbedder().run_async("tea"))["embedding"]
    ranker = SearchkitRanker(embedder="builtin")
    for found in (
        await SearchkitEmbeddingRetriever(store).run_async(query),
        await SearchkitBM25Retriever(store).run_async("tea"),
        await SearchkitHybridRetriever(store).run_async("tea", query_embedding=query),
        await ranker.run_async("tea", documents),
    ):
        assert [d.id for d in found["documents"]] == ["1"]


def test_embedders_of_others_serve_too(store: SearchkitDocumentStore) -> None:
    store.write_documents(
        [Document(id="1", content="tea", embedding=MockTextEmbedder(dimension=8).run("tea")["embedding"])]
    )
    retriever = SearchkitEmbeddingRetriever(store, text_embedder=MockTextEmbedder(dimension=8))
    (found,) = retriever.run(query="tea")["documents"]
    assert found.score == pytest.approx(1, abs=1e-3)


def test_the_programs_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = re.findall(
        r"^```python\n(.*?)^```", (GUIDES / "haystack.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for program in programs:
        exec(compile(program, "haystack.md", "exec"), names)
    assert [document.meta["year"] for document in names["found"]] == [2017, 2015]
    assert names["answer"]["ranker"]["documents"][0].meta == {"year": 2015}
