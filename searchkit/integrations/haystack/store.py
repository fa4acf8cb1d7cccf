"""A folder of searchkit as a document store of Haystack."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Self

from haystack import Document, default_from_dict, default_to_dict
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.indexer.filters import compile_filter
from searchkit.integrations.haystack.documents import to_haystack, to_stored
from searchkit.integrations.haystack.filters import Kinds, Where, compiled, matches
from searchkit.integrations.haystack.folder import FolderSettings, IndexFolder
from searchkit.integrations.haystack.metadata import different, different_counts, extremes, field_types, page_of
from searchkit.records import Document as StoredDocument
from searchkit.validation import checked_path, described, whole_number

Filters = dict[str, Any]


class SearchkitDocumentStore:
    """Documents in an index folder, which every other tool of searchkit can open.

        SearchkitDocumentStore("papers.index").write_documents(SearchkitDocumentEmbedder().run(documents)["documents"])

    The first write makes the folder. It is locked only while something is written, so that several stores, as pipelines
    make them when they are loaded, may share it; each sees what the others have written.

    Args:
        path: The index folder; one that searchkit built from a corpus is opened as it is.
        embedding_dim: Width of the embeddings; None for that of the first ones written, 768 where there are none.
        similarity: How embeddings are compared: "cosine", "inner-product" or "euclidean"; None for the cosine.
        vectors_from: A name for what makes the embeddings; a store that names another is refused.
        model: A model that embeds texts inside the store, instead of embeddings that come with documents.
        language: Language of stemming and stop words, "none" for neither; None for English.
        device: Where the model runs and vectors are searched; None for the best available.
        exact_embeddings: Give embeddings back exactly, which takes 5 or 11 bytes a number; otherwise as the index keeps
            them, with the cosine at unit length.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        embedding_dim: int | None = None,
        similarity: Literal["cosine", "inner-product", "euclidean"] | None = None,
        vectors_from: str | None = None,
        model: str | None = None,
        language: str | None = None,
        device: str | None = None,
        exact_embeddings: bool = True,
    ) -> None:
        if embedding_dim is not None:
            whole_number("embedding_dim", embedding_dim, 1)
        settings = FolderSettings(embedding_dim, similarity, vectors_from, model, language, device)
        self._folder = IndexFolder(checked_path("path", path), settings)
        self._exact = bool(exact_embeddings)
        self._kinds: Kinds | None = None
        self._noting = Lock()

    def close(self) -> None:
        """Close the files; the store opens them again when it is used again."""
        self._folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def to_dict(self) -> dict[str, Any]:
        """The store as a dictionary, for pipelines that are saved."""
        settings = self._folder.settings
        return default_to_dict(  # type: ignore[no-any-return]
            self,
            path=str(self._folder.path),
            embedding_dim=settings.dim,
            similarity=settings.similarity,
            vectors_from=settings.vectors_from,
            model=settings.model,
            language=settings.language,
            device=settings.device,
            exact_embeddings=self._exact,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The store of such a dictionary."""
        return default_from_dict(cls, data)  # type: ignore[no-any-return]

    # Reading

    def count_documents(self) -> int:
        """How many documents there are."""
        engine = self._folder.reader()
        return 0 if engine is None else len(engine)

    def filter_documents(self, filters: Filters | None = None) -> list[Document]:
        """The documents that match, in the order they were written; all without a filter.

        Raises:
            haystack.errors.FilterError: The filter is malformed, or compares what has no order.
        """
        return list(self._matching(filters))

    def _matching(self, filters: Filters | None, *, embedded: bool = True) -> Iterator[Document]:
        """The documents that match, in order, with or without their embeddings."""
        engine = self._folder.reader()
        where = self._where(engine, filters)
        if engine is None:
            return
        if filters and where is not None:
            positions, _ = engine.store.matching(compile_filter(where), engine.snapshot)
            for position in positions.tolist():
                _, stored = engine.store.documents.document(position)
                found = StoredDocument(stored.id, stored.text, stored.title, json.loads(stored.metadata))
                yield _as_haystack(engine, found, embedded=embedded)
            return
        whole = "embedding" in repr(filters)  # filters on embeddings are rare, and reading embeddings takes longest
        for document in engine.documents():
            if not filters or matches(filters, _as_haystack(engine, document, embedded=whole)):
                yield _as_haystack(engine, document, embedded=embedded)

    def _ids(self, filters: Filters) -> list[str]:
        return [document.id for document in self._matching(filters, embedded=False)]

    def _where(self, engine: SearchEngine | None, filters: Filters | None) -> Where | None:
        """What selects the matching documents; None where Haystack has to judge each, and without a filter."""
        if not filters:
            return None
        if engine is None or not len(engine):
            matches(filters, Document(id="-"))  # a mistake is reported where there are no documents, too
            return None
        with self._noting:
            generation = engine.snapshot.generation
            if self._kinds is None or self._kinds.generation != generation:
                self._kinds = Kinds.of(engine.store.documents, generation)
            return compiled(filters, self._kinds)

    def search(
        self,
        query: str | None = None,
        *,
        embedding: list[float] | None = None,
        mode: Literal["dense", "lexical", "hybrid"] = "hybrid",
        instruction: str | None = None,
        filters: Filters | None = None,
        top_k: int = 10,
        return_embedding: bool = False,
    ) -> list[Document]:
        """The best documents for a query; what retrievers call.

        Args:
            query: Its text; None for a dense search by its embedding alone.
            embedding: Its embedding; None for a lexical search, and where the index has a model that makes it.
            mode: What they are ranked by.
            instruction: One sentence that says what to find, for the model of the index.
            filters: Of Haystack.
            top_k: How many; 0 for none.
            return_embedding: Return their embeddings, too.

        Returns:
            Documents with their scores, best first; of a document that was split when it was indexed, the best passage.

        Raises:
            InputError: The query is empty, or has no embedding where the mode needs one.
        """
        query = query if query is None or query.strip() else None
        top_k = whole_number("top_k", top_k, 0)
        if query is None and (embedding is None or mode == "lexical"):
            raise InputError("the query is empty; give a text to search for")
        engine = self._folder.reader()
        where = self._where(engine, filters)
        if engine is None or top_k == 0:
            return []
        if not engine.has_model and mode != "lexical" and embedding is None:
            raise InputError(
                f"a {mode} search needs the embedding of its query: give query_embedding, or give the retriever a "
                "text_embedder; SearchkitBM25Retriever needs none"
            )
        if filters and where is None:
            where = {"_id": {"$in": self._ids(filters)}}
        # Hybrid on purpose without a text: by the embedding alone.
        hits = engine.search(query, vector=embedding, instruction=instruction, k=top_k, mode=mode, where=where)
        return [
            _as_haystack(
                engine,
                StoredDocument(hit.id, hit.text, hit.title, hit.metadata),
                score=hit.score,
                embedded=return_embedding,
            )
            for hit in hits
        ]

    # Writing

    def write_documents(self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Write documents, also those without an embedding, which are found lexically.

        Args:
            documents: To write.
            policy: What happens to one whose id exists: nothing is written (FAIL, which NONE stands for), it is left
                out (SKIP), or it replaces the one that exists (OVERWRITE).

        Returns:
            How many were written.

        Raises:
            DuplicateDocumentError: By that policy.
            InputError: A document cannot be stored.
        """
        stored = self._checked(documents, policy)
        if not stored:
            return 0
        with self._writer(list(stored.values())) as engine:
            if policy is not DuplicatePolicy.OVERWRITE:
                known = engine.store.documents.known_ids(list(stored))
                if known and policy is not DuplicatePolicy.SKIP:
                    raise DuplicateDocumentError(
                        f"document {min(known)!r} exists, so nothing was written; DuplicatePolicy.OVERWRITE replaces "
                        "those that exist, SKIP leaves them as they are"
                    )
                stored = {id: document for id, document in stored.items() if id not in known}
            _add(engine, list(stored.values()))
        return len(stored)

    def _checked(self, documents: object, policy: DuplicatePolicy) -> dict[str, StoredDocument]:
        """Documents as they are stored, by id."""
        if isinstance(documents, str | Document) or not isinstance(documents, Iterable):
            raise InputError(f"documents is {described(documents)}; expected a list of haystack.Document")
        if not isinstance(policy, DuplicatePolicy):
            raise InputError(f"policy is {described(policy)}; expected one of DuplicatePolicy, such as SKIP")
        stored: dict[str, StoredDocument] = {}
        for document in documents:
            if not isinstance(document, Document):
                raise InputError(f"documents hold {described(document)}; expected haystack.Document")
            if document.id in stored:
                if policy is DuplicatePolicy.SKIP:
                    continue
                if policy is not DuplicatePolicy.OVERWRITE:
                    raise DuplicateDocumentError(f"document {document.id!r} came twice, so nothing was written")
            stored[document.id] = to_stored(document, exact=self._exact)
        return stored

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete documents; unknown ids are ignored."""
        if self.count_documents():
            with self._writer() as engine:
                engine.delete(document_ids)

    def delete_all_documents(self) -> None:
        """Delete all documents, and free their space."""
        if self.count_documents():
            with self._writer() as engine:
                engine.delete(where={})
                engine.compact()

    def delete_by_filter(self, filters: Filters) -> int:
        """Delete the documents that match; returns how many."""
        ids = self._ids(_given(filters))
        if not ids:
            return 0
        with self._writer() as engine:
            return engine.delete(ids)[0]

    def update_by_filter(self, filters: Filters, meta: dict[str, Any]) -> int:
        """Set metadata of the documents that match, beside what they have; returns how many."""
        found = [replace(document, meta={**document.meta, **meta}) for document in self._matching(_given(filters))]
        stored = [to_stored(document, exact=self._exact) for document in found]
        if stored:
            with self._writer(stored) as engine:
                _add(engine, stored)
        return len(stored)

    @contextmanager
    def _writer(self, documents: Sequence[StoredDocument] = ()) -> Iterator[SearchEngine]:
        """The index for writing documents; what is known of all metadata stays known if nobody else has written."""
        with self._folder.writer(documents) as engine:
            before = engine.snapshot.generation
            yield engine
            with self._noting:
                if self._kinds is not None and self._kinds.generation >= before:
                    for document in documents:
                        self._kinds.add(document.metadata)
                    self._kinds.generation = engine.snapshot.generation

    # What is in the metadata

    def count_documents_by_filter(self, filters: Filters) -> int:
        """How many documents match."""
        return len(self._ids(filters)) if filters else self.count_documents()

    def count_unique_metadata_by_filter(self, filters: Filters, metadata_fields: list[str]) -> dict[str, int]:
        """How many different values some keys have in the documents that match."""
        return different_counts(list(self._matching(filters, embedded=False)), metadata_fields)

    def get_metadata_fields_info(self) -> dict[str, dict[str, str]]:
        """The type of each key's values."""
        return field_types(self._matching(None, embedded=False))

    def get_metadata_field_min_max(self, metadata_field: str) -> dict[str, Any]:
        """The least ("min") and the greatest ("max") value of a key; None where there is none."""
        return extremes(self._matching(None, embedded=False), metadata_field)

    def get_metadata_field_unique_values(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: Filters | None = None,
    ) -> tuple[list[Any], int]:
        """Some of the different values of a key that contain a term, in order, and how many there are."""
        values = different(self._matching(filters, embedded=False), metadata_field)
        return page_of(values, search_term, from_, size)

    # The same in a thread, so that an event loop goes on

    async def count_documents_async(self) -> int:
        """Like `count_documents`."""
        return await asyncio.to_thread(self.count_documents)

    async def filter_documents_async(self, filters: Filters | None = None) -> list[Document]:
        """Like `filter_documents`."""
        return await asyncio.to_thread(self.filter_documents, filters)

    async def write_documents_async(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Like `write_documents`."""
        return await asyncio.to_thread(self.write_documents, documents, policy)

    async def delete_documents_async(self, document_ids: list[str]) -> None:
        """Like `delete_documents`."""
        await asyncio.to_thread(self.delete_documents, document_ids)

    async def delete_all_documents_async(self) -> None:
        """Like `delete_all_documents`."""
        await asyncio.to_thread(self.delete_all_documents)

    async def delete_by_filter_async(self, filters: Filters) -> int:
        """Like `delete_by_filter`."""
        return await asyncio.to_thread(self.delete_by_filter, filters)

    async def update_by_filter_async(self, filters: Filters, meta: dict[str, Any]) -> int:
        """Like `update_by_filter`."""
        return await asyncio.to_thread(self.update_by_filter, filters, meta)

    async def count_documents_by_filter_async(self, filters: Filters) -> int:
        """Like `count_documents_by_filter`."""
        return await asyncio.to_thread(self.count_documents_by_filter, filters)

    async def count_unique_metadata_by_filter_async(
        self, filters: Filters, metadata_fields: list[str]
    ) -> dict[str, int]:
        """Like `count_unique_metadata_by_filter`."""
        return await asyncio.to_thread(self.count_unique_metadata_by_filter, filters, metadata_fields)

    async def get_metadata_fields_info_async(self) -> dict[str, dict[str, str]]:
        """Like `get_metadata_fields_info`."""
        return await asyncio.to_thread(self.get_metadata_fields_info)

    async def get_metadata_field_min_max_async(self, metadata_field: str) -> dict[str, Any]:
        """Like `get_metadata_field_min_max`."""
        return await asyncio.to_thread(self.get_metadata_field_min_max, metadata_field)

    async def get_metadata_field_unique_values_async(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: Filters | None = None,
    ) -> tuple[list[Any], int]:
        """Like `get_metadata_field_unique_values`."""
        return await asyncio.to_thread(
            self.get_metadata_field_unique_values, metadata_field, search_term, from_, size, filters
        )


def _given(filters: Filters) -> Filters:
    """A filter that says which documents to change; an empty one would change all."""
    if not filters:
        raise InputError("the filter is empty; to delete everything: delete_all_documents()")
    return filters


def _add(engine: SearchEngine, documents: Sequence[StoredDocument]) -> None:
    """Add documents, or put them in place of those with the same id."""
    vectors = None if engine.has_model else [document.vector for document in documents]
    for document in documents if vectors else ():
        if document.vector is not None and len(document.vector) != engine.dim:
            raise InputError(
                f"document {document.id!r} has an embedding of {len(document.vector)} numbers, but "
                f"{engine.store.folder} was made for {engine.dim}; use the embedder it was made with, or make another "
                f"store, with embedding_dim={len(document.vector)}"
            )
    engine.add(documents, vectors=vectors, update=True)


def _as_haystack(
    engine: SearchEngine, stored: StoredDocument, *, score: float | None = None, embedded: bool = True
) -> Document:
    """A stored document; its embedding is the vector in the index where it was not kept exactly."""
    document = to_haystack(stored.id, stored.text, stored.title, stored.metadata, score=score, embedded=embedded)
    if not embedded or document.embedding is not None or engine.has_model:
        return document
    found = engine.vectors_by_id([document.id])
    return replace(document, embedding=found[document.id][0].tolist()) if found else document
