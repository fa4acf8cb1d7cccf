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

from searchkit.indexer.errors import BusyError, StoreError
from searchkit.indexer.files import take_lock

FORMAT = 3
"""Of what is written; that of 2 differs in the kind of checksums alone, and is read."""

NAME = "index.db"
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


def make_database(folder: Path, settings: dict[str, Any]) -> None:
    """Make the database of an empty index in a folder that holds none yet."""
    file = folder / NAME
    with _sound(file), closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("PRAGMA auto_vacuum=incremental")  # or compaction could give nothing back
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(_SCHEMA)
        db.execute("BEGIN")
        for key, value in {"format": FORMAT, **settings}.items():
            db.execute("INSERT INTO settings VALUES (?, ?)", (key, json.dumps(value)))
        db.execute("INSERT INTO settings VALUES ('seal', ?)", (json.dumps(settings_seal(db)),))
        db.execute("COMMIT")


class Database:
    """The database of one index folder, open for reading or for writing.

    Args:
        folder: The index folder.
        writable: Take the writer's lock.

    Raises:
        StoreError: There is no index, it is damaged, of another format, or held by another writer.
    """

    def __init__(self, folder: Path, *, writable: bool) -> None:
        self.folder = folder
        if not (folder / NAME).is_file():
            if (folder / LAST).exists() or (folder / "segments").is_dir():
                raise StoreError(f"{folder}/{NAME} is missing, and with it all documents; build the index again")
            raise StoreError(f"{folder} is not an index (it has no {NAME}); make one with: searchkit index CORPUS")
        self._lock = take_lock(folder) if writable else None
        self._mutex = RLock()  # threads may share an index: what it reads in one transaction they read in turn
        with ExitStack() as undo, self.sound():
            undo.callback(self._release)
            self.db = _connect(folder / NAME, writable=writable)
            undo.callback(self.db.close)
            self._check_format()
            undo.pop_all()

    @property
    def writable(self) -> bool:
        """Whether the writer's lock is held."""
        return self._lock is not None

    def close(self) -> None:
        """Fold the write-ahead log back in and let the lock go."""
        with suppress(sqlite3.Error):  # on a full disk the log stays, and is folded back in another time
            if self._lock is not None:
                self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.db.close()
        self._release()

    # Settings

    def settings(self) -> dict[str, Any]:
        """Everything that was set when the index was made, and by the commits."""
        with self.sound():
            return {key: json.loads(value) for key, value in self.db.execute("SELECT key, value FROM settings")}

    def setting(self, key: str) -> Any:
        """One of the settings."""
        with self.sound():
            found = self.db.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
            if found is None:
                raise sqlite3.DatabaseError(f"the setting {key} is missing")
            return json.loads(found[0])

    def put(self, **values: Any) -> None:
        """Set some settings, as part of a transaction."""
        for key, value in values.items():
            self.db.execute("UPDATE settings SET value = ? WHERE key = ?", (json.dumps(value), key))

    def increase(self, key: str, count: int) -> None:
        """Add to a setting that is a number, as part of a transaction."""
        self.put(**{key: int(self.setting(key)) + count})

    def sealed(self) -> bool:
        """Whether the settings and the list of segments are as the last commit left them."""
        with self.sound():
            return bool(self.setting("seal") == settings_seal(self.db))

    def check_settings(self) -> None:
        """Raise StoreError unless the settings are as the last commit left them."""
        if not self.sealed():
            raise StoreError(
                f"{self.folder / NAME} is damaged: its settings differ from their checksum; "
                "mend the index with: searchkit check INDEX --repair"
            )

    def integrity(self) -> list[str]:
        """What SQLite itself finds wrong."""
        with self.sound():
            found = [str(fault) for (fault,) in self.db.execute("PRAGMA integrity_check(20)")]
        return [] if found == ["ok"] else found

    # Transactions

    @contextmanager
    def transaction(self) -> Iterator[int]:
        """One commit; gives its number."""
        with self.sound():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                self.check_settings()  # or damage would be sealed
                generation = 1 + int(self.setting("generation"))
                yield generation
                self.put(generation=generation, format=FORMAT)
                self.put(seal=settings_seal(self.db))
                self.db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has ended the transaction already
                    self.db.execute("ROLLBACK")
                raise
            self.note_commit(generation)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Everything read inside is of one commit."""
        if self.db.in_transaction:  # a larger one
            yield
            return
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            if self.db.in_transaction:  # damage may have ended it
                self.db.execute("COMMIT")  # type: ignore[unreachable]

    @contextmanager
    def sound(self) -> Iterator[None]:
        """One thread at a time, and what is found damaged as a StoreError."""
        with self._mutex, _sound(self.folder / NAME):
            yield

    def check_writable(self) -> None:
        """Raise StoreError where the index was opened for reading."""
        if self._lock is None:
            raise StoreError(f"{self.folder} is open for reading; open it for writing to change it")

    def note_commit(self, generation: int) -> None:
        """Leave the number of a commit beside the database, once the commit is done."""
        # Of one length and in its place: a number that lags behind, or is not written, does no harm.
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
            number, sum_ = (self.folder / LAST).read_bytes().split()
            if int(sum_, 16) == crc32(number):
                return int(number)
        return 0

    def note_is_gone(self) -> bool:
        """Whether the number is damaged or missing; one commit alone may have been stopped before it was left."""
        return self.noted_commit() == 0 and int(self.setting("generation")) > 1

    def lost_commits(self) -> int:
        """How many commits the database has forgotten, because its log is damaged or gone."""
        noted = self.noted_commit()
        return max(0, noted - int(self.setting("generation")))

    def _check_format(self) -> None:
        found = self.settings().get("format")
        if found not in (2, FORMAT):
            raise StoreError(
                f"{self.folder} has format {found}, this version reads {FORMAT}; "
                "use the version of searchkit that made it, or build the index again"
            )

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def settings_seal(db: sqlite3.Connection) -> str:
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
