"""The answers so far, on disk under the content of their requests, so that nothing is paid for twice."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from searchkit.errors import InputError
from searchkit.indexer.files import release_lock, take_lock

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, prompt TEXT NOT NULL, model TEXT NOT NULL, status TEXT NOT NULL, text TEXT NOT NULL,
    tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, estimated INTEGER NOT NULL, seconds REAL NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS totals (name TEXT PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS batches (name TEXT PRIMARY KEY, id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS settled (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Reply(NamedTuple):
    """One answer as it came.

    Args:
        status: "ok", "cut" (at the token limit) or "refused".
        text: What the model wrote, or why there is no answer.
        tokens_in: Tokens of the request, as the server counted them.
        tokens_out: Tokens of the answer.
        estimated: The server counted nothing, so both are estimated from the number of bytes.
        seconds: How long it took; 0 where that is unknown, as in a batch.
    """

    status: str
    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    estimated: bool = False
    seconds: float = 0.0


class Journal:
    """The answers of one output, in a folder that one process writes at a time.

    Every answer is written in its own transaction as soon as it arrives: killing the process loses only the requests in
    flight. A crash of the whole machine may lose the last few answers too.

    Raises:
        BusyError: Another process writes the folder.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = take_lock(folder)
        try:
            self._db = sqlite3.connect(folder / "answers.db", isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            if "seconds" not in {
                row[1] for row in self._db.execute("PRAGMA table_info(answers)")
            }:  # of an earlier version
                self._db.execute("ALTER TABLE answers ADD COLUMN seconds REAL NOT NULL DEFAULT 0")
            sums = self._db.execute(
                "SELECT count(*), total(tokens_in), total(tokens_out), total(estimated), total(seconds) FROM answers"
            )
            *counts, self.seconds = sums.fetchone()
            self.answers, self.tokens_in, self.tokens_out, self.estimated = map(int, counts)
        except BaseException as error:
            release_lock(self._lock)
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                raise InputError(
                    f"{folder / 'answers.db'} is damaged ({error}); restore it, or delete {folder} to pay for all "
                    "answers again"
                ) from error
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        release_lock(self._lock)

    def __contains__(self, key: bytes) -> bool:
        return self._db.execute("SELECT 1 FROM answers WHERE key = ?", (key,)).fetchone() is not None

    def get(self, key: bytes) -> Reply | None:
        """The answer to a request, or None if there is none yet."""
        row = self._db.execute(
            "SELECT status, text, tokens_in, tokens_out, estimated, seconds FROM answers WHERE key = ?", (key,)
        ).fetchone()
        if row is None:
            return None
        status, text, tokens_in, tokens_out, estimated, seconds = row
        return Reply(status, text, tokens_in, tokens_out, bool(estimated), seconds)

    def put(self, key: bytes, prompt: str, model: str, reply: Reply) -> None:
        """Store an answer, and count its tokens."""
        with closing(
            self._db.execute(
                "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (key, prompt, model, *reply)
            )
        ) as done:
            if not done.rowcount:
                return
        self.answers += 1
        self.tokens_in += reply.tokens_in
        self.tokens_out += reply.tokens_out
        self.estimated += reply.estimated
        self.seconds += reply.seconds

    def count(self, name: str) -> None:
        """Add one to a total that outlives the process, such as "status 429"."""
        self._db.execute("INSERT INTO totals VALUES (?, 1) ON CONFLICT(name) DO UPDATE SET count = count + 1", (name,))

    def totals(self) -> dict[str, int]:
        """Every total."""
        return dict(self._db.execute("SELECT name, count FROM totals ORDER BY name"))

    def batches(self) -> dict[str, str]:
        """Submitted batches: a name derived from their requests -> the server's id, "" once read."""
        return dict(self._db.execute("SELECT name, id FROM batches"))

    def note_batch(self, name: str, id: str) -> None:
        """Record a batch."""
        self._db.execute("INSERT OR REPLACE INTO batches VALUES (?, ?)", (name, id))

    def settled(self, name: str) -> Any:
        """What an earlier run derived from its answers and stored under this name; None if nothing."""
        row = self._db.execute("SELECT value FROM settled WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def settle(self, name: str, value: Any) -> None:
        """Store what was derived from answers, so that further answers do not change what follows from it."""
        self._db.execute("INSERT OR REPLACE INTO settled VALUES (?, ?)", (name, json.dumps(value)))
