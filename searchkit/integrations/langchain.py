"""searchkit as LangChain's embeddings, vector store and retriever; every search may have an instruction."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.engine import SearchEngine
from searchkit.errors import InputError, MissingExtraError
from searchkit.integrations.lazy_index import LazyIndex
from searchkit.models.embedder import DEFAULT_MODEL, Embedder
from searchkit.models.reranker import Reranker
from searchkit.records import Document as StoredDocument
from searchkit.records import Hit
from searchkit.request import chosen_instruction

try:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.vectorstores import VectorStore
    from langchain_core.vectorstores.utils import maximal_marginal_relevance
    from pydantic import ConfigDict, PrivateAttr
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f"the LangChain integration needs {error.name}: pip install 'searchkit[langchain]'", name=error.name
    ) from error


class SearchkitEmbeddings(Embeddings):
    """An embedder of searchkit as LangChain's `Embeddings`.

        SearchkitEmbeddings(instruction="Given a claim, find documents that refute it")

    Args:
        model: The built-in model, a folder, a hub id, or a loaded :class:`searchkit.Embedder`.
        instruction: What queries look for, in one sentence; None for the model's default, "" for none.
        task: A named task instead.
        options: Further arguments of :class:`searchkit.Embedder`.
    """

    def __init__(
        self,
        model: str | Path | Embedder = DEFAULT_MODEL,
        *,
        instruction: str | None = None,
        task: str | None = None,
        **options: Any,
    ) -> None:
        self.instruction = chosen_instruction(instruction, task)
        self.embedder = model if isinstance(model, Embedder) else Embedder(model, **options)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """The vectors of passages."""
        return self.embedder.encode_passages(texts).tolist()  # type: ignore[no-any-return]

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query under the instruction."""
        return self.embedder.encode_queries([text], self.instruction)[0].tolist()  # type: ignore[no-any-return]


