"""searchkit as LlamaIndex's vector store, embedding, retriever and postprocessor; searches may have an instruction."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from searchkit.engine import SearchEngine
from searchkit.errors import InputError, MissingExtraError
from searchkit.indexer.filters import compile_filter, written_part
from searchkit.integrations.lazy_index import LazyIndex
from searchkit.models.embedder import DEFAULT_MODEL, Embedder
from searchkit.models.reranker import Reranker
from searchkit.ranking import SearchOptions
from searchkit.records import Document, Hit
from searchkit.request import chosen_instruction

try:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr
    from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
    from llama_index.core.vector_stores.types import (
        BasePydanticVectorStore,
        FilterCondition,
        FilterOperator,
        MetadataFilter,
        MetadataFilters,
        VectorStoreQuery,
        VectorStoreQueryMode,
        VectorStoreQueryResult,
    )
    from llama_index.core.vector_stores.utils import (
        build_metadata_filter_fn,
        metadata_dict_to_node,
        node_to_metadata_dict,
    )
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f"the LlamaIndex integration needs {error.name}: pip install 'searchkit[llama-index]'", name=error.name
    ) from error

# Operators that our filters have too, and mean the same for values that are not lists.
_OPERATORS = {
    FilterOperator.EQ: "$eq", FilterOperator.NE: "$ne", FilterOperator.GT: "$gt", FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt", FilterOperator.LTE: "$lte", FilterOperator.IN: "$in", FilterOperator.NIN: "$nin",
}  # fmt: skip
_CONDITIONS = {FilterCondition.AND: "$and", FilterCondition.OR: "$or", FilterCondition.NOT: "$nor"}
_UNSEARCHABLE = re.compile(r'^$|["\\\x00-\x1f]')  # keys that our filters cannot name
_MMR_CANDIDATES = 4  # times as many as are wanted


class SearchkitEmbedding(BaseEmbedding):
    """An embedder of searchkit as LlamaIndex's embedding.

        SearchkitEmbedding(instruction="Given a claim, find documents that refute it")

    Args:
        model: The built-in model, a folder, a hub id, or a loaded :class:`searchkit.Embedder`.
        instruction: What queries look for, in one sentence; None for the model's default, "" for none.
        task: A named task instead.
        options: Further arguments of `BaseEmbedding`.
    """

    instruction: str | None = None
    _embedder: Embedder = PrivateAttr()

    def __init__(
        self,
        model: str | Path | Embedder = DEFAULT_MODEL,
        *,
        instruction: str | None = None,
        task: str | None = None,
        **options: Any,
    ) -> None:
        embedder = model if isinstance(model, Embedder) else Embedder(model)
        super().__init__(model_name=embedder.name, instruction=chosen_instruction(instruction, task), **options)
        self._embedder = embedder

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embedder.encode_queries([query], self.instruction)[0].tolist()  # type: ignore[no-any-return]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.encode_passages(texts).tolist()  # type: ignore[no-any-return]


class SearchkitVectorStore(BasePydanticVectorStore):
    """An index of searchkit that holds LlamaIndex's nodes with the vectors that LlamaIndex made.

        store = SearchkitVectorStore("nodes.index")
        index = VectorStoreIndex(nodes, storage_context=StorageContext.from_defaults(vector_store=store))

    Queries: by vector, by text (`TEXT_SEARCH`, `SPARSE`), both (`HYBRID`; `alpha` is the weight of vectors, which
    without it follows the strength of the lexical match) and `MMR`. Filters are those of `SimpleVectorStore`, and may
    be nested; true and false are not numbers, and an operator matches a list where it matches one of its elements.

    Args:
        path: Folder of the index, made with the first nodes; None for a temporary one.
        settings: Further arguments of `SearchEngine.create`, such as `language`.
    """

    stores_text: bool = True
    _index: LazyIndex = PrivateAttr()

    def __init__(self, path: str | Path | None = None, **settings: Any) -> None:
        super().__init__(stores_text=True)
        self._index = LazyIndex(path, **settings)
        if self._index.engine is not None and self._index.engine.has_model:
            self._index.close()
            raise InputError(f"{path} embeds texts with its own model; search it with SearchkitRetriever")

    @classmethod
    def class_name(cls) -> str:
        """Its name in LlamaIndex's files."""
        return "SearchkitVectorStore"

    @property
    def client(self) -> SearchEngine | None:
        """The index; None while it is empty."""
        return self._index.engine

    def close(self) -> None:
        """Release the folder."""
        self._index.close()

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes, or replace those whose id is known.

        Raises:
            InputError: A node has no text, or its metadata are not JSON.
            ValueError: A node has no embedding.
        """
        rows = {node.node_id: (_as_document(node), node.get_embedding()) for node in nodes}
        if rows:
            documents, vectors = zip(*rows.values(), strict=True)
            self._index.made(len(vectors[0])).add(list(documents), vectors=list(vectors), update=True)
        return [node.node_id for node in nodes]

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Nodes by id, by a filter, or all."""
        if (engine := self.client) is None:
            return []
        documents = list(engine) if node_ids is None else [engine.get(id) for id in node_ids]
        allowed = None if filters is None else _matching(engine, filters)
        return [
            _as_node(each.metadata, each.text)
            for each in documents
            if each is not None and (allowed is None or each.id in allowed)
        ]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document."""
        if (engine := self.client) is not None:
            filters = MetadataFilters(filters=[MetadataFilter(key="ref_doc_id", value=ref_doc_id)])
            engine.delete(_matching(engine, filters))

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete nodes by id, by a filter, or by both."""
        if (engine := self.client) is not None and not node_ids is filters is None:
            engine.delete([node.node_id for node in self.get_nodes(node_ids, filters)])

    def clear(self) -> None:
        """Delete all nodes."""
        if (engine := self.client) is not None:
            engine.delete([document.id for document in engine])

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Search; similarities are cosines, or fused or BM25 scores where text is searched."""
        engine = self.client
        if engine is None or not len(engine):
            return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
        conditions: list[dict[str, Any]] = []
        if query.filters is not None:
            conditions.append(as_where(engine, query.filters))
        if query.node_ids:  # LlamaIndex passes an empty list where it means all
            conditions.append({"_id": {"$in": list(query.node_ids)}})
        if query.doc_ids:
            conditions.append({"ref_doc_id": {"$in": list(query.doc_ids)}})
        where = {"$and": conditions} if conditions else None
        if query.mode == VectorStoreQueryMode.MMR:
            return self._spread(engine, query, where, kwargs.get("mmr_threshold", query.mmr_threshold))
        return _result(_search(engine, query, where))

    def _spread(
        self, engine: SearchEngine, query: VectorStoreQuery, where: dict[str, Any] | None, threshold: float | None
    ) -> VectorStoreQueryResult:
        wanted = query.similarity_top_k
        hits = engine.search(vector=query.query_embedding, k=_MMR_CANDIDATES * wanted, mode="dense", where=where)
        vectors = engine.vectors_by_id([hit.id for hit in hits])
        by_id = {hit.id: hit for hit in hits}
        scores, ids = get_top_k_mmr_embeddings(
            query.query_embedding,
            [vectors[hit.id][0].tolist() for hit in hits],
            similarity_top_k=wanted,
            embedding_ids=[hit.id for hit in hits],
            mmr_threshold=threshold,
        )
        nodes = [_as_node(by_id[id].metadata, by_id[id].text) for id in ids]
        return VectorStoreQueryResult(nodes=nodes, similarities=[float(score) for score in scores], ids=list(ids))


class SearchkitRetriever(BaseRetriever):
    """Searches an index, of whatever tool made it; nodes are its passages.

        retriever = SearchkitRetriever("papers.index", instruction="Given a claim, find documents that refute it")
        retriever.retrieve("vitamin D and flu")
        retriever.instructed("Given a claim, find documents that support it").retrieve("vitamin D and flu")

    Args:
        index: Folder of the index, or an open engine.
        k: Documents a query.
        mode: "dense", "lexical" or "hybrid".
        instruction: What to find, in one sentence; None for the model's default, "" for none.
        task: A named task instead.
        where: A filter on metadata, in searchkit's form.
        rerank: A model that reads the first hits together with the query.
    """

    def __init__(
        self,
        index: str | Path | SearchEngine,
        *,
        k: int = 10,
        mode: str = "hybrid",
        instruction: str | None = None,
        task: str | None = None,
        where: dict[str, Any] | None = None,
        rerank: Reranker | None = None,
    ) -> None:
        super().__init__()
        self._engine = index if isinstance(index, SearchEngine) else SearchEngine.open(index)
        instruction = chosen_instruction(instruction, task)
        self._search: dict[str, Any] = {
            "k": k, "mode": mode, "instruction": instruction, "where": where, "rerank": rerank,
        }  # fmt: skip

    def instructed(self, instruction: str | None) -> SearchkitRetriever:
        """A retriever of the same index and settings with another instruction."""
        return SearchkitRetriever(self._engine, **{**self._search, "instruction": instruction})

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = self._engine.search(query_bundle.query_str, **self._search)
        return [NodeWithScore(node=_as_passage(hit), score=hit.score) for hit in hits]


class SearchkitRerank(BaseNodePostprocessor):
    """Puts nodes in the order of a reranker, with its scores.

    SearchkitRerank(reranker=Reranker("Qwen/Qwen3-Reranker-0.6B"), top_n=3, instruction="Find trials")
    """

    reranker: Any = Field(description="A searchkit.Reranker.")
    top_n: int | None = Field(default=None, description="Nodes to keep; None for all.")
    instruction: str | None = Field(default=None, description="What is relevant, in one sentence.")

    @classmethod
    def class_name(cls) -> str:
        """Its name in LlamaIndex's files."""
        return "SearchkitRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InputError("nodes came without a query; a reranker reads both together")
        texts = [each.node.get_content(metadata_mode=MetadataMode.EMBED) for each in nodes]
        order = self.reranker.rerank(query_bundle.query_str, texts, self.instruction, self.top_n)
        return [NodeWithScore(node=nodes[index].node, score=score) for index, score in order]


