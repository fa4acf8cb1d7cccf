"""Models of searchkit as Haystack's embedders: queries get an instruction, documents never do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from threading import Lock
from typing import Any, Self
from weakref import WeakValueDictionary

from haystack import Document, component, default_from_dict, default_to_dict

from searchkit.errors import InputError
from searchkit.models.embedder import DEFAULT_MODEL, Embedder
from searchkit.validation import check_optional_text, check_text, described

_LOADED: WeakValueDictionary[tuple[str, str | None, str | None, str], Embedder] = WeakValueDictionary()
_LOADING = Lock()


def shared_embedder(model: str, adapter: str | None, device: str | None, dtype: str) -> Embedder:
    """A model, once for all components of the process that use it."""
    key = (model, adapter, device, dtype)
    with _LOADING:
        loaded = _LOADED.get(key)
        if loaded is None:
            loaded = _LOADED[key] = Embedder(model, adapter=adapter, device=device, dtype=dtype)
        return loaded


class _Model:
    """What both embedders share: the model, loaded when it is first needed or by `warm_up`.

    They call this by its name: `component` makes another class of each of them, which `super()` does not know.
    """

    def __init__(self, model: str, adapter: str | None, device: str | None, dtype: str) -> None:
        check_text("model", model)
        self.model, self.adapter, self.device, self.dtype = model, adapter, device, dtype
        self._embedder: Embedder | None = None

    def warm_up(self) -> None:
        """Load the model."""
        self.embedder  # noqa: B018

    @property
    def embedder(self) -> Embedder:
        """The model."""
        if self._embedder is None:
            self._embedder = shared_embedder(self.model, self.adapter, self.device, self.dtype)
        return self._embedder

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The component of a dictionary that `to_dict` returned."""
        return default_from_dict(cls, data)  # type: ignore[no-any-return]


@component
class SearchkitTextEmbedder(_Model):
    """Embeds queries, each with an instruction that says what is looked for.

        SearchkitTextEmbedder().run("vitamin D flu", instruction="Given a claim, find papers that refute it")

    Args:
        model: The built-in model, a folder or a hub id.
        instruction: One sentence that says what to find, unless a call brings its own; None for the model's default, ""
            for none.
        adapter: Folder or hub id of a PEFT adapter.
        device: "cpu", "cuda", "mps"; None for the best available.
        dtype: "auto", "float32", "bfloat16" or "float16".
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        instruction: str | None = None,
        adapter: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
    ) -> None:
        _Model.__init__(self, model, adapter, device, dtype)
        check_optional_text("instruction", instruction)
        self.instruction = instruction

    def to_dict(self) -> dict[str, Any]:
        """The component as a dictionary, for pipelines that are saved."""
        return default_to_dict(  # type: ignore[no-any-return]
            self,
            model=self.model,
            instruction=self.instruction,
            adapter=self.adapter,
            device=self.device,
            dtype=self.dtype,
        )

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str, instruction: str | None = None) -> dict[str, Any]:
        """Embed a query.

        Args:
            text: The query.
            instruction: Instead of that of the component, for this call.

        Returns:
            "embedding", of unit length, and "meta" with the model and the instruction.

        Raises:
            InputError: The text is empty or no string.
        """
        check_text("text", text)
        if not text.strip():
            raise InputError("text is empty; write what to search for")
        check_optional_text("instruction", instruction)
        instruction = self.instruction if instruction is None else instruction
        embedding = self.embedder.encode_queries([text], instruction)[0].tolist()
        return {"embedding": embedding, "meta": {"model": self.embedder.name, "instruction": instruction}}

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str, instruction: str | None = None) -> dict[str, Any]:
        """Like `run`, in a thread."""
        return await asyncio.to_thread(self.run, text, instruction)


@component
class SearchkitDocumentEmbedder(_Model):
    """Embeds documents; what exceeds the model's length is cut off, so split long ones before.

        SearchkitDocumentEmbedder().run([Document(content="Vitamin D ...")])["documents"]

    Args:
        model: The built-in model, a folder or a hub id.
        adapter: Folder or hub id of a PEFT adapter.
        device: "cpu", "cuda", "mps"; None for the best available.
        dtype: "auto", "float32", "bfloat16" or "float16".
        meta_fields_to_embed: Keys of `meta` whose values are embedded before the content, such as "title".
        embedding_separator: Between them.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        adapter: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        meta_fields_to_embed: Sequence[str] = (),
        embedding_separator: str = "\n",
    ) -> None:
        _Model.__init__(self, model, adapter, device, dtype)
        if isinstance(meta_fields_to_embed, str):
            raise InputError(f"meta_fields_to_embed is {meta_fields_to_embed!r}; expected a list of keys")
        self.meta_fields_to_embed = list(meta_fields_to_embed)
        self.embedding_separator = embedding_separator

    def to_dict(self) -> dict[str, Any]:
        """The component as a dictionary, for pipelines that are saved."""
        return default_to_dict(  # type: ignore[no-any-return]
            self,
            model=self.model,
            adapter=self.adapter,
            device=self.device,
            dtype=self.dtype,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
        )

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents.

        Args:
            documents: They are left as they are.

        Returns:
            "documents", copies with their embeddings, of unit length, or without one where there is nothing to embed;
            and "meta" with the model and how many texts were too long for it.

        Raises:
            InputError: They are no list of documents.
        """
        checked = checked_documents(documents)
        texts = [text_of(document, self.meta_fields_to_embed, self.embedding_separator) for document in checked]
        wanted = [number for number, text in enumerate(texts) if text.strip()]
        before = self.embedder.stats.truncated
        rows = self.embedder.encode_passages([texts[number] for number in wanted])
        embedded = list(checked)
        for number, row in zip(wanted, rows, strict=True):
            embedded[number] = replace(checked[number], embedding=row.tolist())
        truncated = self.embedder.stats.truncated - before
        return {"documents": embedded, "meta": {"model": self.embedder.name, "truncated": truncated}}

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Like `run`, in a thread."""
        return await asyncio.to_thread(self.run, documents)


def checked_documents(documents: object) -> list[Document]:
    """A list of Haystack's documents; InputError where it is anything else."""
    if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
        raise InputError(f"documents is {described(documents)}; expected a list of haystack.Document")
    return documents


def text_of(document: Document, fields: Sequence[str], separator: str) -> str:
    """Values of `meta` and the content, as a model reads them."""
    values = [str(document.meta[key]) for key in fields if document.meta.get(key) is not None]
    return separator.join([*values, document.content or ""])
