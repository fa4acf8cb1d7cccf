"""The database of an index folder: its settings, its commits, and the checksums that SQLite does not keep."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from threading import RLock
from typing import Any
from zlib import crc32

from searchkit.indexer.errors import REBUILD, BusyError, DamagedError, StoreError
from searchkit.indexer.files import release_lock, take_lock

FORMAT = 3
"""The format written. Format 2, which differs only in its kind of checksum, can still be read."""

OWN_VECTORS = 4
"""The format of indexes whose vectors their users made: not every passage has one, and no model is named."""

NAME = "index.db"
LAST = "last.commit"
"""The file with the number of the last commit: to SQLite a damaged or missing log is one that ends earlier."""

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


def make_database(folder: Path, settings: dict[str, Any]) -> None:
    """Create the database of an empty index in a folder that has none yet."""
    file = folder / NAME
    with _explained(file), closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("PRAGMA auto_vacuum=incremental")  # or compaction could free no space
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(_SCHEMA)
        db.execute("BEGIN")
        for key, value in {"format": FORMAT, **settings}.items():
            db.execute("INSERT INTO settings VALUES (?, ?)", (key, json.dumps(value)))
        db.execute("INSERT INTO settings VALUES ('seal', ?)", (json.dumps(settings_checksum(db)),))
        db.execute("COMMIT")


class Database:
    """The database of one index folder, open for reading or for writing.

    Args:
        folder: The index folder.
        writable: Take the writer's lock.

    Raises:
        StoreError: There is no index, it has another format, or it is damaged (DamagedError) or held by another
            writer (BusyError).
    """

    def __init__(self, folder: Path, *, writable: bool) -> None:
        self.folder, self.file = folder, folder / NAME
        if not self.file.is_file():
            if (folder / LAST).exists() or (folder / "segments").is_dir():
                raise DamagedError(self.file, "is missing, and with it all documents", REBUILD, repairable=False)
            raise StoreError(f"{folder} is not an index (it has no {NAME}); make one with: searchkit index CORPUS")
        self._lock = take_lock(folder) if writable else None
        self._mutex = RLock()  # threads may share an index: each reads its transaction in turn
        self._closed = False
        with ExitStack() as undo, self.access():
            undo.callback(self._release)
            self._opened = _identity(self.file)
            self.db = _connect(self.file, writable=writable)
            undo.callback(self.db.close)
            self._check_format()
            undo.pop_all()

    @property
    def writable(self) -> bool:
        """Whether the writer's lock is held."""
        return self._lock is not None

    def close(self) -> None:
        """Fold the write-ahead log back in and release the lock."""
        with suppress(sqlite3.Error):  # on a full disk the log stays, and is folded back in another time
            if self._lock is not None:
                self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._closed = True
        self.db.close()
        self._release()

    def replacement(self) -> tuple[int, int] | None:
        """What identifies another database where this one was opened; None while it is still there, or nothing is."""
        found = _identity(self.file)
        return None if found == self._opened else found

    def erase_what_is_replaced(self) -> None:
        """Overwrite replaced content with zeros from now on, so that equal databases are equal files."""
        with self.access():
            self.db.execute("PRAGMA secure_delete=ON").fetchall()

    def rewrite(self) -> None:
        """Write the file anew, without its free space and what is left there of removed rows."""
        with self.access():
            self.db.execute("VACUUM")

    @contextmanager
    def access(self) -> Iterator[None]:
        """One thread at a time; what SQLite finds wrong becomes a StoreError that says what to do."""
        with self._mutex:
            if self._closed:
                raise StoreError(f"{self.folder} has been closed; open it again")
            with _explained(self.file):
                yield

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own to the last commit, for what is read bit by bit: it holds up nobody else.

        An iterator that somebody abandons is closed by whichever thread collects it, which could not release a lock.
        """
        with self.access():
            db = _connect(self.file, writable=False)
        with closing(db), _explained(self.file):
            db.execute("BEGIN")
            yield db

    def damaged(self, damage: str) -> DamagedError:
        """The error for something wrong in this database."""
        return DamagedError(self.file, f"is damaged: {damage}")

    # Settings

    def settings(self) -> dict[str, Any]:
        """Everything that was set when the index was created, and by its commits."""
        with self.access():
            rows = self.db.execute("SELECT key, value FROM settings").fetchall()
        return {key: self._decoded(key, value) for key, value in rows}

    def setting(self, key: str) -> Any:
        """One of the settings."""
        with self.access():
            row = self.db.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise self.damaged(f"the setting {key} is missing")
        return self._decoded(key, row[0])

    def number(self, key: str) -> int:
        """One of the settings that are numbers."""
        value = self.setting(key)
        if not isinstance(value, int) or not -(1 << 63) <= value < 1 << 63:  # what SQLite can hold
            raise self.damaged(f"the setting {key} is {value!r}, expected a number")
        return value

    def put(self, **values: Any) -> None:
        """Change settings, as part of a transaction."""
        for key, value in values.items():
            self.db.execute("UPDATE settings SET value = ? WHERE key = ?", (json.dumps(value), key))

    def increase(self, key: str, count: int) -> None:
        """Add to a setting that is a number, as part of a transaction."""
        self.put(**{key: self.number(key) + count})

    def settings_intact(self) -> bool:
        """Whether the settings and the list of segments are as the last commit left them."""
        with self.access():
            return bool(self.setting("seal") == settings_checksum(self.db))

    def check_settings(self) -> None:
        """Raise DamagedError unless the settings are as the last commit left them."""
        if not self.settings_intact():
            raise self.damaged("its settings differ from their checksum")

    def integrity(self) -> list[str]:
        """What SQLite's own check finds wrong."""
        with self.access():
            faults = [str(fault) for (fault,) in self.db.execute("PRAGMA integrity_check(20)")]
        return [] if faults == ["ok"] else faults

    # Transactions

    @contextmanager
    def transaction(self) -> Iterator[int]:
        """One commit; yields its number."""
        with self.access():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                self.check_settings()  # or damage would get a checksum of its own
                generation = 1 + self.number("generation")
                yield generation
                self.put(generation=generation, format=max(FORMAT, self.number("format")))
                self.put(seal=settings_checksum(self.db))
                self.db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has ended the transaction already
                    self.db.execute("ROLLBACK")
                raise
            self.note_commit(generation)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Everything read inside comes from one commit."""
        if self.db.in_transaction:  # an outer one
            yield
            return
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            if self.db.in_transaction:  # damage may have ended it
                self.db.execute("COMMIT")  # type: ignore[unreachable]

    def check_writable(self) -> None:
        """Raise StoreError where the index was opened for reading."""
        if self._lock is None:
            raise StoreError(f"{self.folder} is open for reading; open it for writing to change it")

    def note_commit(self, generation: int) -> None:
        """Leave the number of a commit beside the database, once it is committed."""
        # Always of one length and written in place: a number that lags behind or is not written does no harm.
        with suppress(OSError):
            file = os.open(self.folder / LAST, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                number = b"%020d" % generation
                os.ftruncate(file, os.pwrite(file, b"%s %08x\n" % (number, crc32(number)), 0))
            finally:
                os.close(file)

    def noted_commit(self) -> int:
        """The number that the last commit left beside the database; 0 where it cannot be read."""
        with suppress(OSError, ValueError):
            number, checksum = (self.folder / LAST).read_bytes().split()
            if int(checksum, 16) == crc32(number):
                return int(number)
        return 0

    def note_is_gone(self) -> bool:
        """Whether that number is damaged or missing; a first commit alone may have been stopped before it wrote it."""
        return self.noted_commit() == 0 and self.number("generation") > 1

    def lost_commits(self) -> int:
        """How many commits the database has forgotten because its log is damaged or missing."""
        noted = self.noted_commit()
        return max(0, noted - self.number("generation"))

    def _check_format(self) -> None:
        version = self.settings().get("format")
        if version not in (2, FORMAT, OWN_VECTORS):
            found = f"format {version}" if version else "no format number"
            raise StoreError(
                f"{self.folder} has {found}, this version reads {FORMAT} and {OWN_VECTORS}; "
                f"use the version of searchkit that made it, or {REBUILD}"
            )

    def _decoded(self, key: str, value: Any) -> Any:
        try:
            return json.loads(value)
        except (TypeError, ValueError) as error:  # damage may have changed its type
            raise self.damaged(f"the setting {key} cannot be read ({error})") from error

    def _release(self) -> None:
        if self._lock is not None:
            release_lock(self._lock)
            self._lock = None


def settings_checksum(db: sqlite3.Connection) -> str:
    """The checksum of the settings and of the list of segments."""
    settings = db.execute("SELECT key, value FROM settings WHERE key <> 'seal' ORDER BY key").fetchall()
    entries = db.execute("SELECT first_row, count, name, files FROM segments ORDER BY first_row").fetchall()
    content = json.dumps([settings, entries], default=repr)  # repr: damage may have made bytes of a text
    return blake2b(content.encode(), digest_size=12).hexdigest()


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Turn what SQLite says of a database into an error that says what to do."""
    try:
        yield
    except sqlite3.ProgrammingError:  # misuse of the library, which is a bug
        raise
    except sqlite3.DatabaseError as error:
        extended = getattr(error, "sqlite_errorcode", 0)  # 0 where Python raises it, as for text that is not UTF-8
        code = extended & 0xFF
        # When there is no room for the log's shared memory, SQLite reports an I/O error.
        if code == sqlite3.SQLITE_FULL or extended == sqlite3.SQLITE_IOERR_SHMSIZE:
            raise OSError(errno.ENOSPC, "the disk is full; what was committed before is whole", str(file)) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise BusyError(f"{file} is in use by another program ({error}); try again when it is done") from error
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise StoreError(f"{file} cannot be used ({error}); check its disk and its permissions") from error
        if code == sqlite3.SQLITE_CONSTRAINT:
            raise StoreError(f"{file} does not take the change ({error}); nothing was committed") from error
        damage = f"cannot be read ({type(error).__name__}: {error})"
        raise DamagedError(file, damage, REBUILD, repairable=False) from error


def _identity(file: Path) -> tuple[int, int] | None:
    """The device and the number of a file, which no other has while it is open; None where there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _connect(file: Path, *, writable: bool) -> sqlite3.Connection:
    if writable:
        db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA synchronous=full")  # a commit is on the disk when it returns
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
        # A read-only folder or a full disk has no room for the log's shared memory; without a log it is not needed.
        db = sqlite3.connect(f"{uri}?immutable=1", uri=True, isolation_level=None, check_same_thread=False)
    return db
