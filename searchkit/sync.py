"""Make an index hold what some folders hold: new, changed, moved and vanished documents."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.ingest import AddReport, new_documents
from searchkit.own_vectors import OwnVectors
from searchkit.records import Document

_DELETED_AT_ONCE = 1000


@dataclass
class SyncReport:
    """What a sync did, or would do.

    Args:
        new: Ids that the index did not hold.
        changed: Ids whose document has other content now.
        moved: {id that vanished: new id} of documents with equal text.
        vanished: Ids that no document has any more, without those that moved; they are deleted.
        kept: Ids of documents that exist and could not be read this time; they stay in the index.
        unchanged: Documents that were left as they are.
        refused: Documents that cannot be stored.
        passages: Passages that were embedded.
        seconds: Wall-clock time of embedding and storing.
    """

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)
    vanished: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    unchanged: int = 0
    refused: int = 0
    passages: int = 0
    seconds: float = 0.0


def sync(
    engine: SearchEngine,
    documents: Iterable[Document],
    *,
    still_exists: Callable[[str], bool] = lambda id: False,
    dry_run: bool = False,
    on_refused: Callable[[Document, str], None] | None = None,
    on_progress: Callable[[float, int], None] | None = None,
) -> SyncReport:
    """Add what is new, replace what has changed, and delete what is gone, in this order.

    If it is interrupted, call it again: nothing is embedded twice, and nothing is deleted before all else is stored.

    Args:
        engine: The index, open for writing unless `dry_run`.
        documents: All that the index is to hold, read once.
        still_exists: Whether the document of an id exists although it did not come (a file that could not be read).
        dry_run: Only report.
        on_refused: Called with a document that cannot be stored, and the reason; None raises instead.
        on_progress: Called now and then with (documents, passages) done so far.

    Raises:
        InputError: No document came, so that the whole index would be deleted.
        StoreError: The index is open for reading only.
    """
    report = SyncReport()
    with closing(sqlite3.connect("", isolation_level=None)) as seen:  # on disk: memory must not grow with the folder
        seen.executescript(
            "PRAGMA journal_mode=OFF; CREATE TABLE seen (id TEXT PRIMARY KEY, text BLOB, before TEXT) WITHOUT ROWID;"
        )
        noted = _noted(documents, engine, seen)
        if dry_run:
            added = AddReport()
            own = None if engine.has_model else OwnVectors(engine.storage.similarity, optional=False)
            new = new_documents(noted, engine.store.documents, added, on_refused, update=True, own=own)
            stored = {document.id for document, _ in new}
        else:
            added = engine.add(noted, update=True, on_refused=on_refused, on_progress=on_progress)
        report.unchanged, report.refused = added.unchanged, added.refused
        report.passages, report.seconds = added.passages, added.seconds
        (count,) = seen.execute("SELECT count(*) FROM seen").fetchone()
        if not count:
            raise InputError(
                f"no document came, and {engine.store.folder} holds {len(engine)}; to empty an index, delete its folder"
            )
        for id, before in seen.execute("SELECT id, before FROM seen ORDER BY id"):
            if before is None:
                if dry_run or id in engine:  # one that cannot be stored is refused
                    report.new.append(id)
            elif id in stored if dry_run else engine.store.documents.checksum_of(id) != before:
                report.changed.append(id)
        _find_gone(engine, seen, report, still_exists)
    if not dry_run:
        gone = [*report.vanished, *report.moved]
        for start in range(0, len(gone), _DELETED_AT_ONCE):
            engine.delete(gone[start : start + _DELETED_AT_ONCE])
    return report


def _noted(documents: Iterable[Document], engine: SearchEngine, seen: sqlite3.Connection) -> Iterator[Document]:
    """The documents, each noted before it is added: its text, and the checksum of what the index holds under its id."""
    for document in documents:
        before = engine.store.documents.checksum_of(document.id)
        seen.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", (document.id, _digest(document.text), before))
        yield document


def _find_gone(
    engine: SearchEngine, seen: sqlite3.Connection, report: SyncReport, still_exists: Callable[[str], bool]
) -> None:
    """Tell what vanished from what moved, and from what could not be read."""
    seen.execute("CREATE INDEX fresh ON seen (text) WHERE before IS NULL")
    taken: set[str] = set()
    for document in engine.documents():
        if seen.execute("SELECT 1 FROM seen WHERE id = ?", (document.id,)).fetchone():
            continue
        if still_exists(document.id):
            report.kept.append(document.id)
            continue
        query = "SELECT id FROM seen WHERE before IS NULL AND text = ? ORDER BY id"
        targets = [id for (id,) in seen.execute(query, (_digest(document.text),)) if id not in taken]
        if targets:
            report.moved[document.id] = targets[0]
            taken.add(targets[0])
        else:
            report.vanished.append(document.id)
    report.new = [id for id in report.new if id not in taken]


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
