"""An index folder that is open: the model that belongs to it, its documents, its vectors, and the current commit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from threading import RLock
from typing import Any, TypeVar

import numpy as np

from searchkit.binding import ModelChoice, located
from searchkit.errors import StoreError
from searchkit.folder_ranker import FolderRanker
from searchkit.indexer.documents import StoredPassage
from searchkit.indexer.filters import compile_filter
from searchkit.indexer.keys import FilterFault, MetadataKey, absent_keys, filter_faults, metadata_keys
from searchkit.indexer.store import Snapshot, Store
from searchkit.indexer.vectors import segments
from searchkit.indexer.vectors.similarity import Similarity
from searchkit.indexer.vectors.storage import Storage
from searchkit.lexical_sync import LexicalSync
from searchkit.models.embedder import Embedder
from searchkit.place import Place
from searchkit.ranking import Ranked
from searchkit.records import Document
from searchkit.validation import check_text, checked_ids, whole_number

T = TypeVar("T")

_RETRIES = 8
_BATCH = 256  # documents whose vectors are read together


class OpenIndex(Place):
    """An open index folder with the model that belongs to it: its documents, its vectors and the commit it is at.

    Threads may share one.

    Args:
        store: The index folder.
        model: The model, or what is needed to load it.
    """

    def __init__(self, store: Store, model: Embedder | ModelChoice) -> None:
        self._store = store
        snapshot = store.snapshot()  # first: it compares the settings with their checksum
        settings = store.database.settings()
        if settings["model"] is not None:
            settings["model"] = located(settings["model"], store.folder)
        super().__init__(store.name, settings, model)
        self._closed = False
        self._reloading = RLock()
        self._lexical = LexicalSync(store, self.settings["language"])
        self._ranker: FolderRanker = FolderRanker(store, snapshot, self._lexical)

    def close(self) -> None:
        """Close the files; the engine cannot be used afterwards."""
        self._closed = True
        self._ranker.snapshot.segments.clear()
        self._lexical.close()
        self._store.close()

    @property
    def store(self) -> Store:
        """The folder behind the engine, for reading what is in it."""
        return self._store

    @property
    def snapshot(self) -> Snapshot:
        """The commit that is searched."""
        return self._ranker.snapshot

    @property
    def storage(self) -> Storage:
        """How the vectors are stored."""
        return self._ranker.snapshot.storage

    @property
    def similarity(self) -> Similarity:
        """How vectors are compared."""
        return self.storage.similarity

    @property
    def width(self) -> int:
        """Width of the vectors as they are stored; more than `dim` for the Euclidean distance."""
        return self.storage.plan.dim

    # Documents

    def documents(self, *, vectors: bool = False) -> Iterator[Document]:
        """Every document, as it was added, in the order they came.

        Args:
            vectors: Also read the vectors, as exact as they are kept, where no model made them.
        """
        self._check_open()
        stored = self._store.documents.living()
        documents = (Document(id, text, title=title, metadata=json.loads(data)) for id, title, text, data in stored)
        if self.has_model or not vectors:
            yield from documents
            return
        while batch := list(islice(documents, _BATCH)):
            rows = self.vectors_by_id([document.id for document in batch])
            for document in batch:
                yield replace(document, vector=rows[document.id][0]) if document.id in rows else document

    def get(self, id: str) -> Document | None:
        """The document of that id, as it was added; None when the index does not hold it.

        With its vector, as exact as it is kept, where no model made it.
        """
        check_text("id", id)
        self._check_open()
        for doc in self._store.documents.positions_of([id]):
            first, stored = self._store.documents.document(doc)
            document = Document(stored.id, stored.text, stored.title, json.loads(stored.metadata))
            if self.has_model or not stored.has_vectors:
                return document
            return replace(document, vector=self._vectors_at(doc, [first])[0])
        return None

    def latest(self, id: str) -> tuple[int, Document | None]:
        """A document as of the last commit, whichever is searched, and the number of that commit."""
        database = self._store.database
        with database.access(), database.reading():
            return database.number("generation"), self.get(id)

    def vectors_by_id(self, ids: Iterable[str]) -> dict[str, np.ndarray]:
        """The vectors of documents, (passages, dim) float32 each, as exact as they are kept; by id, in any order.

        Ids that the index does not hold, and documents without a vector, are left out.
        """
        self._check_open()
        vectors = {}
        for doc in self._store.documents.positions_of(checked_ids(ids)):
            first, stored = self._store.documents.document(doc)
            if stored.has_vectors:
                vectors[stored.id] = self._vectors_at(doc, range(first, first + len(stored.spans)))
        return vectors

    def _vectors_at(self, doc: int, rows: Sequence[int]) -> np.ndarray:
        """The vectors of some passages of a document, which may have been added since the index was opened."""
        if doc >= self._ranker.snapshot.next_doc:
            self.reload()
        return self._ranker.vectors_of(np.array(rows, dtype=np.int64))

    def _in_one_commit(self, work: Callable[[FolderRanker], T]) -> T:
        """Do something in the current commit; if a writer has removed its files meanwhile, in the next."""
        for attempt in range(_RETRIES):
            ranker = self._ranker
            try:
                return work(ranker)
            except (StoreError, OSError, RuntimeError):  # a file may go while it is read; RuntimeError is FAISS's
                newer = self._store.database.setting("generation") != ranker.snapshot.generation
                if not newer or attempt == _RETRIES - 1:
                    raise
                self.reload()
        raise AssertionError("unreachable")

    def filter_faults(self, where: Mapping[str, Any]) -> list[FilterFault]:
        """Conditions of a filter that can match no document: an unknown key, or a value of another type."""
        compile_filter(where)
        self._check_open()
        return filter_faults(where, self._store.documents) if self.passages else []

    def absent_keys(self, keys: Iterable[str]) -> list[str]:
        """For each metadata key that no document has, a sentence that says so and names what there is."""
        return absent_keys(keys, self._store.documents)

    def known_ids(self, ids: Sequence[str]) -> set[str]:
        """Which of these ids the index holds."""
        self._check_open()
        return self._store.documents.known_ids(ids)

    def passages_of(self, rows: Sequence[int]) -> dict[int, StoredPassage]:
        """Passages by row."""
        passages = self._store.documents.passages(rows)
        if missing := set(rows) - passages.keys():
            raise self._store.database.damaged(f"{len(missing)} passages are missing")
        return passages

    def vectors_by_doc(self, id: str) -> tuple[int, np.ndarray] | None:
        """The position of a document and the vectors of its passages, (n, dim) float32; None where there is none."""
        self._check_open()
        for doc in self._store.documents.positions_of([id]):
            first, stored = self._store.documents.document(doc)
            rows = range(first, first + len(stored.spans)) if stored.has_vectors else range(0)
            return doc, self._vectors_at(doc, rows)
        return None

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes that dense search ("dense") and lexical search ("lexical") need."""
        sizes = self._store.sizes()
        return {"dense": sizes["segments"], "lexical": sizes["lexical"]}

    def metadata_keys(self, limit: int | None = None) -> dict[str, MetadataKey]:
        """The metadata keys of the documents, in order of first appearance; reads the first `limit`, or all."""
        return metadata_keys(self._store.documents, limit)

    def deleted_share(self) -> float:
        """Share of the passages that are deleted and take space until the index is compacted."""
        _, dead = self._store.documents.waiting()
        _, passages = self._store.documents.counts()
        return dead / max(1, dead + passages)

    @property
    def recipe(self) -> str:
        """How vectors are stored."""
        return self.storage.plan.spelling

    def ids_of(self, rankings: Iterable[Iterable[Ranked]]) -> dict[int, str]:
        """The ids of all documents in some rankings, by their positions."""
        return self._store.documents.ids_of({item.doc for ranking in rankings for item in ranking})

    def sample(self, count: int, *, seed: int = 0) -> np.ndarray:
        """Vectors of passages drawn at random, as they are stored, (at most count, width) float32."""
        count, seed = whole_number("count", count, 0), whole_number("seed", seed, 0)
        snapshot = self._ranker.snapshot
        total = sum(segment.count for segment in snapshot.segments)
        drawn = np.sort(np.random.default_rng(seed).permutation(total)[:count])
        if not len(drawn):
            return np.empty((0, self.storage.plan.dim), np.float32)
        return segments.vectors_at(snapshot.segments, drawn)

    # State

    def is_current(self) -> bool:
        """Whether nothing has been committed since it was opened or last reloaded; one look-up in the database."""
        return self._store.database.number("generation") == self._ranker.commit

    def replacement(self) -> object | None:
        """What identifies another index in the folder, built anew or moved there; None while it is this one."""
        return self._store.database.replacement()

    def reload(self) -> None:
        """See what has been committed since the index was opened or last reloaded."""
        self._check_open()
        with self._reloading:
            snapshot = self._store.snapshot()
            if snapshot.generation == self._ranker.snapshot.generation:
                return
            self._lexical.follow(snapshot)
            self._ranker = FolderRanker(self._store, snapshot, self._lexical)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self._store.folder} has been closed; open it again")
