"""Search a collection in Milvus, and change it, as an index folder is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

import numpy as np

from searchkit.binding import ModelChoice, chosen_model
from searchkit.errors import FilterError, StoreError
from searchkit.indexer.analysis import Analyzer
from searchkit.indexer.documents import NewDocument, StoredPassage
from searchkit.indexer.keys import FilterFault, MetadataKey, absent_keys, filter_faults, metadata_keys
from searchkit.indexer.vectors.similarity import Similarity
from searchkit.ingest import AddReport, Committer, OnProgress
from searchkit.models.embedder import Embedder
from searchkit.ranking import Ranked
from searchkit.records import Document
from searchkit.remote.address import MilvusAddress, parse_milvus
from searchkit.remote.client import Client
from searchkit.remote.collection import Collection
from searchkit.remote.filters import to_expression
from searchkit.remote.lookups import CollectionMetadata, SeenDocuments
from searchkit.remote.ranker import CollectionRanker
from searchkit.remote.rows import SHOWN, WHOLE, documents_of, passage_of, rows_of
from searchkit.validation import check_optional_text, check_text, checked_ids
from searchkit.writer import Writer

T = TypeVar("T")

_DELETED_AT_ONCE = 10_000


class MilvusEngine(Writer):
    """A collection in Milvus that `searchkit push` made, with the model that belongs to it. Open one with `open`.

    Threads may share an engine. One process at a time may write to a collection.
    """

    def __init__(self, collection: Collection, model: Embedder | ModelChoice, *, writable: bool = False) -> None:
        super().__init__(str(collection.address), collection.settings(), model)
        collection.check_whole()
        self.collection, self.writable = collection, writable
        self._closed = False
        self._writing, self._reloading = RLock(), RLock()
        self._analyzer = Analyzer(self.settings["language"])
        self._ranker: CollectionRanker = CollectionRanker(collection, self.settings["language"])
        self._seen = SeenDocuments(collection)

    @classmethod
    def open(
        cls,
        address: MilvusAddress | str,
        *,
        model: Embedder | str | Path | None = None,
        adapter: str | Path | None = None,
        vectors_from: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        threads: int | None = None,
        writable: bool = False,
    ) -> MilvusEngine:
        """Open a collection. Its model is loaded when it is first needed.

        Args:
            address: ``milvus://HOST:PORT/COLLECTION``, or ``milvus:FILE.db/COLLECTION``.
            model: Needed only when the model has moved since the index was built; its files must be the same.
            adapter: Likewise.
            vectors_from: What makes the vectors that will be given; it must be the name that the index was made with.
            device: Where the model runs, None for the best available.
            dtype: What the model computes in.
            threads: CPU threads it computes on; None for its runtime's default.
            writable: Also add and delete; what an interrupted change left is removed first.

        Raises:
            InputError: The address has another form.
            RemoteError: The server cannot be reached, or refuses.
            StoreError: There is no collection that searchkit pushed, or it was built with another model.
        """
        parsed = parse_milvus(address) if isinstance(address, str) else address
        check_optional_text("vectors_from", vectors_from)
        chosen = chosen_model(model, adapter, device, dtype, threads)
        client = Client(parsed)
        try:
            collection = Collection(client)
            engine = cls(collection, chosen, writable=writable)
            engine.check_vectors(vectors_from=vectors_from)
            collection.load()
            if writable:
                engine._tidy()
            return engine
        except BaseException:
            client.close()
            raise

    # State

    def close(self) -> None:
        """Close the connection; the engine cannot be used afterwards."""
        self._closed = True
        self.collection.client.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.name} has been closed; open it again")

    def is_current(self) -> bool:
        """Whether nothing has been committed since it was opened or last reloaded; one request."""
        return self.collection.refresh().generation == self._ranker.commit

    def reload(self) -> None:
        """See what has been committed since the collection was opened or last reloaded."""
        self._check_open()
        with self._reloading:
            if not self.is_current():
                self._ranker = CollectionRanker(self.collection, self.settings["language"], self._ranker)

    def _in_one_commit(self, work: Callable[[CollectionRanker], T]) -> T:
        return work(self._ranker)

    @property
    def similarity(self) -> Similarity:
        """How vectors are compared."""
        return self._ranker.state.similarity

    def bytes_by_part(self) -> dict[str, int]:
        """Nothing: a server does not tell what a collection takes."""
        return {}

    def deleted_share(self) -> float:
        """None: a server frees the space by itself."""
        return 0.0

    @property
    def recipe(self) -> str:
        """The index over the vectors, as `--index-type` takes it."""
        return self._ranker.state.kind.described

    # Documents

    def documents(self, *, vectors: bool = False) -> Iterator[Document]:
        """Every document, as it was added, in the order they came; see `Place.documents`."""
        self._check_open()
        with_vectors = vectors and not self.has_model
        fields = [*WHOLE, "vector"] if with_vectors else WHOLE
        rows: dict[int, Any] = {}

        def noted() -> Iterator[dict[str, Any]]:
            for row in self.collection.scan(fields):
                if with_vectors:
                    rows[int(row["row"])] = row["vector"]
                yield row

        for _, document, has_vector, numbers in documents_of(noted()):
            own = [rows.pop(number) for number in numbers] if with_vectors else []
            yield replace(document, vector=self._as_given(own)[0]) if own and has_vector else document

    def _as_given(self, stored: Sequence[Any]) -> np.ndarray:
        return self.similarity.vectors(np.asarray(list(stored), np.float32))

    def get(self, id: str) -> Document | None:
        """The document of that id, as it was added; None when the collection does not hold it."""
        check_text("id", id)
        self._check_open()
        rows = self.collection.rows_by_id([id], [*WHOLE, "vector"])
        for _, document, has_vector, _ in documents_of(rows):
            if self.has_model or not has_vector:
                return document
            return replace(document, vector=self._as_given([rows[0]["vector"]])[0])
        return None

    def vectors_by_id(self, ids: Iterable[str]) -> dict[str, np.ndarray]:
        """The vectors of documents, (passages, dim) float32 each, by id; see `OpenIndex.vectors_by_id`."""
        self._check_open()
        found: dict[str, list[Any]] = {}
        for row in self.collection.rows_by_id(checked_ids(ids), ["id", "has_vector", "vector"]):
            if row["has_vector"]:
                found.setdefault(row["id"], []).append(row["vector"])
        return {id: self._as_given(stored) for id, stored in found.items()}

    def known_ids(self, ids: Sequence[str]) -> set[str]:
        """Which of these ids the collection holds."""
        self._check_open()
        return {str(row["id"]) for row in self.collection.rows_by_id(ids, ["id"])}

    def ids_of(self, rankings: Iterable[Iterable[Ranked]]) -> dict[int, str]:
        """The ids of all documents in some rankings, by their positions."""
        rows = {item.row for ranking in rankings for item in ranking}
        return {int(row["doc"]): row["id"] for row in self.collection.rows(rows, ["doc", "id"]).values()}

    def passages_of(self, rows: Sequence[int]) -> dict[int, StoredPassage]:
        """Passages by row."""
        found = self.collection.rows(rows, SHOWN)
        if missing := set(rows) - found.keys():
            raise StoreError(
                f"{self.name} lacks {len(missing)} passages that it found; somebody deletes them: try again"
            )
        return {number: passage_of(row) for number, row in found.items()}

    def vectors_by_doc(self, id: str) -> tuple[int, np.ndarray] | None:
        """The position of a document and the vectors of its passages, (n, dim) float32; None where there is none."""
        rows = self.collection.rows_by_id([id], ["doc", "has_vector", "vector"])
        if not rows:
            return None
        stored = [row["vector"] for row in rows if row["has_vector"]]
        return int(rows[0]["doc"]), self._as_given(stored) if stored else np.empty((0, self.dim), np.float32)

    # Filters

    def filter_faults(self, where: Mapping[str, Any]) -> list[FilterFault]:
        """Conditions of a filter that can match no document: an unknown key, or a value of another type."""
        to_expression(where)
        self._check_open()
        return filter_faults(where, CollectionMetadata(self.collection)) if self.passages else []

    def absent_keys(self, keys: Iterable[str]) -> list[str]:
        """For each metadata key that no document has, a sentence that says so and names what there is."""
        return absent_keys(keys, CollectionMetadata(self.collection))

    def metadata_keys(self, limit: int | None = None) -> dict[str, MetadataKey]:
        """The metadata keys of the first documents, in order of first appearance."""
        return metadata_keys(CollectionMetadata(self.collection), limit)

    # Changing

    def delete(
        self, ids: Iterable[str] = (), *, where: Mapping[str, Any] | None = None, dry_run: bool = False
    ) -> tuple[int, list[str]]:
        """Delete documents by id, by a filter on their metadata, or both; see `SearchEngine.delete`."""
        ids = checked_ids(ids)
        expression = None if where is None else to_expression(where)
        self._check_open()
        if where is not None and (faults := [fault for fault in self.filter_faults(where) if fault.always]):
            raise FilterError(faults[0].message)
        named = self.collection.rows_by_id(ids, ["id", "doc"])
        unknown = [id for id in ids if id not in {row["id"] for row in named}]
        if dry_run:
            return len(self._selected(named, expression)), unknown
        with self._changing():
            passages = self._selected(named, expression)
            docs = sorted(passages)
            for start in range(0, len(docs), _DELETED_AT_ONCE):
                part = docs[start : start + _DELETED_AT_ONCE]
                state = self.collection.state
                self.collection.commit(
                    documents=state.documents - len(part),
                    passages=state.passages - sum(passages[doc] for doc in part),
                    stale=part,
                    pushed=None,
                )
                self._remove_stale()
        return len(docs), unknown

    def _selected(self, named: Iterable[dict[str, Any]], expression: str | None) -> dict[int, int]:
        """How many rows there are of each document that is named, or matches."""
        rows = {int(row["row"]): int(row["doc"]) for row in named}
        if expression is not None:
            rows |= {int(row["row"]): int(row["doc"]) for row in self.collection.scan(["doc"], expression)}
        counted: dict[int, int] = {}
        for doc in rows.values():
            counted[doc] = counted.get(doc, 0) + 1
        return counted

    def _remove_stale(self) -> None:
        self.collection.remove(self.collection.state.stale)
        self.collection.commit(stale=[], generation=self.collection.state.generation)

    def _tidy(self) -> None:
        """Remove what an interrupted change left: rows that no commit acknowledged, and those that one removed."""
        state = self.collection.state
        if state.changing:
            raise StoreError(
                f"{self.name} is being changed by searchkit push, or one was interrupted; let it end, or push again"
            )
        self.collection.remove_from(state.next_row)
        if state.stale:
            self._remove_stale()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self._check_open()
        if not self.writable:
            raise StoreError(f"{self.name} was opened for reading only; open it with writable=True")
        with self._writing:
            try:
                yield
            finally:
                self._seen.clear()
                if not self._closed:
                    self._ranker = CollectionRanker(self.collection, self.settings["language"], self._ranker)

    @property
    def _known(self) -> SeenDocuments:
        return self._seen

    def _ahead(self, documents: Iterable[Document]) -> Iterable[Document]:
        if isinstance(documents, str | Document) or not isinstance(documents, Iterable):
            return documents  # refused where documents are checked
        return self._seen.ahead(documents)

    def _commits(self, report: AddReport, every: int, on_progress: OnProgress | None) -> _Commits:
        return _Commits(self, report, every, on_progress)


class _Commits(Committer):
    """Commits of a collection: rows first, then the state that acknowledges them, then what they replace goes."""

    def __init__(self, engine: MilvusEngine, report: AddReport, every: int, on_progress: OnProgress | None) -> None:
        super().__init__(report, every, on_progress)
        self._engine = engine

    def write(self, documents: Sequence[NewDocument], vectors: np.ndarray) -> None:
        """Commit documents in place of those that have their ids, with a vector for each of their passages."""
        engine, collection = self._engine, self._engine.collection
        state = collection.state
        similarity = state.similarity.fitted(vectors)
        stored = similarity.rows(vectors)
        rows: list[dict[str, Any]] = []
        taken = 0
        for doc, document in enumerate(documents, start=state.next_doc):
            count = len(document.spans) if document.has_vectors else 0
            own = stored[taken : taken + count]
            rows += rows_of(document, doc, state.next_row + len(rows), own, engine._analyzer)
            taken += count
        replaced = engine._selected(collection.rows_by_id([document.id for document in documents], ["doc"]), None)
        collection.write(rows)
        collection.commit(
            next_row=state.next_row + len(rows),
            next_doc=state.next_doc + len(documents),
            documents=state.documents + len(documents) - len(replaced),
            passages=state.passages + len(rows) - sum(replaced.values()),
            terms=state.terms + sum(row["words"].count(" ") + 1 for row in rows),
            counted=state.counted + len(rows),
            all_have_vectors=state.all_have_vectors and all(document.has_vectors for document in documents),
            similarity=similarity,
            stale=sorted(replaced),
            pushed=None,
        )
        if replaced:
            engine._remove_stale()
        engine._seen.clear()
