"""LlamaIndex: answers of its own SimpleVectorStore on random filters and queries, and what that cannot do."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guides import guide_program
from rerankers import build_reranker
from texts import TEXTS

pytest.importorskip("llama_index.core", reason="the LlamaIndex integration needs llama-index-core")

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.integrations.llama_index import (
    SearchkitEmbedding,
    SearchkitRerank,
    SearchkitRetriever,
    SearchkitVectorStore,
)
from searchkit.models.embedder import Embedder
from searchkit.models.reranker import Reranker
from searchkit.records import Document

COLOURS = ["red", "green", "blue", "Grün", "a b"]


def nodes(count: int = 60) -> list[TextNode]:
    rng, rows = random.Random(0), np.random.default_rng(0).standard_normal((count, 8))
    made = []
    for n, row in enumerate(rows):
        metadata: dict[str, Any] = {"n": n % 10, "half": n / 2, "colour": rng.choice(COLOURS), "a.b": n % 3}
        if n % 4 == 0:
            del metadata["colour"]
        if n % 5 == 0:
            metadata["none"] = None
        if n % 3 == 0:
            metadata["words"] = rng.sample(COLOURS, 2)
        node = TextNode(id_=f"node-{n}", text=f"{TEXTS[n % 30].strip()} {n}", metadata=metadata, embedding=row.tolist())
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=f"doc-{n % 7}")
        made.append(node)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SearchkitVectorStore]:
    store = SearchkitVectorStore(tmp_path / "nodes.index")
    yield store
    store.close()


def random_filter(rng: random.Random) -> MetadataFilter:
    operators = FilterOperator
    operator = rng.choice([each for each in operators if each is not operators.CONTAINS])
    ordered = {operators.GT, operators.GTE, operators.LT, operators.LTE}
    if operator in (operators.TEXT_MATCH, operators.TEXT_MATCH_INSENSITIVE):
        return MetadataFilter(key="colour", operator=operator, value=rng.choice(["r", "GR", "ü", "zz"]))
    if operator in (operators.ANY, operators.ALL):
        return MetadataFilter(key="words", operator=operator, value=rng.sample(COLOURS, 2))
    key = rng.choice(["n", "half", "a.b", "none"] + ([] if operator in ordered else ["colour", "nowhere"]))
    value: Any = rng.choice(COLOURS) if key in ("colour", "nowhere") else rng.choice([0, 1, 2.5, 7, 12.0])
    if operator in (operators.IN, operators.NIN):
        several: list[Any] = rng.sample(COLOURS, 2) if isinstance(value, str) else rng.sample([0, 1, 2, 7, 12], 2)
        return MetadataFilter(key=key, operator=operator, value=several)
    return MetadataFilter(key=key, operator=operator, value=value)


def test_answers_are_those_of_the_simple_store_on_1000_random_filters(store: SearchkitVectorStore) -> None:
    simple, rng, made = SimpleVectorStore(), random.Random(1), nodes()
    store.add(made)
    simple.add(made)
    vectors = np.random.default_rng(1).standard_normal((1000, 8))
    matched = 0
    for vector in vectors:
        filters = MetadataFilters(
            filters=[random_filter(rng) for _ in range(rng.randint(1, 3))], condition=rng.choice(list(FilterCondition))
        )
        query = VectorStoreQuery(query_embedding=vector.tolist(), similarity_top_k=rng.randint(1, 70), filters=filters)
        if rng.random() < 0.2:
            query.node_ids = rng.sample([node.node_id for node in made], 20)
        expected, found = simple.query(query), store.query(query)
        assert found.ids == list(expected.ids or []), filters
        assert found.similarities == pytest.approx(list(expected.similarities or []), abs=1e-5)
        assert [node.node_id for node in found.nodes or []] == found.ids
        matched += len(found.ids or [])
    assert matched > 5000


def test_nodes_come_back_as_they_were(store: SearchkitVectorStore) -> None:
    made = nodes(12)
    assert store.query(VectorStoreQuery(query_embedding=[0.0] * 8)).ids == []
    assert store.add(made) == [node.node_id for node in made]
    for node, back in zip(made, store.get_nodes([node.node_id for node in made]), strict=True):
        assert back.model_dump(exclude={"embedding"}) == node.model_dump(exclude={"embedding"})
    found = store.query(VectorStoreQuery(query_embedding=made[3].embedding, similarity_top_k=1)).nodes
    assert found
    assert found[0].model_dump(exclude={"embedding"}) == made[3].model_dump(exclude={"embedding"})
    colour = MetadataFilters(filters=[MetadataFilter(key="colour", value="red")])
    reds = {node.node_id for node in made if node.metadata.get("colour") == "red"}
    assert {node.node_id for node in store.get_nodes(filters=colour)} == reds != set()
    nested = MetadataFilters(
        condition=FilterCondition.NOT,
        filters=[colour, MetadataFilters(filters=[MetadataFilter(key="n", value=1)])],
    )
    expected = {node.node_id for node in made if node.node_id not in reds and node.metadata["n"] != 1}
    assert {node.node_id for node in store.get_nodes(filters=nested)} == expected


def test_nodes_are_deleted_by_document_id_and_filter(store: SearchkitVectorStore) -> None:
    made = nodes(21)
    store.add(made)
    store.delete("doc-2")
    store.delete("nothing")
    store.delete_nodes(["node-0", "unknown"])
    store.delete_nodes(filters=MetadataFilters(filters=[MetadataFilter(key="n", operator=FilterOperator.GTE, value=5)]))
    store.delete_nodes()
    expected = {n for n in range(21) if n % 7 != 2 and n != 0 and n % 10 < 5}
    assert {int(node.node_id[5:]) for node in store.get_nodes()} == expected
    store.clear()
    assert store.get_nodes() == []


def test_text_hybrid_and_mmr_queries(store: SearchkitVectorStore) -> None:
    made = nodes(30)
    store.add(made)
    engine = store.client
    assert engine is not None
    vector, mode = made[4].embedding, VectorStoreQueryMode
    by_text = store.query(VectorStoreQuery(query_str="oboe", similarity_top_k=3, mode=mode.TEXT_SEARCH))
    assert by_text.ids
    assert all("oboe" in node.get_content() for node in by_text.nodes or [])
    for alpha, expected in ((1.0, "node-4"), (0.0, by_text.ids[0])):
        query = VectorStoreQuery(
            query_str="oboe", query_embedding=vector, similarity_top_k=1, mode=mode.HYBRID, alpha=alpha
        )
        assert store.query(query).ids == [expected]
    adaptive = VectorStoreQuery(query_str="oboe", query_embedding=vector, similarity_top_k=5, mode=mode.HYBRID)
    assert store.query(adaptive).ids == [hit.id for hit in engine.search("oboe", vector=vector, k=5)]
    spread = store.query(VectorStoreQuery(query_embedding=vector, similarity_top_k=5, mode=mode.MMR, mmr_threshold=0.1))
    plain = store.query(VectorStoreQuery(query_embedding=vector, similarity_top_k=5))
    assert spread.ids
    assert plain.ids
    assert spread.ids[0] == plain.ids[0] == "node-4"
    assert set(spread.ids) != set(plain.ids)
    with pytest.raises(InputError, match="the mode svm is not supported"):
        store.query(VectorStoreQuery(query_embedding=vector, mode=mode.SVM))


def test_an_index_of_llama_index_works_on_it(tmp_path: Path) -> None:
    embedding = SearchkitEmbedding()
    with_store = SearchkitVectorStore(tmp_path / "a.index")
    context = StorageContext.from_defaults(vector_store=with_store)
    texts = [TextNode(text=text.strip(), metadata={"n": n}) for n, text in enumerate(TEXTS)]
    index = VectorStoreIndex(texts, storage_context=context, embed_model=embedding)
    found = index.as_retriever(similarity_top_k=2).retrieve("what makes bread rise")
    assert found[0].node.get_content().startswith("Bread rises")
    with_store.close()
    again = SearchkitVectorStore(tmp_path / "a.index")
    reopened = VectorStoreIndex.from_vector_store(again, embed_model=embedding)
    same = reopened.as_retriever(similarity_top_k=2).retrieve("what makes bread rise")
    assert [(each.node.node_id, each.score) for each in same] == [(each.node.node_id, each.score) for each in found]
    again.close()


def test_embeddings_are_the_embedder_s() -> None:
    embedder, told = Embedder("builtin"), "Given a claim, find documents that refute it"
    made = SearchkitEmbedding(embedder, instruction=told)
    np.testing.assert_allclose(made.get_text_embedding_batch(TEXTS), embedder.encode_passages(TEXTS), atol=1e-6)
    np.testing.assert_allclose(made.get_query_embedding("tea"), embedder.encode_queries(["tea"], told)[0], atol=1e-6)


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexes") / "notes.index"
    with SearchEngine.create(folder) as engine:
        engine.add(Document(str(n), text, f"Note {n}", {"n": n}) for n, text in enumerate(TEXTS))
    return folder


def test_a_retriever_follows_its_instruction(notes: Path) -> None:
    retriever = SearchkitRetriever(notes, k=3, instruction="Find recipes", where={"n": {"$lt": 20}})
    with SearchEngine.open(notes) as engine:
        for told, asked in (("Find recipes", retriever), ("Find boats", retriever.instructed("Find boats"))):
            expected = engine.search("sun", instruction=told, k=3, where={"n": {"$lt": 20}})
            found = asked.retrieve("sun")
            assert [(each.node.node_id, each.score) for each in found] == [(hit.id, hit.score) for hit in expected]
            assert found[0].node.metadata == {"title": expected[0].title, "n": int(expected[0].id)}
    with pytest.raises(InputError, match="embeds texts with its own model"):
        SearchkitVectorStore(notes)


def test_a_postprocessor_reranks(tmp_path: Path) -> None:
    reranker = Reranker(build_reranker(tmp_path / "model", "qwen3-lm"), device="cpu", dtype="float32")
    rerank = SearchkitRerank(reranker=reranker, top_n=3, instruction="Find recipes")
    given = [NodeWithScore(node=TextNode(id_=str(n), text=text), score=0.1) for n, text in enumerate(TEXTS)]
    found = rerank.postprocess_nodes(given, query_str="sun")
    expected = reranker.rerank("sun", TEXTS, "Find recipes", 3)
    assert [(each.node.node_id, each.score) for each in found] == [(str(n), score) for n, score in expected]
    with pytest.raises(InputError, match="without a query"):
        rerank.postprocess_nodes(given)


def test_the_program_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    program = guide_program("llama-index.md")
    exec(compile(program, "guide", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "Bread rises because yeast makes gas."