def _search(engine: SearchEngine, query: VectorStoreQuery, where: dict[str, Any] | None) -> list[Hit]:
    modes = VectorStoreQueryMode
    if query.mode == modes.DEFAULT:
        return engine.search(vector=query.query_embedding, k=query.similarity_top_k, mode="dense", where=where)
    if query.mode in (modes.SPARSE, modes.TEXT_SEARCH):
        k = query.sparse_top_k or query.similarity_top_k
        return engine.search(query.query_str, k=k, mode="lexical", where=where)
    if query.mode in (modes.HYBRID, modes.SEMANTIC_HYBRID):
        options = SearchOptions(where=where)
        if query.alpha is not None:
            options = SearchOptions(where=where, fusion="weighted", dense_weight=query.alpha)
        k = query.hybrid_top_k or query.similarity_top_k
        return engine.search(query.query_str, vector=query.query_embedding, k=k, options=options)
    raise InputError(f"the mode {query.mode.value} is not supported; expected default, hybrid, text_search or mmr")


def _result(hits: list[Hit]) -> VectorStoreQueryResult:
    return VectorStoreQueryResult(
        nodes=[_as_node(hit.metadata, hit.text) for hit in hits],
        similarities=[hit.score for hit in hits],
        ids=[hit.id for hit in hits],
    )


