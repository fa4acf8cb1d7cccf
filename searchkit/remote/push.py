"""Copy an index folder into a collection in Milvus, and bring it in step again after the folder has changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from searchkit.binding import differences
from searchkit.engine import SearchEngine
from searchkit.errors import StoreError
from searchkit.indexer.analysis import Analyzer
from searchkit.indexer.vectors import segments
from searchkit.remote.address import MilvusAddress
from searchkit.remote.client import Client
from searchkit.remote.collection import Collection, State
from searchkit.remote.kinds import Kind, check_built, chosen_kind, kind_of
from searchkit.remote.rows import rows_of

SAMPLED = 1000
"""Rows whose vectors are compared after a push."""

_TOGETHER = 512  # documents
_ACKNOWLEDGED = 20_000
"""Rows after which a first push notes how far it is."""
_SETTINGS = ("model", "chunk_tokens", "overlap", "language", "vectors_from")

OnRows = Callable[[int, int], None]


@dataclass
class PushReport:
    """What one call of `push` did.

    Args:
        kind: The index over the vectors, as `--index-type` takes it.
        documents: Documents in the collection.
        passages: Rows in it.
        written: Rows that were written.
        removed: Documents that were removed.
        compared: Rows that were read back and compared.
        seconds: How long it took.
    """

    kind: str = ""
    documents: int = 0
    passages: int = 0
    written: int = 0
    removed: int = 0
    compared: int = 0
    seconds: float = 0.0


def push(
    engine: SearchEngine,
    address: MilvusAddress,
    *,
    index_type: str | None = None,
    overwrite: bool = False,
    on_rows: OnRows | None = None,
) -> PushReport:
    """Make a collection that holds what an index folder does; if there is one, write and remove what has changed.

    If it is interrupted at any moment, call it again. Nothing is embedded. Afterwards the number of rows, the index
    that was built and the vectors of a sample are compared.

    Args:
        engine: The index folder.
        address: The collection.
        index_type: One of :data:`searchkit.remote.kinds.TYPES`; None for what is nearest to the folder's recipe, or for
            what the collection has.
        overwrite: Also where the collection was changed by itself: what was added there goes.
        on_rows: Called now and then with (rows done, rows to do).

    Raises:
        InputError: Milvus cannot hold a document, or has no such index.
        RemoteError: The server cannot be reached, or refuses.
        StoreError: The collection is of something else, or what was read back differs from what was written.
    """
    client = Client(address, create=True)
    try:
        return _Push(engine, client, on_rows).run(index_type, overwrite=overwrite)
    finally:
        client.close()


class _Push:
    def __init__(self, engine: SearchEngine, client: Client, on_rows: OnRows | None) -> None:
        self._engine, self._client, self._on_rows = engine, client, on_rows
        self._documents = engine.store.documents
        self._snapshot = engine.snapshot
        self._dead = set(self._snapshot.dead_docs.tolist())
        self._analyzer = Analyzer(engine.settings["language"])
        self._report = PushReport()
        self._rows = 0  # written by this call
        self._terms = self._counted = 0  # since the last commit

    def run(self, index_type: str | None, *, overwrite: bool) -> PushReport:
        began = time.monotonic()
        engine, snapshot = self._engine, self._snapshot
        storage = engine.storage
        chosen = None if index_type is None else chosen_kind(index_type, engine.width, snapshot.passages)
        if Collection.exists(self._client):
            collection = Collection(self._client)
            self._check_same(collection, chosen)
        else:
            settings = {name: engine.settings.get(name) for name in _SETTINGS}
            kind = chosen or kind_of(storage.plan, storage.tuning)
            state = State(
                engine.similarity, kind, recipe=storage.plan.spelling, filling=True, pushed=self._commit_of_folder()
            )
            collection = Collection.create(self._client, settings, state)
        if collection.state.filling:
            self._fill(collection)
        else:
            collection.load()
        self._change(collection, overwrite=overwrite)
        state = collection.state
        report = self._report
        report.kind, report.documents, report.passages = state.kind.described, state.documents, state.passages
        report.seconds = time.monotonic() - began
        return report

    def _commit_of_folder(self) -> dict[str, Any]:
        snapshot = self._snapshot
        return {
            "generation": snapshot.generation,
            "next_doc": snapshot.next_doc,
            "digest": self._documents.digest(snapshot.generation, snapshot.next_doc),
        }

    def _check_same(self, collection: Collection, kind: Kind | None) -> None:
        engine, address = self._engine, collection.address
        bound, own = collection.settings(), engine.settings
        if (bound["model"] is None) != (own["model"] is None):
            made = ("by its users", "by a model") if bound["model"] is None else ("by a model", "by its users")
            raise StoreError(
                f"{address} holds vectors made {made[0]}, and {engine.name} those made {made[1]}; push to another name"
            )
        if bound["model"] is not None and (found := differences(bound["model"], own["model"])):
            raise StoreError(
                f"{address} was made with {bound['model']['model']}, and {engine.name} with another model ({found}); "
                "vectors of two models cannot be compared: push to another name"
            )
        for name in _SETTINGS[1:]:
            if bound.get(name) != own.get(name):
                raise StoreError(
                    f"{address} was made with {name} {bound.get(name)!r}, and {engine.name} has {own.get(name)!r}; "
                    "push to another name"
                )
        state = collection.state
        if (state.similarity.name, state.similarity.dim) != (engine.similarity.name, engine.similarity.dim):
            raise StoreError(f"{address} compares vectors otherwise than {engine.name}; push to another name")
        if state.similarity != engine.similarity and state.passages:
            raise StoreError(f"{address} was fitted to other vectors than {engine.name}; push to another name")
        if kind is not None and kind.described != state.kind.described:
            raise StoreError(
                f"{address} has the index {state.kind.described}, not {kind.described}; push to another name"
            )

    # The first time

    def _fill(self, collection: Collection) -> None:
        """Write all rows from where an interrupted push left off, and then build the index over them."""
        state = collection.state
        living = self._living(state.next_doc, self._snapshot.next_doc)
        done = self._snapshot.passages - sum(count for _, _, count, _ in self._living(state.next_doc, 1 << 62))
        noted = self._rows = 0
        for batch in self._batches(living):
            self._write(collection, batch, done)
            if self._rows - noted >= _ACKNOWLEDGED:
                noted = self._rows
                self._acknowledge(collection, batch[-1])
        self._acknowledge(collection, None)
        collection.build()
        check_built(self._client, state.kind, self._snapshot.passages, state.similarity.width)

    def _acknowledge(self, collection: Collection, last: tuple[int, int, int, str] | None) -> None:
        collection.flush()
        state, snapshot = collection.state, self._snapshot
        doc, row = (last[0] + 1, last[1] + last[2]) if last else (snapshot.next_doc, snapshot.next_row)
        collection.commit(
            generation=state.generation,
            next_doc=doc,
            next_row=row,
            terms=state.terms + self._terms,
            counted=state.counted + self._counted,
        )
        self._terms = self._counted = 0

    # Afterwards

    def _change(self, collection: Collection, *, overwrite: bool) -> None:
        """Write and remove what differs, and compare."""
        state, snapshot = collection.state, self._snapshot
        now = self._commit_of_folder()
        first = state.filling
        if not first and not state.changing and state.pushed == now and not overwrite:
            self._compare(collection)
            return
        if not first and state.pushed is None and not overwrite:
            raise StoreError(
                f"{collection.address} was changed by itself since {self._engine.name} was pushed, and a push would "
                "undo that; to have it as the folder is: --overwrite"
            )
        if first and state.pushed == now:
            removed: list[int] = []
            missing: Iterable[tuple[int, int, int, str]] = []
        elif not first and state.pushed and self._continues(state.pushed):
            below = int(state.pushed["next_doc"])
            removed = self._documents.deleted_since(int(state.pushed["generation"]), below)
            missing = self._living(below, snapshot.next_doc)
        else:
            removed, missing = self._differing(collection)
        if not first:
            collection.commit(changing=True, generation=state.generation)
        collection.remove(removed)
        for batch in self._batches(missing):
            self._write(collection, batch, 0)
        if removed or self._rows:
            collection.flush()
        self._compare(collection)
        state = collection.state
        collection.commit(
            next_row=snapshot.next_row,
            next_doc=snapshot.next_doc,
            documents=snapshot.documents,
            passages=snapshot.passages,
            terms=state.terms + self._terms,
            counted=state.counted + self._counted,
            similarity=self._engine.similarity,
            all_have_vectors=sum(part.count for part in snapshot.segments) == snapshot.passages + len(snapshot.dead),
            filling=False,
            changing=False,
            stale=[],
            pushed=now,
        )
        self._report.removed = len(removed)

    def _continues(self, pushed: dict[str, Any]) -> bool:
        """Whether the folder is what was pushed, with commits after it."""
        generation, below = int(pushed["generation"]), int(pushed["next_doc"])
        return generation <= self._snapshot.generation and self._documents.digest(generation, below) == pushed["digest"]

    def _differing(self, collection: Collection) -> tuple[list[int], list[tuple[int, int, int, str]]]:
        """Documents of the collection that are not as in the folder, and documents of the folder that it lacks."""
        end = max(self._snapshot.next_row, collection.state.next_row)
        collection.remove_from(end)  # what no commit acknowledged
        removed: list[int] = []
        missing: list[tuple[int, int, int, str]] = []
        # Both come in the order of rows, and so of positions.
        held = _by_document(collection.scan(["doc", "checksum"], below=end))
        there = next(held, None)
        for here in self._living(0, self._snapshot.next_doc):
            while there is not None and there[0] < here[0]:
                removed.append(there[0])
                there = next(held, None)
            if there is None or there[0] > here[0]:
                missing.append(here)
                continue
            if there != here:
                removed.append(there[0])
                missing.append(here)
            there = next(held, None)
        while there is not None:
            removed.append(there[0])
            there = next(held, None)
        return removed, missing

    def _living(self, first: int, below: int) -> Iterator[tuple[int, int, int, str]]:
        """(position, first row, passages, checksum) of the documents of the commit."""
        for item in self._documents.living_since(first, min(below, self._snapshot.next_doc)):
            if item[0] not in self._dead:
                yield item

    def _batches(self, documents: Iterable[tuple[int, int, int, str]]) -> Iterator[list[tuple[int, int, int, str]]]:
        batch: list[tuple[int, int, int, str]] = []
        for item in documents:
            batch.append(item)
            if len(batch) >= _TOGETHER:
                yield batch
                batch = []
        if batch:
            yield batch

    def _write(self, collection: Collection, batch: Sequence[tuple[int, int, int, str]], done: int) -> None:
        similarity = self._engine.similarity
        rows: list[dict[str, Any]] = []
        for doc, first, count, _ in batch:
            _, document = self._documents.document(doc)
            vectors = np.empty((0, similarity.width), np.float32)
            if document.has_vectors:
                numbers = np.arange(first, first + count, dtype=np.int64)
                vectors = similarity.rows(self._engine.vectors_of(numbers))
            rows += rows_of(document, doc, first, vectors, self._analyzer)
        collection.write(rows)
        self._rows += len(rows)
        self._counted += len(rows)
        self._report.written += len(rows)
        self._terms += sum(row["words"].count(" ") + 1 for row in rows)
        if self._on_rows is not None:
            self._on_rows(done + self._rows, max(self._snapshot.passages, done + self._rows))

    def _compare(self, collection: Collection) -> None:
        """Raise StoreError unless the collection holds as many rows, and the same vectors, as the folder.

        A server may need a moment to take note of what was deleted.
        """
        engine, snapshot = self._engine, self._snapshot
        until = time.monotonic() + 10
        while (count := collection.count("row >= 0")) != snapshot.passages:
            if time.monotonic() > until:
                raise StoreError(
                    f"{collection.address} holds {count:,} rows after the push, and {engine.name} "
                    f"{snapshot.passages:,} passages; push again"
                )
            time.sleep(0.25)
        check_built(self._client, collection.state.kind, snapshot.passages, engine.similarity.width)
        rows = segments.all_rows(snapshot.segments) if snapshot.segments else np.empty(0, np.int64)
        rows = rows[~np.isin(rows, snapshot.dead)]
        chosen = np.sort(np.random.default_rng(0).permutation(rows)[:SAMPLED])
        found = collection.rows(chosen.tolist(), ["vector"])
        if missing := set(chosen.tolist()) - found.keys():
            raise StoreError(f"{collection.address} lacks row {min(missing)} after the push; push again")
        for start in range(0, len(chosen), 100):
            part = chosen[start : start + 100]
            own = engine.similarity.rows(engine.vectors_of(part))
            stored = np.array([found[row]["vector"] for row in part.tolist()], np.float32)
            if not np.array_equal(own, stored):
                row = int(part[np.flatnonzero((own != stored).any(axis=1))[0]])
                raise StoreError(f"{collection.address} holds another vector in row {row} than was pushed; push again")
        self._report.compared = len(chosen)


def _by_document(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[int, int, int, str]]:
    """(position, first row, passages, checksum) of each document, from rows in order."""
    for doc, group in groupby(rows, key=lambda row: int(row["doc"])):
        parts = list(group)
        yield doc, int(parts[0]["row"]), len(parts), str(parts[0]["checksum"])
