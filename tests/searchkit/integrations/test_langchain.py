"""LangChain's own suites, and what they do not try: instructions, filters, scores, indexes of other tools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guides import guide_program
from texts import TEXTS

pytest.importorskip("langchain_core", reason="the LangChain integration needs langchain-core")
suites = pytest.importorskip("langchain_tests", reason="LangChain's suites need langchain-tests")

from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import EmbeddingsUnitTests

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.integrations.langchain import SearchkitEmbeddings, SearchkitRetriever, SearchkitVectorStore
from searchkit.models.embedder import Embedder
from searchkit.records import Document as StoredDocument


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return SearchkitEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "builtin"}


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return SearchkitEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "builtin"}


class TestVectorStoreOfOwnVectors(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VectorStore]:  # type: ignore[override]
        store = SearchkitVectorStore(tmp_path / "store.index", self.get_embeddings())
        yield store
        store.close()


class TestVectorStoreOfTheBuiltInModel(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> Iterator[VectorStore]:  # type: ignore[override]
        store = SearchkitVectorStore()  # in a temporary folder
        yield store
        store.close()


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexes") / "notes.index"
    with SearchEngine.create(folder) as engine:
        engine.add(StoredDocument(str(n), text, f"Note {n}", {"n": n}) for n, text in enumerate(TEXTS))
    return folder


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _index(self, notes: Path) -> None:
        self.folder = notes

    @property
    def retriever_constructor(self) -> type[SearchkitRetriever]:
        return SearchkitRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"index": self.folder}

    @property
    def retriever_query_example(self) -> str:
        return "why does bread rise"


def test_embeddings_are_the_embedder_s() -> None:
    told = "Given a claim, find documents that refute it"
    embedder = Embedder("builtin")
    made = SearchkitEmbeddings(embedder, instruction=told)
    np.testing.assert_allclose(made.embed_documents(TEXTS), embedder.encode_passages(TEXTS), atol=1e-6)
    np.testing.assert_allclose(made.embed_query("tea"), embedder.encode_queries(["tea"], told)[0], atol=1e-6)
    by_task = SearchkitEmbeddings(embedder, task="scifact").embed_query("tea")
    assert np.abs(np.subtract(by_task, made.embed_query("tea"))).max() > 1e-3
    with pytest.raises(InputError, match="both a task and an instruction"):
        SearchkitEmbeddings(embedder, instruction=told, task="scifact")


@pytest.fixture
def store() -> Iterator[SearchkitVectorStore]:
    store = SearchkitVectorStore.from_texts(
        TEXTS, metadatas=[{"n": n} for n in range(len(TEXTS))], ids=[str(n) for n in range(len(TEXTS))]
    )
    yield store
    store.close()


def test_a_search_follows_its_instruction_and_its_filter(store: SearchkitVectorStore) -> None:
    engine = store.engine
    assert engine is not None
    for told in ("Find recipes", "Find boats"):
        for options in ({}, {"mode": "dense"}, {"where": {"n": {"$lt": 9}}}, {"filter": {"n": {"$lt": 9}}}):
            found = store.similarity_search_with_score("water", k=3, instruction=told, **options)
            where = options.get("where") or options.get("filter")
            hits = engine.search("water", k=3, instruction=told, mode=options.get("mode", "hybrid"), where=where)
            assert [(document.id, score) for document, score in found] == [(hit.id, hit.score) for hit in hits]
    assert store.similarity_search("water", k=1, task="scifact")
    assert store.as_retriever(search_kwargs={"k": 2, "where": {"n": 3}}).invoke("water")[0].metadata == {"n": 3}


def test_relevance_lies_between_0_and_1_and_mmr_spreads(store: SearchkitVectorStore) -> None:
    relevant = store.similarity_search_with_relevance_scores("bread and yeast", k=30)
    scores = [score for _, score in relevant]
    assert scores == sorted(scores, reverse=True)
    assert 0 <= scores[-1] < scores[0] <= 1
    assert relevant[0][0].page_content.startswith("Bread rises")
    few = store.similarity_search_with_relevance_scores("bread and yeast", k=30, score_threshold=scores[3])
    assert len(few) == 4
    nearest = store.similarity_search("bread and yeast", k=3, mode="dense")
    spread = store.max_marginal_relevance_search("bread and yeast", k=3, fetch_k=30, lambda_mult=0.1)
    assert spread[0] == nearest[0]
    assert {document.id for document in spread} != {document.id for document in nearest}
    vector = store.embeddings.embed_query("bread and yeast")
    assert store.similarity_search_by_vector(vector, k=3) == nearest


def test_a_store_of_own_vectors_goes_on_where_it_was(tmp_path: Path) -> None:
    embedding = DeterministicFakeEmbedding(size=6)
    with_own = SearchkitVectorStore(tmp_path / "s.index", embedding)
    assert with_own.similarity_search("foo") == []
    with_own.add_texts(["foo", "bar"], ids=["1", "2"])
    with_own.close()
    again = SearchkitVectorStore(tmp_path / "s.index", embedding)
    expected = again.similarity_search_by_vector(embedding.embed_query("foo"), k=2)
    assert [document.id for document in expected] == ["1", "2"]
    assert again.max_marginal_relevance_search("foo", k=2, lambda_mult=1) == expected
    for wrong, message in (
        (lambda: again.similarity_search("foo", instruction="Find it"), "without any"),
        (lambda: again.similarity_search("foo", cuisine="x"), "unknown arguments cuisine"),
        (lambda: again.add_texts(["a"], ids=["1", "2"]), "1 texts and 2 ids came"),
        (lambda: again.add_texts(["a"], [{"at": {1, 2}}]), "metadata"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()
    again.close()
    other = SearchkitVectorStore(tmp_path / "s.index", DeterministicFakeEmbedding(size=7))
    with pytest.raises(InputError, match="holds vectors of 6 numbers, and 7 came"):
        other.add_texts(["x"])
    other.delete()
    assert other.get_by_ids(["1"]) == []
    other.close()


def test_a_retriever_gives_passages_of_an_index(notes: Path) -> None:
    retriever = SearchkitRetriever(index=notes, k=2, instruction="Find recipes", where={"n": {"$gte": 10}})
    with SearchEngine.open(notes) as engine:
        for call in ({}, {"instruction": "Find boats"}, {"k": 3, "mode": "lexical"}, {"where": {"n": 4}}):
            expected = engine.search(
                "sun", **{"k": 2, "instruction": "Find recipes", "where": {"n": {"$gte": 10}}, **call}
            )
            found = retriever.invoke("sun", **call)
            assert [(each.id, each.page_content) for each in found] == [(hit.id, hit.text) for hit in expected]
            assert found[0].metadata == {
                "id": expected[0].id, "title": expected[0].title, "score": expected[0].score,
                "start": expected[0].start, "stop": expected[0].stop, "n": int(expected[0].id),
            }  # fmt: skip
    assert isinstance(found[0], Document)


def test_the_program_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    program = guide_program("langchain.md")
    exec(compile(program, "guide", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "Bread rises because yeast makes gas."
