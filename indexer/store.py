"""The index folder: documents, passages and segments behind one SQLite commit point.

A commit writes and syncs the segment's file under a temporary name, renames it, syncs the folder, and only then names
it in the transaction that also holds its documents. A reader sees the last commit whole or the one before it; files
that no commit names are swept by the next writer.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from searchkit.indexer import dense

FORMAT = 1
MERGED_BYTES = 16 << 20
"""Small segments are merged up to this size of vectors, so that merging needs little memory."""

_SCHEMA = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents (
    doc INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, text TEXT NOT NULL,
    metadata TEXT NOT NULL, checksum TEXT NOT NULL
);
CREATE TABLE passages (
    row INTEGER PRIMARY KEY, doc INTEGER NOT NULL REFERENCES documents, start INTEGER NOT NULL, stop INTEGER NOT NULL
);
CREATE TABLE segments (
    first_row INTEGER PRIMARY KEY, rows INTEGER NOT NULL, name TEXT NOT NULL, bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL
);
"""


class StoreError(ValueError):
    """The index folder is missing, of another kind, damaged, or held by another writer."""


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
            raise StoreError(f"{folder} is not an index (it has no index.db); make one with: searchkit index CORPUS")
        self._lock = _take_lock(folder) if writable else None
        try:
            with ExitStack() as undo:
                undo.callback(self._release)
                self._db = _connect(folder / "index.db", writable=writable)
                undo.callback(self._db.close)
                self._check_format()
                if writable:
                    self._sweep()
                undo.pop_all()
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{folder / 'index.db'} cannot be read ({error}); build the index again") from error
        self._documents_of_rows: np.ndarray | None = None

    @classmethod
    def create(cls, folder: Path, settings: dict[str, Any]) -> Store:
        """Make an empty index folder with these settings, and open it for writing."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreError(f"{folder} exists and is not an index; name another place with --index")
        # Made under another name first: a folder with an index.db is always a whole index.
        staging = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(staging, ignore_errors=True)
        (staging / "segments").mkdir(parents=True)
        db = sqlite3.connect(staging / "index.db", isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(_SCHEMA)
        db.execute("BEGIN")
        for key, value in {"format": FORMAT, "generation": 0, **settings}.items():
            db.execute("INSERT INTO settings VALUES (?, ?)", (key, json.dumps(value)))
        db.execute("COMMIT")
        db.close()
        if folder.is_dir():
            folder.rmdir()
        staging.rename(folder)
        return cls(folder, writable=True)

    @property
    def writable(self) -> bool:
        """Whether this store holds the writer's lock."""
        return self._lock is not None

    def close(self) -> None:
        """Fold the write-ahead log back in and let the lock go."""
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
        return {key: json.loads(value) for key, value in self._db.execute("SELECT key, value FROM settings")}

    def counts(self) -> tuple[int, int]:
        """(documents, passages) of the last commit."""
        documents, passages = self._db.execute(
            "SELECT (SELECT count(*) FROM documents), (SELECT coalesce(max(row) + 1, 0) FROM passages)"
        ).fetchone()
        return int(documents), int(passages)

    def segments(self) -> list[dense.Segment]:
        """The vectors of the last commit, every file's checksum verified before FAISS reads it."""
        found = []
        query = "SELECT first_row, rows, name, bytes, sha256 FROM segments ORDER BY first_row"
        for first_row, rows, name, size, sha256 in self._db.execute(query).fetchall():
            file = self.folder / "segments" / name / "dense.faiss"
            _verify(file, size, sha256)
            index = dense.read(file)
            if index.ntotal != rows:
                raise StoreError(f"{file} holds {index.ntotal} vectors, expected {rows}; build the index again")
            found.append(dense.Segment(first_row, index))
        return found

    def checksum_of(self, document_id: str) -> str | None:
        """The checksum of the stored document of that id, or None when there is none."""
        found = self._db.execute("SELECT checksum FROM documents WHERE id = ?", (document_id,)).fetchone()
        return None if found is None else str(found[0])

    def documents_of(self, rows: np.ndarray) -> np.ndarray:
        """For passage rows of any shape the positions of their documents, same shape, int64."""
        if self._documents_of_rows is None and rows.size <= 2000:
            wanted = json.dumps(np.unique(rows).tolist())
            pairs = dict(
                self._db.execute(
                    "SELECT row, doc FROM passages WHERE row IN (SELECT value FROM json_each(?))", (wanted,)
                )
            )
            return np.array([pairs[row] for row in rows.ravel().tolist()], dtype=np.int64).reshape(rows.shape)
        if self._documents_of_rows is None:  # many queries at once: 8 bytes a passage are worth it
            docs = (doc for (doc,) in self._db.execute("SELECT doc FROM passages ORDER BY row"))
            self._documents_of_rows = np.fromiter(docs, dtype=np.int64)
        return np.asarray(self._documents_of_rows[rows])

    def ids_of(self, docs: Iterable[int]) -> dict[int, str]:
        """The ids of documents by their positions."""
        wanted = json.dumps([int(doc) for doc in docs])
        return dict(
            self._db.execute("SELECT doc, id FROM documents WHERE doc IN (SELECT value FROM json_each(?))", (wanted,))
        )

    def known_ids(self, ids: Sequence[str]) -> set[str]:
        """Which of these document ids the index holds."""
        query = "SELECT id FROM documents WHERE id IN (SELECT value FROM json_each(?))"
        return {found for (found,) in self._db.execute(query, (json.dumps(list(ids)),))}

    def passages(self, rows: Sequence[int]) -> dict[int, StoredPassage]:
        """Passages by row."""
        query = (
            "SELECT row, doc, id, title, substr(text, start + 1, stop - start), start, stop, metadata "
            "FROM passages JOIN documents USING (doc) WHERE row IN (SELECT value FROM json_each(?))"
        )
        found = {}
        for row, doc, id, title, text, start, stop, metadata in self._db.execute(
            query, (json.dumps([int(row) for row in rows]),)
        ):
            found[row] = StoredPassage(row, doc, id, title, text, start, stop, json.loads(metadata))
        return found

    def texts(self, from_row: int = 0) -> Iterator[tuple[int, str, str]]:
        """(row, title, passage text) from a row on, in order, for building the lexical index."""
        query = (
            "SELECT row, title, substr(text, start + 1, stop - start) FROM passages JOIN documents USING (doc) "
            "WHERE row >= ? ORDER BY row"
        )
        yield from self._db.execute(query, (from_row,))

    def documents(self) -> Iterator[tuple[str, str, str]]:
        """(id, title, text) of every document, in the order they came."""
        yield from self._db.execute("SELECT id, title, text FROM documents ORDER BY doc")

    def sizes(self) -> dict[str, int]:
        """Bytes on disk by part: the database ("index.db"), vectors ("segments") and words ("lexical")."""
        database = sum(file.stat().st_size for file in self.folder.glob("index.db*"))
        parts = {name: _folder_size(self.folder / name) for name in ("segments", "lexical")}
        return {"index.db": database, **parts}

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside is of one commit."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    # Writing

    def commit(self, documents: Sequence[NewDocument], vectors: np.ndarray) -> None:
        """Add documents with one vector for each of their passages, all or nothing.

        Args:
            documents: In order; their spans, one after another, are the passages.
            vectors: (number of spans, dim) float32.
        """
        total = sum(len(document.spans) for document in documents)
        if total != len(vectors):
            raise ValueError(f"{len(vectors)} vectors came for {total} passages; expected one each")
        self._check_writable()
        _, first_row = self.counts()
        entry = self._write_segment(first_row, dense.build(vectors)) if total else None
        with self._transaction():
            (doc,) = self._db.execute("SELECT coalesce(max(doc) + 1, 0) FROM documents").fetchone()
            row = first_row
            for document in documents:
                self._db.execute("INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?)", (doc, *document[:5]))
                spans = [(row + n, doc, start, stop) for n, (start, stop) in enumerate(document.spans)]
                self._db.executemany("INSERT INTO passages VALUES (?, ?, ?, ?)", spans)
                doc, row = doc + 1, row + len(spans)
            self._documents_of_rows = None
            if entry:
                self._db.execute("INSERT INTO segments VALUES (?, ?, ?, ?, ?)", entry)

    def merge_small_segments(self) -> None:
        """Join neighbouring segments up to MERGED_BYTES of vectors; the rows stay what they are."""
        self._check_writable()
        for group in self._merge_groups():
            files = [self.folder / "segments" / name / "dense.faiss" for _, _, name, size, sha256 in group]
            for file, (_, _, _, size, sha256) in zip(files, group, strict=True):
                _verify(file, size, sha256)
            entry = self._write_segment(group[0][0], dense.join(files))
            with self._transaction():
                self._db.executemany("DELETE FROM segments WHERE first_row = ?", [(old[0],) for old in group])
                self._db.execute("INSERT INTO segments VALUES (?, ?, ?, ?, ?)", entry)
            self._sweep()

    def _merge_groups(self) -> list[list[tuple[int, int, str, int, str]]]:
        groups: list[list[tuple[int, int, str, int, str]]] = [[]]
        for segment in self._db.execute("SELECT first_row, rows, name, bytes, sha256 FROM segments ORDER BY first_row"):
            if sum(old[3] for old in groups[-1]) + segment[3] > MERGED_BYTES:
                groups.append([])
            groups[-1].append(segment)
        return [group for group in groups if len(group) > 1]

    def _write_segment(self, first_row: int, index: Any) -> tuple[int, int, str, int, str]:
        segments = self.folder / "segments"
        segments.mkdir(exist_ok=True)
        number = 1 + max((int(entry.name) for entry in segments.iterdir() if entry.name.isdigit()), default=0)
        name = f"{number:06d}"
        staging = segments / f"{name}.tmp"
        shutil.rmtree(staging, ignore_errors=True)  # left by a commit that failed
        staging.mkdir()
        file = staging / "dense.faiss"
        dense.write(index, file)
        size, sha256 = _sync(file)
        _sync_folder(staging)
        staging.rename(segments / name)
        _sync_folder(segments)
        return first_row, index.ntotal, name, size, sha256

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            (generation,) = self._db.execute("SELECT value FROM settings WHERE key = 'generation'").fetchone()
            self._db.execute("UPDATE settings SET value = ? WHERE key = 'generation'", (str(int(generation) + 1),))
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def _check_writable(self) -> None:
        if self._lock is None:
            raise StoreError(f"{self.folder} is open for reading; open it for writing to change it")

    def _sweep(self) -> None:
        """Remove segment folders that no commit names: a killed writer's, and merged ones."""
        named = {name for (name,) in self._db.execute("SELECT name FROM segments")}
        for entry in list(self.folder.glob("segments/*")):
            if entry.name not in named:
                shutil.rmtree(entry)

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