def as_where(engine: SearchEngine, filters: MetadataFilters) -> dict[str, Any]:
    """LlamaIndex's filters as one of ours; what ours cannot say is looked up in all documents, as a list of ids."""
    parts = []
    for each in filters.filters:
        if isinstance(each, MetadataFilters):
            parts.append(as_where(engine, each))
        elif each.operator in _OPERATORS and each.value is not None and not _UNSEARCHABLE.search(each.key):
            parts.append({written_part(each.key, first=True): {_OPERATORS[each.operator]: each.value}})
        else:
            parts.append({"_id": {"$in": _looked_up(engine, each)}})
    if not parts:
        return {}
    return {_CONDITIONS[filters.condition or FilterCondition.AND]: parts}


def _looked_up(engine: SearchEngine, condition: MetadataFilter) -> list[str]:
    metadata = {document.id: document.metadata for document in engine}
    matches = build_metadata_filter_fn(metadata.__getitem__, MetadataFilters(filters=[condition]))
    return [id for id in metadata if matches(id)]


def _matching(engine: SearchEngine, filters: MetadataFilters) -> set[str]:
    documents = engine.store.documents
    found, _, _ = documents.matching(compile_filter(as_where(engine, filters)), engine.snapshot.next_doc)
    return set(documents.ids_of(found.tolist()).values())


def _as_document(node: BaseNode) -> Document:
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    return Document(node.node_id, text, metadata=node_to_metadata_dict(node, remove_text=True))


def _as_node(metadata: dict[str, Any], text: str) -> BaseNode:
    return metadata_dict_to_node(metadata, text=text)


def _as_passage(hit: Hit) -> TextNode:
    title = {"title": hit.title} if hit.title else {}
    return TextNode(
        id_=hit.id, text=hit.text, metadata=title | hit.metadata, start_char_idx=hit.start, end_char_idx=hit.stop
    )
