"""Haystack's retrievers over a searchkit store: by embedding, by words, and by both."""

from __future__ import annotations

import asyncio
from typing import Any, Literal, Self

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.document_stores.types import FilterPolicy, apply_filter_policy

from searchkit.errors import InputError
from searchkit.integrations.haystack.store import Filters, SearchkitDocumentStore
from searchkit.validation import check_optional_text, described, whole_number


class _Retriever:
    """What all retrievers share: the store, and what a call may replace."""

    def __init__(
        self,
        document_store: SearchkitDocumentStore,
        *,
        filters: Filters | None = None,
        top_k: int = 10,
        filter_policy: FilterPolicy | str = FilterPolicy.REPLACE,
        return_embedding: bool = False,
    ) -> None:
        if not isinstance(document_store, SearchkitDocumentStore):
            raise InputError(f"document_store is {described(document_store)}; expected a SearchkitDocumentStore")
        self.document_store, self.filters = document_store, filters
        self.top_k = whole_number("top_k", top_k, 1)
        self.filter_policy = FilterPolicy.from_str(str(filter_policy))
        self.return_embedding = bool(return_embedding)

    def close(self) -> None:
        """Close the store's files."""
        self.document_store.close()

    def to_dict(self) -> dict[str, Any]:
        """The component as a dictionary, for pipelines that are saved."""
        return default_to_dict(self, **self._settings())  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The component of such a dictionary."""
        return default_from_dict(cls, data)  # type: ignore[no-any-return]

    def _settings(self) -> dict[str, Any]:
        return {
            "document_store": self.document_store,
            "filters": self.filters,
            "top_k": self.top_k,
            "filter_policy": self.filter_policy.value,
            "return_embedding": self.return_embedding,
        }

    def _found(
        self,
        mode: Literal["dense", "lexical", "hybrid"],
        query: str | None,
        embedding: list[float] | None,
        instruction: str | None,
        filters: Filters | None,
        top_k: int | None,
    ) -> dict[str, list[Document]]:
        documents = self.document_store.search(
            query,
            embedding=embedding,
            mode=mode,
            instruction=instruction,
            filters=apply_filter_policy(self.filter_policy, self.filters, filters),
            top_k=self.top_k if top_k is None else top_k,
            return_embedding=self.return_embedding,
        )
        return {"documents": documents}


class _EmbeddingRetriever(_Retriever):
    """What retrievers share that need the embedding of a query."""

    def __init__(
        self,
        document_store: SearchkitDocumentStore,
        *,
        text_embedder: Any = None,
        instruction: str | None = None,
        filters: Filters | None = None,
        top_k: int = 10,
        filter_policy: FilterPolicy | str = FilterPolicy.REPLACE,
        return_embedding: bool = False,
    ) -> None:
        super().__init__(
            document_store,
            filters=filters,
            top_k=top_k,
            filter_policy=filter_policy,
            return_embedding=return_embedding,
        )
        check_optional_text("instruction", instruction)
        self.text_embedder, self.instruction = text_embedder, instruction

    def warm_up(self) -> None:
        """Load the model of the text embedder."""
        if hasattr(self.text_embedder, "warm_up"):
            self.text_embedder.warm_up()

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "text_embedder": self.text_embedder, "instruction": self.instruction}

    def _embedded(
        self, query: str | None, embedding: list[float] | None, instruction: str | None
    ) -> tuple[list[float] | None, str | None]:
        """The embedding of a query, and the instruction if it is the store that embeds it."""
        check_optional_text("instruction", instruction)
        if embedding is not None:
            if instruction is not None:
                raise InputError(
                    "both query_embedding and instruction came, but an instruction is part of what is embedded; give "
                    "it to the text embedder, or leave out query_embedding"
                )
            return embedding, None
        instruction = self.instruction if instruction is None else instruction
        if self.text_embedder is None or query is None or not query.strip():
            return None, instruction
        # Other embedders than searchkit's have no instruction.
        given = {} if instruction is None else {"instruction": instruction}
        return self.text_embedder.run(text=query, **given)["embedding"], None


@component
class SearchkitEmbeddingRetriever(_EmbeddingRetriever):
    """Retrieves the documents whose embeddings are most similar to that of the query.

        SearchkitEmbeddingRetriever(store, text_embedder=SearchkitTextEmbedder()).run(query="vitamin D flu")

    Args:
        document_store: Where the documents are.
        text_embedder: Embeds the text of a query that comes without an embedding; None where the embedding always
            comes, from an embedder before it in the pipeline, or where the store has a model.
        instruction: One sentence that says what to find, unless a call brings its own.
        filters: Of Haystack.
        top_k: How many documents.
        filter_policy: Whether filters of a call replace these or are merged with them.
        return_embedding: Return the documents' embeddings, too.
    """

    @component.output_types(documents=list[Document])
    def run(
        self,
        query_embedding: list[float] | None = None,
        filters: Filters | None = None,
        top_k: int | None = None,
        query: str | None = None,
        instruction: str | None = None,
    ) -> dict[str, list[Document]]:
        """Retrieve documents.

        Args:
            query_embedding: Of the query, where it was embedded before.
            filters: For this call.
            top_k: For this call; 0 for none.
            query: The text, where it was not.
            instruction: For this call and `query`.

        Returns:
            "documents", best first.

        Raises:
            InputError: There is no query, or it has no embedding.
        """
        embedding, instruction = self._embedded(query, query_embedding, instruction)
        return self._found("dense", query, embedding, instruction, filters, top_k)

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query_embedding: list[float] | None = None,
        filters: Filters | None = None,
        top_k: int | None = None,
        query: str | None = None,
        instruction: str | None = None,
    ) -> dict[str, list[Document]]:
        """Like `run`, in a thread."""
        return await asyncio.to_thread(self.run, query_embedding, filters, top_k, query, instruction)


@component
class SearchkitBM25Retriever(_Retriever):
    """Retrieves the documents that share most with the words of the query; no embedding is needed.

    Args:
        document_store: Where the documents are.
        filters: Of Haystack.
        top_k: How many documents.
        filter_policy: Whether filters of a call replace these or are merged with them.
        return_embedding: Return the documents' embeddings, too.
    """

    @component.output_types(documents=list[Document])
    def run(self, query: str, filters: Filters | None = None, top_k: int | None = None) -> dict[str, list[Document]]:
        """Retrieve documents.

        Args:
            query: The text.
            filters: For this call.
            top_k: For this call; 0 for none.

        Returns:
            "documents", best first.

        Raises:
            InputError: The query is empty.
        """
        return self._found("lexical", query, None, None, filters, top_k)

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, filters: Filters | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Like `run`, in a thread."""
        return await asyncio.to_thread(self.run, query, filters, top_k)


