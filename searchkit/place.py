"""A place that can be searched: what the searcher needs of an index folder, or of a collection on a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from threading import RLock
from typing import Any, Self, TypeVar

import numpy as np

from searchkit.binding import NO_MODEL, ModelChoice, check_model
from searchkit.errors import InputError
from searchkit.indexer.documents import StoredPassage
from searchkit.indexer.keys import FilterFault, MetadataKey
from searchkit.indexer.vectors.similarity import Similarity
from searchkit.models.embedder import Embedder
from searchkit.ranking import Ranked, Ranker
from searchkit.records import Document

T = TypeVar("T")


class Place(ABC):
    """Where documents are kept and ranked, with the model that belongs to them. Threads may share one.

    Args:
        name: What messages call it.
        settings: What it is bound to: the model, how documents are split, the language.
        model: The model, or what is needed to load it.
    """

    _ranker: Ranker[Any]  # the commit that is searched

    def __init__(self, name: str, settings: dict[str, Any], model: Embedder | ModelChoice) -> None:
        self.name, self.settings = name, settings
        self._model = model
        self._loading = RLock()
        if settings["model"] is None:
            if isinstance(model, Embedder) or model.named:
                raise InputError(f"{name} holds vectors that its users made, and takes no model; omit it")
        elif isinstance(model, Embedder):
            check_model(settings["model"], model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The model

    @property
    def has_model(self) -> bool:
        """Whether a model embeds passages and queries; if not, vectors come with them."""
        return self.settings["model"] is not None

    @property
    def embedder(self) -> Embedder:
        """The model, loaded when it is first needed: a lexical search never loads it.

        Raises:
            InputError: The index holds vectors that its users made, and has no model.
        """
        self.require_model()
        with self._loading:
            if isinstance(self._model, ModelChoice):
                self._model = self._model.load(self.settings["model"])
            return self._model

    def require_model(self) -> None:
        """Raise InputError, and say what to do instead, where the index holds vectors that its users made."""
        if not self.has_model:
            raise InputError(NO_MODEL.format(self.name))

    # State

    @abstractmethod
    def close(self) -> None:
        """Close it; it cannot be used afterwards."""

    @abstractmethod
    def reload(self) -> None:
        """See what has been committed since it was opened or last reloaded."""

    @abstractmethod
    def is_current(self) -> bool:
        """Whether nothing has been committed since it was opened or last reloaded."""

    def replacement(self) -> object | None:
        """What identifies another place under the same address, such as a folder that was built anew; None: none."""
        return None

    @abstractmethod
    def _check_open(self) -> None:
        """Raise StoreError if it has been closed."""

    @abstractmethod
    def _in_one_commit(self, work: Callable[[Ranker[Any]], T]) -> T:
        """Do something in the current commit, or where a writer has removed it meanwhile, in the next."""

    @property
    @abstractmethod
    def similarity(self) -> Similarity:
        """How vectors are compared."""

    @property
    def dim(self) -> int:
        """Width of the vectors, as they come in and go out."""
        return self.similarity.dim

    @property
    def commit(self) -> int:
        """Number of the commit that is searched."""
        return self._ranker.commit

    def latest(self, id: str) -> tuple[int, Document | None]:
        """A document as of the last commit, whichever is searched, and the number of that commit."""
        if not self.is_current():
            self.reload()
        return self.commit, self.get(id)

    @property
    def passages(self) -> int:
        """Passages in the index."""
        return self._ranker.passages

    @abstractmethod
    def bytes_by_part(self) -> dict[str, int]:
        """Bytes that dense search ("dense") and lexical search ("lexical") need; empty where that is not known."""

    @abstractmethod
    def deleted_share(self) -> float:
        """Share of the passages that are deleted and take space until the index is compacted."""

    @property
    @abstractmethod
    def recipe(self) -> str:
        """How vectors are stored: the name of a recipe, or of a server's index."""

    # Documents

    def __len__(self) -> int:
        """Documents in the index."""
        self._check_open()
        return self._ranker.documents

    def __contains__(self, id: object) -> bool:
        """Whether the index holds a document of that id."""
        return isinstance(id, str) and bool(self.known_ids([id]))

    def __iter__(self) -> Iterator[Document]:
        return self.documents()

    @abstractmethod
    def documents(self, *, vectors: bool = False) -> Iterator[Document]:
        """Every document, as it was added, in the order they came.

        Args:
            vectors: Also read the vectors, as exact as they are kept, where no model made them.
        """

    @abstractmethod
    def get(self, id: str) -> Document | None:
        """The document of that id, as it was added; None when the index does not hold it.

        With its vector, as exact as it is kept, where no model made it.
        """

    @abstractmethod
    def known_ids(self, ids: Sequence[str]) -> set[str]:
        """Which of these ids the index holds."""

    @abstractmethod
    def ids_of(self, rankings: Iterable[Iterable[Ranked]]) -> dict[int, str]:
        """The ids of all documents in some rankings, by their positions."""

    @abstractmethod
    def passages_of(self, rows: Sequence[int]) -> dict[int, StoredPassage]:
        """Passages by row.

        Raises:
            StoreError: One of them is missing.
        """

    @abstractmethod
    def vectors_by_doc(self, id: str) -> tuple[int, np.ndarray] | None:
        """The position of a document and the vectors of its passages, (n, dim) float32; None where there is none."""

    # Filters

    @abstractmethod
    def filter_faults(self, where: Mapping[str, Any]) -> list[FilterFault]:
        """Conditions of a filter that can match no document: an unknown key, or a value of another type."""

    @abstractmethod
    def absent_keys(self, keys: Iterable[str]) -> list[str]:
        """For each metadata key that no document has, a sentence that says so and names what there is."""

    @abstractmethod
    def metadata_keys(self, limit: int | None = None) -> dict[str, MetadataKey]:
        """The metadata keys of the documents, in order of first appearance; reads the first `limit`, or all."""

    # Vectors

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of some passages that have one, (n, dim) float32, as exact as the index keeps them."""
        return self._ranker.vectors_of(rows)

    def similarities(self, vector: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """How similar one query (dim,) is to the passages of some rows that have a vector (n,), as (n,) float32."""
        return self._ranker.similarities(vector, rows)
