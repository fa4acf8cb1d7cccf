"""The index folder: documents, passages and segments behind one SQLite commit point.

A commit writes and syncs a segment's files under a temporary name, renames the folder, syncs, and only then names it in
the transaction that also holds its documents. A reader sees the last commit whole or the one before it; files that no
commit names are removed by the next writer.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from searchkit.indexer.columns.cache import FOLDER as COLUMNS
from searchkit.indexer.conditions import Condition
from searchkit.indexer.database import NAME, Database, make_database
from searchkit.indexer.documents import Documents, NewDocument, tombstones
from searchkit.indexer.errors import DamagedError, InputError, StoreError
from searchkit.indexer.files import Stamp, folder_size, next_number, verify
from searchkit.indexer.lexical_files import LexicalFiles
from searchkit.indexer.metadata import KeyValues
from searchkit.indexer.vectors import segments
from searchkit.indexer.vectors.backend import VectorBackend, VectorIndex
from searchkit.indexer.vectors.devices import make_backend
from searchkit.indexer.vectors.recipes import Plan
from searchkit.indexer.vectors.segments import DiskSegment, Entry, Gathered
from searchkit.indexer.vectors.similarity import Similarity
from searchkit.indexer.vectors.storage import Codebook, Storage

_UNMADE = ".unmade"
"""In a folder that is to become an index: what is made of it so far."""


class Snapshot(NamedTuple):
    """What one commit holds.

    Args:
        generation: Number of the commit.
        documents: Living documents.
        passages: Living passages.
        next_row: Above all rows, those of deleted documents included.
        next_doc: Above all document positions.
        segments: The vectors.
        dead: (n,) int64, the rows of deleted documents, ascending.
        dead_docs: (n,) int64, the positions of deleted documents, ascending.
        storage: How vectors are stored.
        lexical: Name of the lexical index's folder.
    """

    generation: int
    documents: int
    passages: int
    next_row: int
    next_doc: int
    segments: list[DiskSegment]
    dead: np.ndarray
    dead_docs: np.ndarray
    storage: Storage
    lexical: str


class Store:
    """One index folder, open for reading or for writing.

    Args:
        folder: The index folder.
        writable: Take the writer's lock, and remove what a killed writer left.
        backend: What stores and searches vectors; None takes FAISS on the CPU.

    Attributes:
        name: The folder as it was given, for messages.
        folder: The same, absolute.
        database: Its settings and commits.
        documents: Its documents and passages.
        lexical: The files of its lexical index.

    Raises:
        StoreError: As `Database` raises it.
    """

    def __init__(self, folder: Path, *, writable: bool = False, backend: VectorBackend | None = None) -> None:
        self.name, self.folder, self.backend = str(folder), _located(folder), backend or make_backend()
        self.database = Database(self.folder, writable=writable)
        self.documents = Documents(self.database)
        self.lexical = LexicalFiles(self.database)
        self._template: VectorIndex | None = None
        self._opened: WeakValueDictionary[str, DiskSegment] = WeakValueDictionary()
        with ExitStack() as undo:
            undo.callback(self.close)
            # Damaged settings, and those of an earlier commit, may not name everything that is needed.
            if writable and self.database.settings_intact() and not self.database.lost_commits():
                self.sweep()
                self.lexical.restore()
            undo.pop_all()

    @classmethod
    def create(
        cls,
        folder: Path,
        settings: dict[str, Any],
        *,
        dim: int,
        similarity: Similarity | None = None,
        backend: VectorBackend | None = None,
    ) -> Store:
        """Create an empty index folder and open it for writing.

        Args:
            folder: The folder to make.
            settings: What the index is bound to.
            dim: Width of the rows.
            similarity: How they are compared; None for the cosine.
            backend: As for an index that is opened.
        """
        place = _located(folder)
        if folder.exists() and (not folder.is_dir() or any(entry.name != _UNMADE for entry in folder.iterdir())):
            raise StoreError(f"{folder} exists and is not an index; name another folder with --index")
        # Created under another name first: a folder with an index.db is always a whole index. An empty folder that is
        # there may be a volume, or where the process works, and is filled.
        there = folder.is_dir()
        staging = place / _UNMADE if there else place.with_name(f".{place.name}.{os.getpid()}")
        shutil.rmtree(staging, ignore_errors=True)
        for name in ("segments", "codebooks", "lexical"):
            (staging / name).mkdir(parents=True)
        state = {
            "generation": 0, "documents": 0, "passages": 0, "next_row": 0, "next_doc": 0,
            "tombstones": 0, "contents": 0, "compacted": 0, "lexical": "000001", "lexical_files": {},
            "storage": Storage(Plan("flat", dim), chosen=similarity).to_json(),
        }  # fmt: skip
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, staging, ignore_errors=True)
            make_database(staging, {**state, **settings})
            if there:
                for entry in sorted(staging.iterdir(), key=lambda entry: entry.name == NAME):
                    entry.rename(place / entry.name)
                staging.rmdir()
            else:
                staging.rename(place)
            undo.pop_all()
        return cls(folder, writable=True, backend=backend)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and release the writer's lock."""
        self.backend.close()
        self.database.close()

    @property
    def writable(self) -> bool:
        """Whether the index was opened for writing."""
        return self.database.writable

    # Reading

    def snapshot(self) -> Snapshot:
        """The last commit; its segments' files are opened when they are first needed."""
        database = self.database
        last = database.noted_commit()  # before the database: a writer may be at work
        with database.access(), database.reading():
            database.check_settings()
            state, storage = database.settings(), self.storage
            parts = [self._segment(entry, storage.plan) for entry in self.entries()]
            ranges = database.db.execute("SELECT doc, first_row, passages FROM documents WHERE deleted > 0").fetchall()
            if tombstones(0, ranges) != state["tombstones"]:
                raise database.damaged("its deletions differ from their checksum")
        if state["generation"] < last:
            raise DamagedError(
                database.file,
                f"is at commit {state['generation']}, but commit {last} was made: its log, {NAME}-wal, is damaged or "
                "missing",
                "restore a copy of both, or carry on from that commit with: searchkit check INDEX --repair",
            )
        dead = [np.arange(first, first + count) for _, first, count in sorted(ranges, key=lambda row: row[1])]
        return Snapshot(
            generation=state["generation"],
            documents=state["documents"],
            passages=state["passages"],
            next_row=state["next_row"],
            next_doc=state["next_doc"],
            segments=parts,
            dead=np.concatenate(dead) if dead else np.empty(0, np.int64),
            dead_docs=np.array(sorted(doc for doc, _, _ in ranges), dtype=np.int64),
            storage=storage,
            lexical=state["lexical"],
        )

    def matching(self, condition: Condition, snapshot: Snapshot) -> tuple[np.ndarray, np.ndarray]:
        """(docs, rows), each int64 ascending: the documents of a commit that pass a filter, and their passages.

        Raises:
            StoreError: The database is damaged, or what was deleted since that commit has been compacted away.
        """
        # The snapshot knows which are deleted: the marks in this table have no checksum of their own.
        database = self.database
        with database.access(), database.reading():
            self._check_uncompacted(snapshot)
            docs, firsts, counts = self.documents.matching(condition, snapshot.next_doc)
        if len(snapshot.dead_docs):
            living = ~np.isin(docs, snapshot.dead_docs)
            docs, firsts, counts = docs[living], firsts[living], counts[living]
        if (counts == 1).all():
            return docs, np.sort(firsts, kind="stable")  # nearly always sorted already, which this kind makes use of
        # Row ranges one after another: the first row of each, repeated, and the position within.
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return docs, np.sort(np.repeat(firsts, counts) + within)

    def passing(self, condition: Condition, snapshot: Snapshot) -> tuple[np.ndarray, np.ndarray]:
        """(documents, rows), each bool by position, True for what passes a filter; see `matching`."""
        if condition.where is not None:
            with self.database.access(), self.database.reading():
                self._check_uncompacted(snapshot)
                found = self.documents.columns.masks(condition.where, snapshot.next_doc, snapshot.next_row)
            if found is not None:  # without listing what passes, which takes ten times as long
                found[0][snapshot.dead_docs] = found[1][snapshot.dead] = False
                return found
        docs, rows = self.matching(condition, snapshot)
        passing, mask = np.zeros(snapshot.next_doc, dtype=bool), np.zeros(snapshot.next_row, dtype=bool)
        passing[docs] = mask[rows] = True
        return passing, mask

    def values(self, key: str, snapshot: Snapshot) -> KeyValues:
        """What the documents of a commit, the deleted ones included, have under a key; see `Metadata.values`."""
        with self.database.access(), self.database.reading():
            self._check_uncompacted(snapshot)
            return self.documents.values(key, snapshot.next_doc)

    def _check_uncompacted(self, snapshot: Snapshot) -> None:
        if self.database.number("compacted") > snapshot.generation:
            raise StoreError(f"{self.folder} has been compacted since it was opened; open it again")

    def sizes(self) -> dict[str, int]:
        """Bytes on disk by part: the database ("index.db"), "columns", vectors ("segments") and the "lexical" index."""
        database = sum(file.stat().st_size for file in self.folder.glob(f"{NAME}*"))
        vectors = folder_size(self.folder / "segments") + folder_size(self.folder / "codebooks")
        columns, lexical = folder_size(self.folder / COLUMNS), folder_size(self.folder / "lexical")
        return {NAME: database, COLUMNS: columns, "segments": vectors, "lexical": lexical}

    # Writing

    def commit(
        self,
        documents: Sequence[NewDocument],
        vectors: np.ndarray | Gathered,
        *,
        delete: Sequence[str] = (),
        similarity: Similarity | None = None,
    ) -> None:
        """Delete documents and add others with one vector for each of their passages, all or nothing.

        Args:
            documents: In order; their spans, one after another, are the passages.
            vectors: (number of spans, dim) float32, without those of documents that have no vectors; or where segments
                of the same training hold them, which are copied as they are.
            delete: Ids to delete first; unknown ones are left as they are.
            similarity: How vectors are compared from now on; None leaves it.
        """
        counts = [len(document.spans) for document in documents]
        present = np.repeat(np.array([document.has_vectors for document in documents], dtype=bool), counts)
        if (total := int(present.sum())) != len(vectors):
            raise InputError(f"{len(vectors)} vectors came for {total} passages; expected one each")
        database = self.database
        database.check_writable()
        row, doc = database.number("next_row"), database.number("next_doc")
        entry = None
        if total:
            docs = np.repeat(np.arange(doc, doc + len(documents)), counts)[present]
            rows = row + np.flatnonzero(present)
            if isinstance(vectors, Gathered):
                entry = segments.gather_segment(self.folder / "segments", self.template(), vectors, docs, rows)
            else:
                entry = self._write_segment([vectors], docs, rows)
        with database.transaction() as generation:
            self.documents.mark_deleted(self.documents.positions_of(delete), generation)
            self.documents.insert(documents, doc, row)
            if entry:
                self.list_segment(entry)
            if similarity is not None:
                self.database.put(storage=replace(self.storage, chosen=similarity).to_json())

    def delete(self, docs: Iterable[int]) -> int:
        """Mark living documents as deleted, by position; returns how many there were."""
        self.database.check_writable()
        with self.database.transaction() as generation:
            return self.documents.mark_deleted(docs, generation)

    def merge_small_segments(self) -> None:
        """Merge neighbouring segments, and columns, where many are of similar size; rows do not change."""
        self.database.check_writable()
        self.documents.columns.follow()
        while group := segments.to_merge(self.entries()):
            storage = self.storage
            parts = [self._segment(entry, storage.plan) for entry in group]
            entry = segments.merge_segments(
                self.folder / "segments", parts, self.template(), keep_vectors=storage.keep_vectors
            )
            with self.database.transaction():
                self.database.db.executemany(
                    "DELETE FROM segments WHERE first_row = ?", [(old.first_row,) for old in group]
                )
                self.list_segment(entry)
            self.sweep()

    # Segments and the trained recipe

    def entries(self) -> list[Entry]:
        """The segments as the last commit lists them."""
        query = "SELECT first_row, count, name, files FROM segments ORDER BY first_row"
        with self.database.access():
            rows = self.database.db.execute(query).fetchall()
        try:
            return [
                Entry(first_row, count, name, {file: Stamp(*value) for file, value in json.loads(files).items()})
                for first_row, count, name, files in rows
            ]
        except (TypeError, ValueError, AttributeError) as error:
            raise self.database.damaged(f"its list of segments cannot be read ({error})") from error

    def list_segment(self, entry: Entry) -> None:
        """List a segment, as part of a transaction."""
        self.database.db.execute(
            "INSERT INTO segments VALUES (?, ?, ?, ?)",
            (entry.first_row, entry.count, entry.name, json.dumps(entry.files)),
        )

    def _segment(self, entry: Entry, plan: Plan) -> DiskSegment:
        """A segment; as long as anyone holds it, the same object, with its files open and checked."""
        segment = self._opened.get(entry.name)
        if segment is None or (segment.entry, segment.plan) != (entry, plan):
            self._opened[entry.name] = segment = DiskSegment(
                self.folder / "segments" / entry.name, entry, plan, self.backend
            )
        return segment

    def _write_segment(self, vectors: Iterable[np.ndarray], docs: np.ndarray, rows: np.ndarray) -> Entry:
        return segments.write_segment(
            self.folder / "segments",
            self.backend,
            self.template(),
            vectors,
            docs,
            rows,
            keep_vectors=self.storage.keep_vectors,
        )

    @property
    def storage(self) -> Storage:
        """How the last commit stores vectors."""
        values = self.database.setting("storage")
        try:
            return Storage.from_json(values)
        except ValueError as error:
            raise self.database.damaged(str(error)) from error

    def template(self) -> VectorIndex:
        """The trained, empty index that new vectors are added to a copy of."""
        if self._template is None:
            storage = self.storage
            if (codebook := storage.codebook) is not None:
                file = self.folder / "codebooks" / codebook.name
                verify(file, codebook.stamp)
                self._template = self.backend.open(file, storage.plan, mapped=False)
            else:
                self._template = self.backend.train(storage.plan, np.empty((0, storage.plan.dim), np.float32))
        return self._template

    def forget_template(self) -> None:
        """Read the codebook again when it is next needed."""
        self._template = None

    def write_codebook(self, template: VectorIndex) -> Codebook | None:
        """Write a trained, empty index; None where there is nothing to keep of it."""
        if template.plan.recipe in ("flat", "binary"):
            return None
        folder = self.folder / "codebooks"
        folder.mkdir(exist_ok=True)
        file = folder / next_number(folder)
        return Codebook(file.name, template.save(file))

    # What no commit names

    def leftovers(self) -> list[Path]:
        """Files and folders that no commit names, and that the next writer removes."""
        codebook = self.storage.codebook
        named = {self.folder / "segments" / entry.name for entry in self.entries()}
        named |= {self.lexical.folder, self.folder / "codebooks" / (codebook.name if codebook else "")}
        parts = ("segments", "codebooks", "lexical")
        return sorted(entry for part in parts for entry in self.folder.glob(f"{part}/*") if entry not in named)

    def sweep(self) -> None:
        """Remove what no commit names: files of a killed writer, and files that were replaced."""
        for entry in self.leftovers():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _located(folder: Path) -> Path:
    """The absolute path: files are opened when first needed, wherever the process works by then."""
    folder = folder.absolute()
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise StoreError(f"{folder}: the path is not UTF-8, which FAISS and tantivy need; rename the folder") from error
    return folder
