"""The index folder: documents, passages and segments behind one SQLite commit point.

A commit writes and syncs a segment's files under a temporary name, renames the folder, syncs, and only then names it in
the transaction that also holds its documents. A reader sees the last commit whole or the one before it; files that no
commit names are swept by the next writer. A deleted document keeps its place, marked with the commit that deleted it,
until the index is compacted, so that readers of an older commit go on.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple
from weakref import WeakValueDictionary
from zlib import crc32

import numpy as np

from searchkit.indexer import dense, segments
from searchkit.indexer.files import BusyError, Stamp, StoreError, folder_size, next_number, stamp, take_lock, verify
from searchkit.indexer.filters import Condition
from searchkit.indexer.recipes import Plan
from searchkit.indexer.segments import DiskSegment, Entry

__all__ = ["NewDocument", "Store", "StoreError", "StoredPassage"]

FORMAT = 2

LAST = "last.commit"
"""The file with the number of the last commit: SQLite takes a log that is damaged or gone for one that ends earlier."""

_SCHEMA = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents (
    doc INTEGER PRIMARY KEY, id TEXT NOT NULL, title TEXT NOT NULL, metadata TEXT NOT NULL, checksum TEXT NOT NULL,
    first_row INTEGER NOT NULL, passages INTEGER NOT NULL, seal TEXT NOT NULL, deleted INTEGER NOT NULL DEFAULT 0,
    text TEXT NOT NULL -- last, since what stands behind a long text is slow to read, and filters read the rest
);
CREATE UNIQUE INDEX living ON documents (id) WHERE deleted = 0;
CREATE INDEX dead ON documents (deleted, doc, first_row, passages) WHERE deleted > 0;
CREATE TABLE passages (
    row INTEGER PRIMARY KEY, doc INTEGER NOT NULL REFERENCES documents, start INTEGER NOT NULL, stop INTEGER NOT NULL
);
CREATE TABLE segments (first_row INTEGER PRIMARY KEY, count INTEGER NOT NULL, name TEXT NOT NULL, files TEXT NOT NULL);
"""

_STRAY = (
    "NOT EXISTS (SELECT 1 FROM documents WHERE documents.doc = passages.doc AND row >= first_row "
    "AND row < first_row + documents.passages)"
)


class NewDocument(NamedTuple):
    """A document to commit with the character spans of its passages."""

    id: str
    title: str
    text: str
    metadata: str
    checksum: str
    spans: list[tuple[int, int]]


class StoredPassage(NamedTuple):
    """A passage as it comes back: `doc` is the document's position, `text` the passage's own."""

    row: int
    doc: int
    id: str
    title: str
    text: str
    start: int
    stop: int
    metadata: dict[str, Any]


class Examined(NamedTuple):
    """A document as it is read when the index is checked, with whether it is as its seal says."""

    doc: int
    first_row: int
    passages: int
    deleted: bool
    sound: bool
    document: NewDocument