@component
class SearchkitHybridRetriever(_EmbeddingRetriever):
    """Retrieves documents by their embeddings and by words together.

        SearchkitHybridRetriever(store, text_embedder=SearchkitTextEmbedder()).run("vitamin D flu")

    Args:
        document_store: Where the documents are.
        text_embedder: Embeds a query that comes without an embedding; None where the embedding always comes, from an
            embedder before it in the pipeline, or where the store has a model.
        instruction: One sentence that says what to find, unless a call brings its own.
        filters: Of Haystack.
        top_k: How many documents.
        filter_policy: Whether filters of a call replace these or are merged with them.
        return_embedding: Return the documents' embeddings, too.
    """

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        filters: Filters | None = None,
        top_k: int | None = None,
        query_embedding: list[float] | None = None,
        instruction: str | None = None,
    ) -> dict[str, list[Document]]:
        """Retrieve documents.

        Args:
            query: The text.
            filters: For this call.
            top_k: For this call; 0 for none.
            query_embedding: Of the query, where it was embedded before.
            instruction: For this call, where it was not.

        Returns:
            "documents", best first.

        Raises:
            InputError: The query is empty, or has no embedding.
        """
        embedding, instruction = self._embedded(query, query_embedding, instruction)
        return self._found("hybrid", query, embedding, instruction, filters, top_k)

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        filters: Filters | None = None,
        top_k: int | None = None,
        query_embedding: list[float] | None = None,
        instruction: str | None = None,
    ) -> dict[str, list[Document]]:
        """Like `run`, in a thread."""
        return await asyncio.to_thread(self.run, query, filters, top_k, query_embedding, instruction)
