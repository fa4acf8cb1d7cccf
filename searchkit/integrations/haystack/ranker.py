"""Documents in the order of a reranker, or of an embedder, as a ranker of Haystack."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from haystack import Document, component, default_from_dict, default_to_dict

from searchkit.errors import InputError
from searchkit.integrations.haystack.embedders import checked_documents, shared_embedder, text_of
from searchkit.models.embedder import DEFAULT_MODEL, Embedder
from searchkit.models.reranker import Reranker
from searchkit.validation import check_optional_text, check_text, whole_number


@component
class SearchkitRanker:
    """Puts documents in the order of a model that reads them together with the query.

        SearchkitRanker(reranker="cross-encoder/ms-marco-MiniLM-L6-v2").run("vitamin D flu", documents)

    Args:
        reranker: A cross-encoder or a decoder of Qwen3-Reranker's form: a folder or a hub id. None ranks by `embedder`.
        embedder: Ranks by the inner product of embeddings instead.
        instruction: One sentence that says what is relevant, unless a call brings its own.
        top_k: How many documents to return; None for all.
        device: "cpu", "cuda", "mps"; None for the best available.
        dtype: "auto", "float32", "bfloat16" or "float16".
        meta_fields_to_embed: Keys of `meta` whose values are read before the content, such as "title".
        embedding_separator: Between them.
    """

    def __init__(
        self,
        reranker: str | None = None,
        *,
        embedder: str | None = None,
        instruction: str | None = None,
        top_k: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        meta_fields_to_embed: Sequence[str] = (),
        embedding_separator: str = "\n",
    ) -> None:
        for name, value in {"reranker": reranker, "embedder": embedder, "instruction": instruction}.items():
            check_optional_text(name, value)
        if reranker is not None and embedder is not None:
            raise InputError("both reranker and embedder came; give the one that is to rank")
        self.reranker, self.embedder = reranker, embedder
        self.instruction, self.device, self.dtype = instruction, device, dtype
        self.top_k = None if top_k is None else whole_number("top_k", top_k, 1)
        self.meta_fields_to_embed, self.embedding_separator = list(meta_fields_to_embed), embedding_separator
        self._model: Reranker | Embedder | None = None

    def warm_up(self) -> None:
        """Load the model."""
        self._loaded()

    def _loaded(self) -> Reranker | Embedder:
        if self._model is None:
            if self.reranker is not None:
                self._model = Reranker(self.reranker, device=self.device, dtype=self.dtype)
            else:
                self._model = shared_embedder(self.embedder or DEFAULT_MODEL, None, self.device, self.dtype)
        return self._model

    def to_dict(self) -> dict[str, Any]:
        """The component as a dictionary, for pipelines that are saved."""
        return default_to_dict(  # type: ignore[no-any-return]
            self,
            reranker=self.reranker,
            embedder=self.embedder,
            instruction=self.instruction,
            top_k=self.top_k,
            device=self.device,
            dtype=self.dtype,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The component of such a dictionary."""
        return default_from_dict(cls, data)  # type: ignore[no-any-return]

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None, instruction: str | None = None
    ) -> dict[str, list[Document]]:
        """Rank documents.

        Args:
            query: What was searched for.
            documents: In any order; of two with the same id, the first counts.
            top_k: For this call.
            instruction: For this call.

        Returns:
            "documents", best first, with their scores: 0 to 1 by a reranker, -1 to 1 by an embedder.

        Raises:
            InputError: The query is empty, or an argument cannot be used.
        """
        check_text("query", query)
        if not query.strip():
            raise InputError("the query is empty; give a text to rank by")
        check_optional_text("instruction", instruction)
        top_k = self.top_k if top_k is None else whole_number("top_k", top_k, 1)
        instruction = self.instruction if instruction is None else instruction
        unique = list({document.id: document for document in reversed(checked_documents(documents))}.values())[::-1]
        texts = [text_of(document, self.meta_fields_to_embed, self.embedding_separator) for document in unique]
        scores = self._scores(query, texts, instruction)
        order = np.argsort(-scores, kind="stable")[:top_k]
        return {"documents": [replace(unique[n], score=float(scores[n])) for n in order.tolist()]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None, instruction: str | None = None
    ) -> dict[str, list[Document]]:
        """Like `run`, in a thread."""
        return await asyncio.to_thread(self.run, query, documents, top_k, instruction)

    def _scores(self, query: str, texts: list[str], instruction: str | None) -> np.ndarray:
        """The score of each text, (n,) float32."""
        if not texts:
            return np.empty(0, np.float32)
        model = self._loaded()
        if isinstance(model, Reranker):
            return model.scores(query, texts, instruction)
        vector = model.encode_queries([query], instruction)[0]
        return np.asarray(model.encode_passages(texts) @ vector)