class SearchkitVectorStore(VectorStore):
    """An index of searchkit as LangChain's vector store; every document is one passage.

        store = SearchkitVectorStore("notes.index")
        store.add_texts(["Bread rises because yeast makes gas."], [{"topic": "baking"}])
        store.similarity_search("why does dough grow", k=1, instruction="Find an explanation")

    Without an `embedding` the index embeds texts with its own model, and searches take an `instruction` or a `task`.
    With one, its vectors are stored and searched.

    Args:
        path: Folder of the index, made if it is missing; None for a temporary one.
        embedding: What makes vectors; None for a model of searchkit.
        model: That model, where a new index is made.
        mode: "dense", "lexical" or "hybrid".
        settings: Further arguments of `SearchEngine.create`, such as `language`.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        embedding: Embeddings | None = None,
        *,
        model: str | Path | Embedder | None = None,
        mode: str = "hybrid",
        **settings: Any,
    ) -> None:
        if embedding is not None and model is not None:
            raise InputError("both embedding and model came; give what makes the vectors once")
        self._embedding, self._mode = embedding, mode
        own = embedding is None
        self._index = LazyIndex(path, model=(model or DEFAULT_MODEL) if own else None, **settings)
        if not own and self._index.engine is not None and self._index.engine.has_model:
            self._index.close()
            raise InputError(f"{path} embeds texts with its own model; open it without an embedding")

    @property
    def engine(self) -> SearchEngine | None:
        """The index; None while it is empty and the width of its vectors is unknown."""
        return self._index.engine

    @property
    def embeddings(self) -> Embeddings:
        """What makes vectors."""
        return self._embedding or SearchkitEmbeddings(self._made().embedder)

    def close(self) -> None:
        """Release the folder."""
        self._index.close()

    # Changing

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts, or replace those whose id is known; texts without an id get a random one.

        Raises:
            InputError: A text is empty, metadata are not JSON, or lists are not of one length.
        """
        _no_others(kwargs)
        texts = list(texts)
        for name, values in {"metadatas": metadatas, "ids": ids}.items():
            if values is not None and len(values) != len(texts):
                raise InputError(f"{len(texts)} texts and {len(values)} {name} came; expected as many of both")
        given = [str(uuid.uuid4()) if id is None else id for id in ids or [None] * len(texts)]
        described = metadatas or [{} for _ in texts]
        rows = {
            id: StoredDocument(id, text, metadata=dict(metadata))
            for id, text, metadata in zip(given, texts, described, strict=True)
        }  # of an id that comes twice the last one counts
        if not rows:
            return []
        if self._embedding is None:
            self._made().add(rows.values(), update=True)
            return given
        vectors = self._embedding.embed_documents([row.text for row in rows.values()])
        if len(vectors) != len(rows):
            raise InputError(f"{len(rows)} texts were embedded as {len(vectors)} vectors; expected as many")
        self._index.made(len(vectors[0])).add(list(rows.values()), vectors=vectors, update=True)
        return given

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Delete documents by their ids, all without; unknown ids are ignored."""
        _no_others(kwargs)
        if (engine := self.engine) is not None:
            engine.delete([document.id for document in engine] if ids is None else ids)
        return True

    # Reading

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Documents in the order of their ids; unknown ids are left out."""
        engine = self.engine
        found = [] if engine is None else [engine.get(id) for id in ids]
        return [_as_langchain(document) for document in found if document is not None]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The k best documents for a query.

        Args:
            query: What to search for.
            k: How many.
            kwargs: `filter` or `where`, a filter on metadata such as {"year": {"$gte": 2015}}; `instruction` or
                `task`; `mode`; `rerank` and `rerank_depth`, as `SearchEngine.search` takes them.
        """
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """Like `similarity_search`, with scores: higher is better, comparable within one answer."""
        options = _options(kwargs, self._mode)
        if (engine := self.engine) is None:
            return []
        if self._embedding is not None:
            if options.get("instruction") or options.get("task"):
                raise InputError("an instruction came, and vectors are made by an embedding without any; omit it")
            if options["mode"] != "lexical":
                options["vector"] = self._embedding.embed_query(query)
        return self._documents(engine, engine.search(query, k=k, **options))

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """The k nearest documents to a vector."""
        options = {**_options(kwargs, "dense"), "mode": "dense"}
        if (engine := self.engine) is None:
            return []
        hits = engine.search(vector=embedding, k=k, **options)
        return [document for document, _ in self._documents(engine, hits)]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """k of the `fetch_k` best documents that are near the query and far from each other."""
        options = {**_options(kwargs, "dense"), "mode": "dense"}
        instruction = chosen_instruction(options.pop("instruction", None), options.pop("task", None))
        if (engine := self.engine) is None:
            return []
        if self._embedding is None:
            vector = engine.embed([query], instruction)[0].tolist()
        else:
            vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, **options)

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Like `max_marginal_relevance_search`, for a vector."""
        documents = self.similarity_search_by_vector(embedding, fetch_k, **kwargs)
        if not documents or self.engine is None:
            return []
        vectors = self.engine.vectors_by_id([document.id or "" for document in documents])
        rows = [vectors[document.id or ""][0].tolist() for document in documents]
        chosen = maximal_marginal_relevance(np.asarray(embedding, np.float32), rows, lambda_mult, k)
        return [documents[position] for position in chosen]

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """By vectors alone, since fused scores have no fixed scale: cosines, from -1..1 to 0..1."""
        if (engine := self.engine) is not None and engine.storage.similarity.name != "cosine":
            raise InputError(f"relevance scores are cosines, and {self._index.path} compares vectors in another way")
        found = self.similarity_search_with_score(query, k, **{**kwargs, "mode": "dense"})
        return [(document, min(1.0, max(0.0, (1 + score) / 2))) for document, score in found]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda score: (1 + score) / 2

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        path: str | Path | None = None,
        **kwargs: Any,
    ) -> SearchkitVectorStore:
        """A store with these texts; see the class for the other arguments."""
        store = cls(path, embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def _made(self) -> SearchEngine:
        if self._index.engine is None:
            raise InputError("the store has been closed; open it again")
        return self._index.engine

    def _documents(self, engine: SearchEngine, hits: list[Hit]) -> list[tuple[Document, float]]:
        return [(_as_langchain(_whole(engine, hit)), hit.score) for hit in hits]


class SearchkitRetriever(BaseRetriever):
    """Searches an index, of whatever tool made it; documents are its passages.

        retriever = SearchkitRetriever(index="papers.index", k=5)
        retriever.invoke("vitamin D and flu", instruction="Given a claim, find documents that refute it")

    Metadata are the document's, with `id`, `title`, `score`, `start` and `stop` where it has no such keys itself.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    index: str | Path | SearchEngine
    """Folder of the index, or an open engine."""
    k: int = 10
    """Documents a query."""
    mode: str = "hybrid"
    """"dense", "lexical" or "hybrid"."""
    instruction: str | None = None
    """What to find, in one sentence; None for the model's default, "" for none."""
    task: str | None = None
    """A named task instead."""
    where: dict[str, Any] | None = None
    """A filter on metadata."""
    rerank: Reranker | None = None
    """A model that reads the first hits together with the query."""
    _engine: SearchEngine = PrivateAttr()

    def model_post_init(self, _: Any) -> None:
        """Open the index."""
        self._engine = self.index if isinstance(self.index, SearchEngine) else SearchEngine.open(self.index)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        """Search; `k`, `mode`, `instruction`, `task`, `where` and `rerank` may be given a call."""
        asked = _options(kwargs, self.mode)
        if "instruction" not in asked and "task" not in asked:
            asked |= {"instruction": self.instruction, "task": self.task}
        asked = {"k": self.k, "where": self.where, "rerank": self.rerank, **asked}
        return [_as_passage(hit) for hit in self._engine.search(query, **asked)]


_SEARCH = {"where", "instruction", "task", "mode", "rerank", "rerank_depth", "k"}


def _options(given: Mapping[str, Any], mode: str) -> dict[str, Any]:
    """The arguments of a search, with LangChain's name for a filter."""
    options = {"mode": mode, **given}
    if "filter" in options:
        if options.get("where") is not None:
            raise InputError("both filter and where came; give one of them")
        options["where"] = options.pop("filter")
    options.pop("score_threshold", None)  # LangChain applies it itself
    _no_others({name: value for name, value in options.items() if name not in _SEARCH})
    return options


def _no_others(arguments: Mapping[str, Any]) -> None:
    if arguments:
        raise InputError(f"unknown arguments {', '.join(sorted(arguments))}; known are {', '.join(sorted(_SEARCH))}")


def _whole(engine: SearchEngine, hit: Hit) -> StoredDocument:
    """The document of a hit as it was added, or its passage where documents are split."""
    if engine.settings["chunk_tokens"] == 0 and (document := engine.get(hit.id)) is not None:
        return document
    return StoredDocument(hit.id, hit.text, hit.title, hit.metadata)


def _as_langchain(document: StoredDocument) -> Document:
    title = {"title": document.title} if document.title else {}
    return Document(id=document.id, page_content=document.text, metadata=title | dict(document.metadata))


def _as_passage(hit: Hit) -> Document:
    place = {"id": hit.id, "title": hit.title, "score": hit.score, "start": hit.start, "stop": hit.stop}
    return Document(id=hit.id, page_content=hit.text, metadata=place | hit.metadata)