class Snapshot(NamedTuple):
    """What one commit holds.

    Args:
        generation: Number of the commit.
        documents: Living documents.
        passages: Living passages.
        next_row: Above all rows, of the dead too.
        next_doc: Above all document positions.
        segments: The vectors.
        dead: (n,) int64, the rows of deleted documents, ascending.
        dead_docs: (n,) int64, the positions of deleted documents, ascending.
        storage: How vectors are stored (see `Store.storage`).
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
    storage: dict[str, Any]
    lexical: str


class Store:
    """One index folder, open for reading or for writing.

    Args:
        folder: The index folder.
        writable: Take the writer's lock, and sweep what a killed writer left.

    Raises:
        StoreError: See there; the message says what to do.
    """

    def __init__(self, folder: Path, *, writable: bool = False) -> None:
        self.folder = folder
        if not (folder / "index.db").is_file():
            if (folder / "last.commit").exists() or (folder / "segments").is_dir():
                raise StoreError(f"{folder}/index.db is missing, and with it all documents; build the index again")
            raise StoreError(f"{folder} is not an index (it has no index.db); make one with: searchkit index CORPUS")
        self._lock = take_lock(folder) if writable else None
        self._template: tuple[Plan, Any] | None = None
        self._opened: WeakValueDictionary[str, DiskSegment] = WeakValueDictionary()
        self._mutex = RLock()  # threads may share a store: what it reads in one transaction they read in turn
        self._filed = (0, 0, 0)  # the purge since which, and the document below which, all were read, and their sum
        with ExitStack() as undo, self._sound():
            undo.callback(self._release)
            self._db = _connect(folder / "index.db", writable=writable)
            undo.callback(self._db.close)
            self._check_format()
            # Damaged settings, and those of an earlier commit, may have forgotten what is needed.
            if writable and self.sealed() and not self.lost_commits():
                self._sweep()
            undo.pop_all()

    @classmethod
    def create(cls, folder: Path, settings: dict[str, Any], *, dim: int) -> Store:
        """Make an empty index folder with these settings, for vectors of one width, and open it for writing."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreError(f"{folder} exists and is not an index; name another place with --index")
        # Made under another name first: a folder with an index.db is always a whole index.
        staging = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(staging, ignore_errors=True)
        for name in ("segments", "codebooks", "lexical"):
            (staging / name).mkdir(parents=True)
        state = {
            "format": FORMAT, "generation": 0, "documents": 0, "passages": 0, "next_row": 0, "next_doc": 0,
            "tombstones": 0, "contents": 0, "compacted": 0, "lexical": "000001", "lexical_files": {},
            "storage": {"plan": asdict(Plan("flat", dim)), "keep_vectors": True, "codebook": None, "tuning": {}},
        }  # fmt: skip
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, staging, ignore_errors=True)
            with (
                _sound(staging / "index.db"),
                closing(sqlite3.connect(staging / "index.db", isolation_level=None)) as db,
            ):
                db.execute("PRAGMA auto_vacuum=incremental")  # or compaction could give nothing back
                db.execute("PRAGMA journal_mode=WAL")
                db.executescript(_SCHEMA)
                db.execute("BEGIN")
                for key, value in {**state, **settings}.items():
                    db.execute("INSERT INTO settings VALUES (?, ?)", (key, json.dumps(value)))
                db.execute("INSERT INTO settings VALUES ('seal', ?)", (json.dumps(_settings_seal(db)),))
                db.execute("COMMIT")
            if folder.is_dir():
                folder.rmdir()
            staging.rename(folder)
            undo.pop_all()
        return cls(folder, writable=True)

    @property
    def writable(self) -> bool:
        """Whether this store holds the writer's lock."""
        return self._lock is not None

    def close(self) -> None:
        """Fold the write-ahead log back in and let the lock go."""
        with suppress(sqlite3.Error):  # on a full disk the log stays, and is folded back in another time
            if self._lock is not None:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()
        self._release()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading

    def settings(self) -> dict[str, Any]:
        """Everything `create` and the commits have set."""
        with self._sound():
            return {key: json.loads(value) for key, value in self._db.execute("SELECT key, value FROM settings")}

    def setting(self, key: str) -> Any:
        """One of the settings."""
        with self._sound():
            found = self._db.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
            if found is None:
                raise sqlite3.DatabaseError(f"the setting {key} is missing")
            return json.loads(found[0])

    def counts(self) -> tuple[int, int]:
        """(documents, passages) of the last commit, without the deleted."""
        return int(self.setting("documents")), int(self.setting("passages"))

    def snapshot(self) -> Snapshot:
        """The last commit, with its segments' files opened only when they are needed."""
        last = self._last_commit()  # before the database: a writer may be at work
        with self._sound(), self._reading():
            self._check_settings()
            state = {key: json.loads(value) for key, value in self._db.execute("SELECT key, value FROM settings")}
            plan = Plan(**state["storage"]["plan"])
            found = [self._segment(entry, plan) for entry in self._entries()]
            ranges = self._db.execute("SELECT doc, first_row, passages FROM documents WHERE deleted > 0").fetchall()
            if _tombstones(0, ranges) != state["tombstones"]:
                raise StoreError(
                    f"{self.folder / 'index.db'} is damaged: its deletions differ from their checksum; "
                    "mend the index with: searchkit check INDEX --repair"
                )
        if state["generation"] < last:
            raise StoreError(
                f"{self.folder / 'index.db'} is at commit {state['generation']}, but commit {last} was made: its log, "
                "index.db-wal, is damaged or missing; put a copy of both in their place, or go on from there with: "
                "searchkit check INDEX --repair"
            )
        dead = [np.arange(first, first + count) for _, first, count in sorted(ranges, key=lambda each: each[1])]
        return Snapshot(
            generation=state["generation"],
            documents=state["documents"],
            passages=state["passages"],
            next_row=state["next_row"],
            next_doc=state["next_doc"],
            segments=found,
            dead=np.concatenate(dead) if dead else np.empty(0, np.int64),
            dead_docs=np.array(sorted(doc for doc, _, _ in ranges), dtype=np.int64),
            storage=state["storage"],
            lexical=state["lexical"],
        )

    def _segment(self, entry: Entry, plan: Plan) -> DiskSegment:
        """A segment; as long as anybody holds it, the same one, with its files open and checked."""
        before = self._opened.get(entry.name)
        if before is not None and (before.entry, before.plan) == (entry, plan):
            return before
        self._opened[entry.name] = found = DiskSegment(self.folder / "segments" / entry.name, entry, plan)
        return found

    def checksum_of(self, document_id: str) -> str | None:
        """The checksum of the stored document of that id, or None when there is none."""
        with self._sound():
            found = self._db.execute(
                "SELECT checksum FROM documents WHERE id = ? AND deleted = 0", (document_id,)
            ).fetchone()
        return None if found is None else str(found[0])

    def ids_of(self, docs: Iterable[int]) -> dict[int, str]:
        """The ids of documents by their positions, of the deleted too."""
        wanted = json.dumps([int(doc) for doc in docs])
        with self._sound():
            self._check_contents()
            return dict(
                self._db.execute(
                    "SELECT doc, id FROM documents WHERE doc IN (SELECT value FROM json_each(?))", (wanted,)
                )
            )

    def known_ids(self, ids: Sequence[str]) -> set[str]:
        """Which of these document ids the index holds."""
        query = "SELECT id FROM documents {} WHERE deleted = 0 AND id IN (SELECT value FROM json_each(?))"
        with self._sound():
            found = {found for (found,) in self._db.execute(query.format(""), (json.dumps(list(ids)),))}
            if missing := [each for each in ids if each not in found]:
                # Neither the search tree of the ids nor the ids themselves may be damaged when none is there.
                self._check_contents()
                if self._db.execute(query.format("NOT INDEXED"), (json.dumps(missing),)).fetchone():
                    raise sqlite3.DatabaseError("the search tree of the ids differs from the documents")
            return found

    def matching(self, condition: Condition, snapshot: Snapshot) -> tuple[np.ndarray, np.ndarray]:
        """(docs, rows), each int64 ascending: what a filter lets through in a commit.

        Raises:
            StoreError: The database is damaged, or what was deleted since that commit is not in it any more.
        """
        # Which are deleted is known by the snapshot: the marks in this table have no checksum of their own.
        query = f"SELECT doc, first_row, passages FROM documents WHERE doc < ? AND ({condition.sql}) ORDER BY doc"
        with self._sound(), self._reading():
            if int(self.setting("compacted")) > snapshot.generation:
                raise StoreError(f"{self.folder} has been compacted since it was opened; open it again")
            self._check_contents()
            found = self._db.execute(query, (snapshot.next_doc, *condition.parameters)).fetchall()
            table = np.array(found, dtype=np.int64).reshape(-1, 3)
            table = table[~np.isin(table[:, 0], snapshot.dead_docs)]
        docs, firsts, counts = table.T
        # Row ranges one after another: the first row of each, repeated, and the position within.
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return docs, np.sort(np.repeat(firsts, counts) + within)

    def passages(self, rows: Sequence[int]) -> dict[int, StoredPassage]:
        """Passages by row, each document compared with its checksum; compacted ones are missing."""
        query = (
            "SELECT DISTINCT d.doc, d.id, d.title, d.text, d.metadata, d.checksum, d.first_row, d.passages, d.seal "
            "FROM passages p JOIN documents d USING (doc) WHERE p.row IN (SELECT value FROM json_each(?))"
        )
        wanted = {int(row) for row in rows}
        found = {}
        with self._sound():
            for doc, id, title, text, metadata, checksum, first, count, seal in self._db.execute(
                query, (json.dumps(sorted(wanted)),)
            ).fetchall():
                spans = self._spans(doc, first, count)
                self._check_seal(seal, doc, first, NewDocument(id, title, text, metadata, checksum, spans))
                for row, (start, stop) in enumerate(spans, start=first):
                    if row in wanted:
                        found[row] = StoredPassage(
                            row, doc, id, title, text[start:stop], start, stop, json.loads(metadata)
                        )
        return found

    def _check_seal(self, seal: str, doc: int, first_row: int, document: NewDocument) -> None:
        if seal != _seal(doc, first_row, document):
            raise StoreError(
                f"{self.folder / 'index.db'} is damaged: document {document.id!r} differs from its checksum; "
                "see what is sound with: searchkit check INDEX"
            )

    def _check_contents(self) -> None:
        """Compare what is asked of all documents at once, ids, titles and metadata, with its checksum, once.

        A document that damage hides from a filter is not among the hits, whose seals are compared.
        """
        with self._reading():
            settings = {key: int(self.setting(key)) for key in ("compacted", "next_doc", "contents")}
            since, below, found = self._filed
            if since != settings["compacted"]:
                below = found = 0
            found ^= self._contents("doc >= ?", (below,))
        if found != settings["contents"]:
            raise self._differing()
        self._filed = (settings["compacted"], settings["next_doc"], found)

    def _differing(self) -> StoreError:
        return StoreError(
            f"{self.folder / 'index.db'} is damaged: its documents differ from their checksum; "
            "see what is sound with: searchkit check INDEX"
        )

    def _contents(self, condition: str = "1", parameters: tuple[int, ...] = ()) -> int:
        """The checksum of what some documents have besides their texts, in any order."""
        query = f"SELECT doc, first_row, passages, id, title, metadata FROM documents WHERE {condition}"
        found = 0
        for each in self._db.execute(query, parameters):
            found ^= _sum(each)
        return found

    def _spans(self, doc: int, first: int, count: int) -> list[tuple[int, int]]:
        return self._db.execute(
            "SELECT start, stop FROM passages WHERE row >= ? AND row < ? AND doc = ? ORDER BY row",
            (first, first + count, doc),
        ).fetchall()

    def texts(self, skip: int = 0, *, living: bool = False) -> Iterator[tuple[int, str, str]]:
        """(row, title, passage text) in order, for building the lexical index.

        Args:
            skip: How many to leave out at the beginning.
            living: Leave out deleted documents.
        """
        query = (
            "SELECT doc, id, title, text, metadata, checksum, first_row, passages, seal FROM documents "
            f"WHERE doc >= ? {'AND deleted = 0' if living else ''} ORDER BY doc"
        )
        with self._sound():
            row, first_doc = self._db.execute(
                "SELECT row, doc FROM passages ORDER BY row LIMIT 1 OFFSET ?", (skip,)
            ).fetchone() or (0, 1 << 62)
            for doc, id, title, text, metadata, checksum, first, count, seal in self._db.execute(query, (first_doc,)):
                spans = self._spans(doc, first, count)
                self._check_seal(seal, doc, first, NewDocument(id, title, text, metadata, checksum, spans))
                for number, (start, stop) in enumerate(spans, start=first):
                    if number >= row:
                        yield number, title, text[start:stop]

    def documents(self) -> Iterator[tuple[str, str, str]]:
        """(id, title, text) of every living document, in the order they came, each compared with its checksum."""
        for id, title, text, _ in self.living():
            yield id, title, text

    def living(self) -> Iterator[tuple[str, str, str, str]]:
        """(id, title, text, metadata as JSON) of every living document in order, each compared with its checksum."""
        query = (
            "SELECT doc, first_row, passages, seal, deleted, id, title, text, metadata, checksum, "
            "(SELECT value FROM settings WHERE key = 'tombstones'), "
            "(SELECT value FROM settings WHERE key = 'contents') "
            "FROM documents NOT INDEXED ORDER BY doc"
        )
        tombstones, contents, expected = 0, 0, ["0", "0"]
        with self._sound():
            for doc, first, count, seal, deleted, *parts, tombs, held in self._db.execute(query):
                expected = [tombs, held]
                id, title, text, metadata, checksum = parts
                document = NewDocument(id, title, text, metadata, checksum, self._spans(doc, first, count))
                self._check_seal(seal, doc, first, document)
                contents ^= _sum((doc, first, count, document.id, document.title, document.metadata))
                if deleted:
                    tombstones = _tombstones(tombstones, [(doc, first, count)])
                else:
                    yield document.id, document.title, document.text, document.metadata
        if expected != [json.dumps(tombstones), json.dumps(contents)]:
            raise self._differing()

    def checksum(self) -> str:
        """SHA-256 of all living documents in order, as hex; equal for equal collections."""
        whole = hashlib.sha256()
        with self._sound():
            for row in self._db.execute("SELECT id, checksum FROM documents WHERE deleted = 0 ORDER BY doc"):
                whole.update(json.dumps(row).encode())
        return whole.hexdigest()

    def sizes(self) -> dict[str, int]:
        """Bytes on disk by part: the database ("index.db"), vectors ("segments") and words ("lexical")."""
        database = sum(file.stat().st_size for file in self.folder.glob("index.db*"))
        vectors = folder_size(self.folder / "segments") + folder_size(self.folder / "codebooks")
        return {"index.db": database, "segments": vectors, "lexical": folder_size(self.folder / "lexical")}

    def stored_passages(self) -> int:
        """Passages that the database holds, of deleted documents too."""
        with self._sound():
            (count,) = self._db.execute("SELECT count(*) FROM passages").fetchone()
        return int(count)

    # Writing

    def commit(self, documents: Sequence[NewDocument], vectors: np.ndarray, *, delete: Sequence[str] = ()) -> None:
        """Delete documents, and add others with one vector for each of their passages, all or nothing.

        Args:
            documents: In order; their spans, one after another, are the passages.
            vectors: (number of spans, dim) float32.
            delete: Ids to delete first; unknown ones are left as they are.
        """
        total = sum(len(document.spans) for document in documents)
        if total != len(vectors):
            raise ValueError(f"{len(vectors)} vectors came for {total} passages; expected one each")
        self._check_writable()
        row, doc = int(self.setting("next_row")), int(self.setting("next_doc"))
        entry = None
        if total:
            docs = np.repeat(np.arange(doc, doc + len(documents)), [len(document.spans) for document in documents])
            entry = self._write_segment([vectors], docs, np.arange(row, row + total))
        with self._transaction() as generation:
            self._delete(self._positions(delete), generation)
            contents = int(self.setting("contents"))
            for document in documents:
                spans = [(row + n, doc, start, stop) for n, (start, stop) in enumerate(document.spans)]
                self._db.execute(
                    "INSERT INTO documents (doc, id, title, text, metadata, checksum, first_row, passages, seal) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (doc, *document[:5], row, len(spans), _seal(doc, row, document)),
                )
                contents ^= _sum((doc, row, len(spans), document.id, document.title, document.metadata))
                self._db.executemany("INSERT INTO passages VALUES (?, ?, ?, ?)", spans)
                doc, row = doc + 1, row + len(spans)
            self._add("documents", len(documents))
            self._add("passages", total)
            self._set(next_row=row, next_doc=doc, contents=contents)
            if entry:
                self._name(entry)

    def delete(self, docs: Iterable[int]) -> int:
        """Mark living documents as deleted, by position; returns how many there were."""
        self._check_writable()
        with self._transaction() as generation:
            return self._delete(docs, generation)

    def positions_of(self, ids: Iterable[str]) -> list[int]:
        """The positions of living documents by their ids; unknown ids are left out."""
        with self._sound():
            return self._positions(ids)

    def join_small_segments(self) -> None:
        """Join neighbouring segments where many are of like size; the rows stay what they are."""
        self._check_writable()
        while group := segments.to_join(self._entries()):
            plan, template = self.storage()
            parts = [self._segment(entry, plan) for entry in group]
            keep = self.setting("storage")["keep_vectors"]
            entry = segments.join_segments(self.folder / "segments", parts, template, keep_vectors=keep)
            with self._transaction():
                self._db.executemany("DELETE FROM segments WHERE first_row = ?", [(old.first_row,) for old in group])
                self._name(entry)
            self._sweep()

    def rewrite(
        self,
        plan: Plan,
        template: Any,
        *,
        keep_vectors: bool = True,
        tuning: dict[str, Any] | None = None,
        purge: bool = False,
        make_lexical: Callable[[Path], None] | None = None,
    ) -> None:
        """Write all vectors anew, in one commit: by another recipe, or without those of deleted documents.

        Args:
            plan: The recipe from now on.
            template: Its trained, empty index.
            keep_vectors: Keep half-precision vectors beside compressed ones.
            tuning: How hard to search from now on; None leaves it.
            purge: Leave out what is deleted, here and in the database.
            make_lexical: Makes the lexical index of the living passages in a folder; with `purge` only.
        """
        self._check_writable()
        snapshot = self.snapshot()
        if purge:
            with self._sound():
                self._check_contents()
        dead = np.isin(segments.all_rows(snapshot.segments), snapshot.dead) if snapshot.segments else np.empty(0, bool)
        # What was put in by the same training stays as it is: of codes made of codes some differ.
        same = (plan, template, keep_vectors) == (*self.storage(), snapshot.storage["keep_vectors"])
        codebook = snapshot.storage["codebook"] if same else self._write_codebook(plan, template)
        place = self.folder / "segments"
        entries = []
        for group, kept in _groups(snapshot.segments, ~dead if purge else np.ones_like(dead), plan.dim):
            if not kept.any():
                continue
            if same:
                entry = segments.join_segments(place, group, template, keep_vectors=keep_vectors, kept=kept)
            else:
                vectors = segments.vectors_of(group, kept)
                rows, docs = segments.all_rows(group)[kept], np.concatenate([part.docs for part in group])[kept]
                entry = segments.write_segment(place, plan, template, vectors, docs, rows, keep_vectors=keep_vectors)
            entries.append(entry)
        lexical = snapshot.lexical
        if purge and make_lexical:
            lexical = next_number(self.folder / "lexical", snapshot.lexical)
            make_lexical(self.folder / "lexical" / lexical)
        with self._transaction() as generation:
            self._db.execute("DELETE FROM segments")
            for entry in entries:
                self._name(entry)
            storage = {
                "plan": asdict(plan), "keep_vectors": keep_vectors, "codebook": codebook,
                "tuning": snapshot.storage["tuning"] if tuning is None else tuning,
            }  # fmt: skip
            self._set(storage=storage)
            if purge:
                self._db.execute("DELETE FROM passages WHERE doc IN (SELECT doc FROM documents WHERE deleted > 0)")
                contents = int(self.setting("contents")) ^ self._contents("deleted > 0")
                self._db.execute("DELETE FROM documents WHERE deleted > 0")
                self._set(tombstones=0, contents=contents, compacted=generation, lexical=lexical)
                self._set(lexical_files=_stamps(self.folder / "lexical" / lexical))
        self._template = None
        self._sweep()
        if purge:
            self._db.executescript("PRAGMA incremental_vacuum")  # execute() would take one step of it, one page

    def set_tuning(self, tuning: dict[str, Any]) -> None:
        """How hard compressed vectors are searched from now on."""
        self._check_writable()
        with self._transaction():
            self._set(storage={**self.setting("storage"), "tuning": tuning})

    def name_lexical(self) -> None:
        """Say in a commit what the lexical index's files are now."""
        known = {name: Stamp(*value) for name, value in self.setting("lexical_files").items()}
        files = _stamps(self.folder / "lexical" / self.setting("lexical"), known)
        if files != known:
            with self._transaction():
                self._set(lexical_files=files)

    def lexical_folder(self) -> Path:
        """Where the lexical index of the last commit is."""
        return self.folder / "lexical" / str(self.setting("lexical"))

    def check_lexical(self) -> None:
        """Raise StoreError unless the lexical index's files are as a commit has named them."""
        folder = self.lexical_folder()
        for name, value in self.setting("lexical_files").items():
            verify(folder / name, Stamp(*value))

    def _write_segment(self, vectors: Iterable[np.ndarray], docs: np.ndarray, rows: np.ndarray) -> Entry:
        plan, template = self.storage()
        keep = bool(self.setting("storage")["keep_vectors"])
        return segments.write_segment(self.folder / "segments", plan, template, vectors, docs, rows, keep_vectors=keep)

    def storage(self) -> tuple[Plan, Any]:
        """How vectors are stored, and the trained, empty index that new ones are put into."""
        if self._template is None:
            storage = self.setting("storage")
            plan, codebook = Plan(**storage["plan"]), storage["codebook"]
            template = dense.SignIndex(plan.dim) if plan.recipe == "binary" else None
            if codebook is not None:
                file = self.folder / "codebooks" / codebook["name"]
                verify(file, Stamp(codebook["bytes"], codebook["sha256"]))
                template = dense.read(file, plan, mapped=False)
            self._template = (plan, template)
        return self._template

    def _write_codebook(self, plan: Plan, template: Any) -> dict[str, Any] | None:
        if plan.recipe in ("flat", "binary"):
            return None
        place = self.folder / "codebooks"
        place.mkdir(exist_ok=True)
        file = place / next_number(place)
        dense.write(template, file)
        return {"name": file.name, **stamp(file)._asdict()}

    def _entries(self) -> list[Entry]:
        query = "SELECT first_row, count, name, files FROM segments ORDER BY first_row"
        return [
            Entry(first_row, count, name, {file: Stamp(*value) for file, value in json.loads(files).items()})
            for first_row, count, name, files in self._db.execute(query).fetchall()
        ]

    def _name(self, entry: Entry) -> None:
        self._db.execute(
            "INSERT INTO segments VALUES (?, ?, ?, ?)",
            (entry.first_row, entry.count, entry.name, json.dumps(entry.files)),
        )

    def _positions(self, ids: Iterable[str]) -> list[int]:
        query = "SELECT doc FROM documents WHERE deleted = 0 AND id IN (SELECT value FROM json_each(?))"
        return [doc for (doc,) in self._db.execute(query, (json.dumps(list(ids)),))]

    def _delete(self, docs: Iterable[int], generation: int) -> int:
        wanted = json.dumps([int(doc) for doc in docs])
        query = (
            "SELECT doc, first_row, passages FROM documents "
            "WHERE deleted = 0 AND doc IN (SELECT value FROM json_each(?))"
        )
        found = self._db.execute(query, (wanted,)).fetchall()
        if found:
            self._db.executemany(
                "UPDATE documents SET deleted = ? WHERE doc = ?", [(generation, doc) for doc, _, _ in found]
            )
            self._add("documents", -len(found))
            self._add("passages", -sum(count for _, _, count in found))
            self._set(tombstones=_tombstones(int(self.setting("tombstones")), found))
        return len(found)

    def _set(self, **values: Any) -> None:
        for key, value in values.items():
            self._db.execute("UPDATE settings SET value = ? WHERE key = ?", (json.dumps(value), key))

    def _add(self, key: str, count: int) -> None:
        self._set(**{key: int(self.setting(key)) + count})

    @contextmanager
    def _transaction(self) -> Iterator[int]:
        """One commit; gives its number."""
        with self._sound():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._check_settings()  # or damage would be sealed
                generation = 1 + int(self.setting("generation"))
                yield generation
                self._set(generation=generation)
                self._set(seal=_settings_seal(self._db))
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has ended the transaction already
                    self._db.execute("ROLLBACK")
                raise
            self._note_commit(generation)

    def _note_commit(self, generation: int) -> None:
        # After the commit, of one length and in its place: a number that lags behind, or is not written, does no harm.
        with suppress(OSError):
            file = os.open(self.folder / LAST, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                number = b"%020d" % generation
                os.pwrite(file, b"%s %08x\n" % (number, crc32(number)), 0)
            finally:
                os.close(file)

    def _last_commit(self) -> int:
        """The number that the last commit left beside the database; 0 where it cannot be read."""
        with suppress(OSError, ValueError):
            number, sum_ = (self.folder / LAST).read_bytes().split()
            if int(sum_, 16) == crc32(number):
                return int(number)
        return 0

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Everything read inside is of one commit."""
        if self._db.in_transaction:  # a larger one
            yield
            return
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            if self._db.in_transaction:  # damage may have ended it
                self._db.execute("COMMIT")  # type: ignore[unreachable]

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """One thread at a time, and what is found damaged as a StoreError."""
        with self._mutex, _sound(self.folder / "index.db"):
            yield

    def _check_settings(self) -> None:
        if self.setting("seal") != _settings_seal(self._db):
            raise StoreError(
                f"{self.folder / 'index.db'} is damaged: its settings differ from their checksum; "
                "mend the index with: searchkit check INDEX --repair"
            )

    def _check_writable(self) -> None:
        if self._lock is None:
            raise StoreError(f"{self.folder} is open for reading; open it for writing to change it")

    def _sweep(self) -> None:
        """Remove what no commit names: a killed writer's files, and those that were replaced."""
        codebook = self.setting("storage")["codebook"]
        named = {
            "segments": {entry.name for entry in self._entries()},
            "codebooks": {codebook["name"]} if codebook else set(),
            "lexical": {self.setting("lexical")},
        }
        for folder, names in named.items():
            for entry in list(self.folder.glob(f"{folder}/*")):
                if entry.name not in names:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _check_format(self) -> None:
        found = self.settings().get("format")
        if found != FORMAT:
            raise StoreError(
                f"{self.folder} has format {found}, this version reads {FORMAT}; "
                "use the version of searchkit that made it, or build the index again"
            )

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # Checking and repairing

    def waiting(self) -> tuple[int, int]:
        """(documents, passages) that are deleted and wait for compaction."""
        query = "SELECT count(*), coalesce(sum(passages), 0) FROM documents WHERE deleted > 0"
        with self._sound():
            documents, passages = self._db.execute(query).fetchone()
        return int(documents), int(passages)

    def lost_commits(self) -> int:
        """How many commits the database has forgotten, because its log is damaged or gone."""
        last = self._last_commit()
        return max(0, last - int(self.setting("generation")))

    def forget_lost_commits(self) -> None:
        """Go on from the commit that the database is at."""
        self._check_writable()
        self._note_commit(int(self.setting("generation")))

    def integrity(self) -> list[str]:
        """What SQLite itself finds wrong with the database."""
        with self._sound():
            found = [str(fault) for (fault,) in self._db.execute("PRAGMA integrity_check(20)")]
        return [] if found == ["ok"] else found

    def sealed(self) -> bool:
        """Whether the settings and the list of segments are as the last commit left them."""
        with self._sound():
            return bool(self.setting("seal") == _settings_seal(self._db))

    def counted(self) -> dict[str, int]:
        """Settings that can be told from the tables, as the tables have them."""
        query = "SELECT count(*), coalesce(sum(passages), 0) FROM documents WHERE deleted = 0"
        with self._sound():
            documents, passages = self._db.execute(query).fetchone()
            ranges = self._db.execute("SELECT doc, first_row, passages FROM documents WHERE deleted > 0").fetchall()
        return {"documents": documents, "passages": passages, "tombstones": _tombstones(0, ranges)}

    def complete(self) -> bool:
        """Whether the documents together are those that the last commit left; their own seals come first."""
        with self._sound():
            return self._contents() == int(self.setting("contents"))

    def examine(self) -> Iterator[Examined]:
        """Every document, of the deleted too, in order, with what can be read of it."""
        query = (
            "SELECT doc, first_row, passages, deleted > 0, CAST(seal AS BLOB), CAST(id AS BLOB), CAST(title AS BLOB), "
            "CAST(text AS BLOB), CAST(metadata AS BLOB), CAST(checksum AS BLOB) FROM documents ORDER BY doc"
        )
        with self._sound():
            for doc, first, count, deleted, seal, *parts in self._db.execute(query):
                try:
                    id, title, text, metadata, checksum = (part.decode() for part in parts)
                    document = NewDocument(id, title, text, metadata, checksum, self._spans(doc, first, count))
                    sound = seal.decode() == _seal(doc, first, document)
                except (AttributeError, TypeError, UnicodeDecodeError):  # a damaged length, type or character
                    id, title, text, metadata, checksum = ((part or b"").decode(errors="replace") for part in parts)
                    document, sound = NewDocument(id, title, text, metadata, checksum, []), False
                yield Examined(doc, first, count, bool(deleted), sound, document)

    def passage_rows(self, first: int, below: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, docs), each int64: the passages from one row to below another, of deleted documents too."""
        query = (
            "SELECT row, doc FROM passages JOIN documents USING (doc) "
            "WHERE row >= ? AND row < ? AND row >= first_row AND row < first_row + documents.passages ORDER BY row"
        )
        with self._sound():
            found = np.array(self._db.execute(query, (first, below)).fetchall(), dtype=np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1]

    def stray_passages(self) -> int:
        """Passages that belong to no document."""
        with self._sound():
            (count,) = self._db.execute(f"SELECT count(*) FROM passages WHERE {_STRAY}").fetchone()
        return int(count)

    def named_segments(self) -> list[DiskSegment]:
        """The segments as the last commit lists them, no checksum compared."""
        with self._sound():
            plan = Plan(**self.setting("storage")["plan"])
            return [DiskSegment(self.folder / "segments" / entry.name, entry, plan) for entry in self._entries()]

    def document(self, doc: int) -> tuple[int, NewDocument]:
        """The first row and the content of a document, by its position."""
        query = "SELECT id, title, text, metadata, checksum, first_row, passages FROM documents WHERE doc = ?"
        with self._sound():
            id, title, text, metadata, checksum, first, count = self._db.execute(query, (doc,)).fetchone()
            return int(first), NewDocument(id, title, text, metadata, checksum, self._spans(doc, first, count))

    def leftovers(self) -> list[Path]:
        """What no commit names, and the next writer removes."""
        codebook = self.setting("storage")["codebook"]
        named = {self.folder / "segments" / entry.name for entry in self._entries()}
        named |= {self.lexical_folder(), self.folder / "codebooks" / (codebook["name"] if codebook else "")}
        parts = ("segments", "codebooks", "lexical")
        return sorted(entry for part in parts for entry in self.folder.glob(f"{part}/*") if entry not in named)

    def reindex(self) -> None:
        """Make the database's search trees anew from its tables."""
        self._check_writable()
        with self._sound():
            self._db.execute("REINDEX")

    def mend_settings(self) -> str | None:
        """Set the one setting that is wrong and can be told from the rest; None where the seal fits no such change."""
        self._check_writable()
        with self._sound():
            row, doc = self._db.execute(
                "SELECT (SELECT max(row) FROM passages), (SELECT max(doc) FROM documents)"
            ).fetchone()
            folder = self.folder / "lexical" / str(self.setting("lexical"))
            found = {
                **self.counted(),
                "contents": self._contents(),
                "next_row": 1 + (-1 if row is None else row),
                "next_doc": 1 + (-1 if doc is None else doc),
                "lexical_files": _stamps(folder) if folder.is_dir() else {},
            }
            for key, value in found.items():
                self._db.execute("BEGIN IMMEDIATE")
                self._set(**{key: value})
                fits = self.setting("seal") == _settings_seal(self._db)
                self._db.execute("COMMIT" if fits else "ROLLBACK")
                if fits:
                    return key
        return None

    def mend_deletions(self) -> str | None:
        """Set the one deletion mark that is wrong, where the checksum says which; the id of its document, or None."""
        self._check_writable()
        differing = self.counted()["tombstones"] ^ int(self.setting("tombstones"))
        with self._sound():
            for doc, first, count, deleted in self._db.execute(
                "SELECT doc, first_row, passages, deleted FROM documents"
            ):
                if _tombstones(0, [(doc, first, count)]) == differing:
                    mark = 0 if deleted else int(self.setting("generation"))
                    self._db.execute("UPDATE documents SET deleted = ? WHERE doc = ?", (mark, doc))
                    return self.ids_of([doc])[doc]
        return None

    def recount(self) -> None:
        """Set what can be counted to what there is."""
        self._check_writable()
        with self._transaction():
            self._set(**self.counted())  # not what the contents are: some may be about to be taken out

    def mend_codebook(self, plan: Plan, template: Any) -> None:
        """Name a new codebook in a commit."""
        self._check_writable()
        codebook = self._write_codebook(plan, template)
        with self._transaction():
            self._set(storage={**self.setting("storage"), "plan": asdict(plan), "codebook": codebook})
        self._template = None

    def mend(
        self,
        entries: Sequence[Entry],
        *,
        lost: Iterable[int] = (),
        new_lexical: bool = False,
        plan: Plan | None = None,
    ) -> None:
        """Replace what was damaged, in one commit.

        Args:
            entries: All segments from now on.
            lost: Positions of documents to take out, whose seals fail.
            new_lexical: Begin an empty lexical index.
            plan: A recipe without a codebook, where that was lost.
        """
        self._check_writable()
        with self._transaction() as generation:
            self._db.execute(
                "DELETE FROM documents WHERE doc IN (SELECT value FROM json_each(?))", (json.dumps(list(lost)),)
            )
            self._db.execute(f"DELETE FROM passages WHERE {_STRAY}")
            self._db.execute("DELETE FROM segments")
            for entry in entries:
                self._name(entry)
            # As after a compaction, readers of earlier commits must open the index again.
            self._set(**self.counted(), contents=self._contents(), compacted=generation)
            if plan is not None:
                self._set(storage={**self.setting("storage"), "plan": asdict(plan), "codebook": None})
            if new_lexical:
                (self.folder / "lexical").mkdir(exist_ok=True)
                self._set(lexical=next_number(self.folder / "lexical", self.setting("lexical")), lexical_files={})
        self._template = None
        self._sweep()


def _groups(parts: Sequence[DiskSegment], kept: np.ndarray, dim: int) -> Iterator[tuple[list[DiskSegment], Any]]:
    """Neighbouring segments of about a gigabyte of float32 together, each with its part of a mask over all rows."""
    most = max(1, (1 << 30) // (4 * dim))
    group: list[DiskSegment] = []
    start = 0
    for part in [*parts, None]:
        size = sum(each.count for each in group)
        if group and (part is None or size + part.count > most):
            yield group, kept[start : start + size]
            group, start = [], start + size
        if part is not None:
            group.append(part)


def _seal(doc: int, first_row: int, document: NewDocument) -> str:
    """The checksum of a document's own row and its passages' rows, which SQLite does not keep."""
    spans = [list(span) for span in document.spans]
    content = json.dumps([doc, first_row, *document[:5], spans], ensure_ascii=False)
    return blake2b(content.encode(), digest_size=12).hexdigest()


def _settings_seal(db: sqlite3.Connection) -> str:
    """The checksum of the settings and of the list of segments."""
    settings = db.execute("SELECT key, value FROM settings WHERE key <> 'seal' ORDER BY key").fetchall()
    entries = db.execute("SELECT first_row, count, name, files FROM segments ORDER BY first_row").fetchall()
    return blake2b(json.dumps([settings, entries]).encode(), digest_size=12).hexdigest()


@contextmanager
def _sound(file: Path) -> Iterator[None]:
    """What goes wrong with a database, in words that say what to do."""
    try:
        yield
    except StoreError:
        raise
    except sqlite3.OperationalError as error:
        text = str(error)
        # A log's shared memory finds no room: SQLite calls that an I/O error.
        if "full" in text or getattr(error, "sqlite_errorname", "") == "SQLITE_IOERR_SHMSIZE":
            raise OSError(errno.ENOSPC, "the disk is full; what was committed before is whole", str(file)) from error
        if "locked" in text:
            raise BusyError(f"{file} is held by another program ({text}); try again when it is done") from error
        if any(words in text for words in ("disk I/O", "unable to open", "readonly")):
            raise StoreError(f"{file} cannot be used ({text}); see to its disk and its permissions") from error
        raise _unreadable(file, error) from error
    except (sqlite3.DatabaseError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> StoreError:
    return StoreError(f"{file} cannot be read ({type(error).__name__}: {error}); build the index again")


def _sum(row: tuple[Any, ...]) -> int:
    """The checksum of some values of one document."""
    content = "\0".join(map(str, row)).encode(errors="replace")
    return int.from_bytes(blake2b(content, digest_size=6).digest(), "big")


def _tombstones(before: int, ranges: Iterable[tuple[int, int, int]]) -> int:
    """A checksum of the deleted documents, in any order; deleting more goes on from what it was before."""
    for each in ranges:
        before ^= int.from_bytes(blake2b(json.dumps(list(each)).encode(), digest_size=6).digest(), "big")
    return before


def _stamps(folder: Path, known: dict[str, Stamp] | None = None) -> dict[str, Stamp]:
    """What is in the lexical index's files; those that are known, and never change once written, are not read again."""
    files = sorted(file for file in folder.glob("[!.]*") if file.suffix != ".lock")
    known = {name: value for name, value in (known or {}).items() if name != "meta.json"}
    return {file.name: known.get(file.name) or stamp(file) for file in files}


def _connect(file: Path, *, writable: bool) -> sqlite3.Connection:
    if writable:
        db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        # full: a commit is on the disk when it returns.
        db.execute("PRAGMA synchronous=full")
        return db
    uri = file.resolve().as_uri()
    db = sqlite3.connect(f"{uri}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
    try:
        db.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.DatabaseError as error:
        db.close()
        log = file.with_name(f"{file.name}-wal")
        if not isinstance(error, sqlite3.OperationalError) or (log.exists() and log.stat().st_size):
            raise
        # A read-only place, or a full disk, cannot hold the log's shared memory; without a log nobody needs it.
        db = sqlite3.connect(f"{uri}?immutable=1", uri=True, isolation_level=None, check_same_thread=False)
    return db