def _connect(file: Path, *, writable: bool) -> sqlite3.Connection:
    if writable:
        db = sqlite3.connect(file, isolation_level=None)
        # full: a commit is on the disk when it returns.
        db.execute("PRAGMA synchronous=full")
        return db
    uri = file.resolve().as_uri()
    db = sqlite3.connect(f"{uri}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
    try:
        db.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.DatabaseError as error:
        db.close()
        if not isinstance(error, sqlite3.OperationalError):
            raise
        # A read-only place cannot hold the log's shared memory; nobody writes there.
        db = sqlite3.connect(f"{uri}?immutable=1", uri=True, isolation_level=None, check_same_thread=False)
    return db


def _take_lock(folder: Path) -> int:
    """One writer at a time; the kernel lets go of the lock when its holder ends, however it ends."""
    lock = os.open(folder / "write.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(lock, 64).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise StoreError(f"{folder} is being written by process {holder}; wait until it is done") from None
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    return lock


def _verify(file: Path, size: int, sha256: str) -> None:
    if not file.is_file():
        raise StoreError(f"{file} is missing; build the index again")
    if file.stat().st_size != size:
        raise StoreError(f"{file} has {file.stat().st_size} bytes, expected {size}; build the index again")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise StoreError(f"{file} is damaged (its checksum differs); build the index again")


def _sync(file: Path) -> tuple[int, str]:
    """Force a file to the disk; returns its size and SHA-256."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
        return file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _folder_size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a writer may be merging
            total += file.stat().st_size if file.is_file() else 0
    return total
