"""Documents and their passages in the database, each with a checksum that is compared whenever it is shown.

A deleted document keeps its row, marked with the commit that deleted it, until the index is compacted, so that readers
of an older commit can carry on.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from searchkit.indexer.checksums import row_checksum
from searchkit.indexer.columns.build import Removed
from searchkit.indexer.errors import DamagedError
from searchkit.indexer.metadata import Metadata

NO_VECTOR = ":none"
"""How the checksum of a document without a vector ends, in an index whose vectors their user made."""

_FEW = 100
_SHARE = 10
"""Documents, and one part in so many of all, up to which each is read whole instead of a little of all of them."""

# Made once, which takes as long as using it. repr: damage may have made bytes of a text.
_JSON = json.JSONEncoder(ensure_ascii=False, default=repr)


class NewDocument(NamedTuple):
    """A document to commit, with the character spans of its passages."""

    id: str
    title: str
    text: str
    metadata: str
    checksum: str
    spans: list[tuple[int, int]]

    @property
    def has_vectors(self) -> bool:
        """Whether its passages have vectors: always, unless its user made them."""
        return not self.checksum.endswith(NO_VECTOR)


class StoredPassage(NamedTuple):
    """A passage as it is read back: `doc` is the document's position, `text` the passage's own."""

    row: int
    doc: int
    id: str
    title: str
    text: str
    start: int
    stop: int
    metadata: dict[str, Any]


_REMOVED = np.dtype([("doc", "<i8"), ("row", "<i8"), ("passages", "<i8"), ("checksum", "<u8")])


class Documents(Metadata):
    """The documents of an index.

    Args:
        database: Where they are.
    """

    # By id and by position

    def checksum_of(self, document_id: str) -> str | None:
        """The checksum of the stored document with that id, or None when there is none."""
        query = "SELECT checksum FROM documents WHERE id = ? AND deleted = 0"
        with self._database.access():
            row = self._database.db.execute(query, (document_id,)).fetchone()
        return None if row is None else str(row[0])

    def metadata_of(self, document_id: str) -> str:
        """The metadata, as JSON, of the stored document with that id."""
        (doc,) = self.positions_of([document_id])
        return self.document(doc)[1].metadata

    def ids_of(self, docs: Iterable[int]) -> dict[int, str]:
        """The ids of documents by their positions, deleted ones included; their checksums are compared."""
        query = "SELECT doc, id FROM documents WHERE doc IN (SELECT value FROM json_each(?))"
        wanted = sorted({int(doc) for doc in docs})
        with self._database.access():
            if len(wanted) <= max(_FEW, self._database.number("next_doc") // _SHARE):
                found = self._database.db.execute(query, (json.dumps(wanted),)).fetchall()
                if len(found) < len(wanted):  # compacted away, or lost to damage
                    self.check_contents()
                return {doc: self.document(doc)[1].id for doc, _ in found}
            self.check_contents()
            return dict(self._database.db.execute(query, (json.dumps(wanted),)))

    def known_ids(self, ids: Sequence[str]) -> set[str]:
        """Which of these document ids the index holds."""
        query = "SELECT id FROM documents {} WHERE deleted = 0 AND id IN (SELECT value FROM json_each(?))"
        db = self._database.db
        with self._database.access():
            known = {id for (id,) in db.execute(query.format(""), (json.dumps(list(ids)),))}
            # An id is unknown only if neither the search tree of ids nor the ids themselves are damaged.
            if (missing := [id for id in ids if id not in known]) and not self._lacks(missing):
                self.check_contents()
                if db.execute(query.format("NOT INDEXED"), (json.dumps(missing),)).fetchone():
                    raise self._database.damaged("the search tree of the ids differs from the documents")
            return known

    def _lacks(self, ids: Sequence[str]) -> bool:
        """Whether columns show that no living document has one of some ids; no document but a deleted one is read."""
        with self._database.reading():
            found = self.columns.may_have(ids)
            if found is None or len(found) > _FEW:
                return False
            deleted = "SELECT deleted > 0 FROM documents WHERE doc = ?"
            for doc in found:
                row = self._database.db.execute(deleted, (doc,)).fetchone()
                if row is None or not row[0] or self.document(doc)[1].id not in ids:
                    return False
        return True

    def positions_of(self, ids: Iterable[str]) -> list[int]:
        """The positions of living documents by their ids; unknown ids are left out."""
        query = "SELECT doc FROM documents WHERE deleted = 0 AND id IN (SELECT value FROM json_each(?))"
        with self._database.access():
            return [doc for (doc,) in self._database.db.execute(query, (json.dumps(list(ids)),))]

    def document(self, doc: int) -> tuple[int, NewDocument]:
        """The first row and the content of a document, by its position, compared with its checksum."""
        query = "SELECT id, title, text, metadata, checksum, first_row, passages, seal FROM documents WHERE doc = ?"
        with self._database.access():
            row = self._database.db.execute(query, (doc,)).fetchone()
            if row is None:
                raise self._database.damaged(f"document {doc} is missing")
            *parts, first, count, checksum = row
            return int(first), self._verified_document(checksum, doc, first, count, parts)

    def docs_of(self, rows: np.ndarray) -> np.ndarray:
        """The positions of the documents of passage rows (n,), int64; passages without a vector are in no segment."""
        query = "SELECT row, doc FROM passages WHERE row IN (SELECT value FROM json_each(?))"
        with self._database.access():
            docs = dict(self._database.db.execute(query, (json.dumps(rows.tolist()),)))
        if missing := set(rows.tolist()) - docs.keys():
            raise self._database.damaged(f"{len(missing)} passages are missing")
        return np.array([docs[row] for row in rows.tolist()], dtype=np.int64)

    def passages(self, rows: Iterable[int]) -> dict[int, StoredPassage]:
        """Passages by row, each document compared with its checksum; compacted ones are missing."""
        query = (
            "SELECT DISTINCT d.doc, d.id, d.title, d.text, d.metadata, d.checksum, d.first_row, d.passages, d.seal "
            "FROM passages p JOIN documents d USING (doc) WHERE p.row IN (SELECT value FROM json_each(?))"
        )
        wanted = {int(row) for row in rows}
        passages = {}
        with self._database.access():
            stored = self._database.db.execute(query, (json.dumps(sorted(wanted)),)).fetchall()
            for doc, *parts, first, count, checksum in stored:
                document = self._verified_document(checksum, doc, first, count, parts)
                for row, (start, stop) in enumerate(document.spans, start=first):
                    if row in wanted:
                        passages[row] = StoredPassage(
                            row,
                            doc,
                            document.id,
                            document.title,
                            document.text[start:stop],
                            start,
                            stop,
                            json.loads(document.metadata),
                        )
        return passages

    # All of them

    def texts(self, skip: int = 0, *, living: bool = False) -> Iterator[tuple[int, str, str]]:
        """(row, title, passage text) in order, for building the lexical index.

        Args:
            skip: Passages to skip at the beginning.
            living: Leave out deleted documents.
        """
        query = (
            "SELECT doc, id, title, text, metadata, checksum, first_row, passages, seal FROM documents "
            f"WHERE doc >= ? {'AND deleted = 0' if living else ''} ORDER BY doc"
        )
        with self._database.snapshot() as db:
            first_row, first_doc = _passage_at(db, skip)
            for doc, *parts, first, count, checksum in db.execute(query, (first_doc,)):
                document = self._verified_document(checksum, doc, first, count, parts, db)
                for row, (start, stop) in enumerate(document.spans, start=first):
                    if row >= first_row:
                        yield row, document.title, document.text[start:stop]

    def by_id(self, after: str = "") -> Iterator[tuple[str, int, str]]:
        """(id, position, checksum) of every living document whose id is above another, in the order of ids."""
        query = "SELECT id, doc, checksum FROM documents WHERE deleted = 0 AND id > ? ORDER BY id"
        with self._database.snapshot() as db:
            yield from db.execute(query, (after,))

    def living_since(self, doc: int, below: int) -> Iterator[tuple[int, int, int, str]]:
        """(position, first row, passages, checksum) of living documents in a range of positions, in order."""
        query = (
            "SELECT doc, first_row, passages, checksum FROM documents WHERE deleted = 0 AND doc >= ? AND doc < ? "
            "ORDER BY doc"
        )
        with self._database.snapshot() as db:
            yield from db.execute(query, (doc, below))

    def deleted_since(self, generation: int, below: int) -> list[int]:
        """Positions below one of the documents that commits after one have deleted, unless compacted away."""
        query = "SELECT doc FROM documents WHERE deleted > ? AND doc < ? ORDER BY doc"
        with self._database.access():
            return [doc for (doc,) in self._database.db.execute(query, (generation, below))]

    def digest(self, generation: int, below: int) -> str:
        """A checksum of what a commit held below a position: of contents and order, and of what was deleted by then.

        Compaction since then changes it.
        """
        query = "SELECT doc, seal, deleted > 0 AND deleted <= ? FROM documents WHERE doc < ? ORDER BY doc"
        whole = blake2b(digest_size=16)
        with self._database.snapshot() as db:
            for row in db.execute(query, (generation, below)):
                whole.update(_JSON.encode(row).encode())
        return whole.hexdigest()

    def last_id(self) -> str:
        """The highest id of the living documents, or "" where there are none."""
        with self._database.access():
            (id,) = self._database.db.execute("SELECT max(id) FROM documents WHERE deleted = 0").fetchone()
        return id or ""

    def living(self) -> Iterator[tuple[str, str, str, str]]:
        """(id, title, text, metadata as JSON) of every living document in order, each compared with its checksum."""
        query = (
            "SELECT doc, first_row, passages, seal, deleted, id, title, text, metadata, checksum, "
            "(SELECT value FROM settings WHERE key = 'tombstones'), "
            "(SELECT value FROM settings WHERE key = 'contents') "
            "FROM documents NOT INDEXED ORDER BY doc"
        )
        deletions, contents, expected = 0, 0, ["0", "0"]
        with self._database.snapshot() as db:
            for doc, first, count, checksum, deleted, *parts, named, held in db.execute(query):
                expected = [named, held]
                document = self._verified_document(checksum, doc, first, count, parts, db)
                contents ^= row_checksum((doc, first, count, document.id, document.title, document.metadata))
                if deleted:
                    deletions = tombstones(deletions, [(doc, first, count)])
                else:
                    yield document.id, document.title, document.text, document.metadata
        if expected != [json.dumps(deletions), json.dumps(contents)]:
            raise self._differing()

    def checksum(self) -> str:
        """SHA-256 of all living documents in order, as hex; equal for equal collections."""
        whole = hashlib.sha256()
        query = "SELECT id, checksum FROM documents WHERE deleted = 0 ORDER BY doc"
        with self._database.access():
            for row in self._database.db.execute(query):
                whole.update(json.dumps(row, default=repr).encode())
        return whole.hexdigest()

    # Counting

    def counts(self) -> tuple[int, int]:
        """(documents, passages) of the last commit, without deleted ones."""
        return self._database.number("documents"), self._database.number("passages")

    def waiting(self) -> tuple[int, int]:
        """(documents, passages) that are deleted and wait for compaction."""
        query = "SELECT count(*), coalesce(sum(passages), 0) FROM documents WHERE deleted > 0"
        with self._database.access():
            documents, passages = self._database.db.execute(query).fetchone()
        return int(documents), int(passages)

    def without_vectors(self) -> int:
        """Living documents that have no vector."""
        query = f"SELECT count(*) FROM documents WHERE deleted = 0 AND checksum LIKE '%{NO_VECTOR}'"
        with self._database.access():
            (count,) = self._database.db.execute(query).fetchone()
        return int(count)

    def stored_passages(self) -> int:
        """Passages in the database, those of deleted documents included."""
        with self._database.access():
            return _stored_passages(self._database.db)

    # Changing, as part of a transaction

    def insert(self, documents: Sequence[NewDocument], doc: int, row: int) -> None:
        """Add documents and their passages, numbered from a position and a row on."""
        database = self._database
        contents = database.number("contents")
        whole: list[tuple[Any, ...]] = []
        parts: list[tuple[int, int, int, int]] = []
        for document in documents:
            count = len(document.spans)
            whole.append((doc, *document[:5], row, count, document_checksum(doc, row, document)))
            contents ^= row_checksum((doc, row, count, document.id, document.title, document.metadata))
            parts += [(row + n, doc, start, stop) for n, (start, stop) in enumerate(document.spans)]
            doc, row = doc + 1, row + count
        database.db.executemany(
            "INSERT INTO documents (doc, id, title, text, metadata, checksum, first_row, passages, seal) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            whole,
        )
        database.db.executemany("INSERT INTO passages VALUES (?, ?, ?, ?)", parts)
        database.increase("documents", len(whole))
        database.increase("passages", len(parts))
        database.put(next_row=row, next_doc=doc, contents=contents)

    def mark_deleted(self, docs: Iterable[int], generation: int) -> int:
        """Mark living documents as deleted by a commit; returns how many there were."""
        database = self._database
        wanted = json.dumps([int(doc) for doc in docs])
        query = (
            "SELECT doc, first_row, passages FROM documents "
            "WHERE deleted = 0 AND doc IN (SELECT value FROM json_each(?))"
        )
        rows = database.db.execute(query, (wanted,)).fetchall()
        if rows:
            database.db.executemany(
                "UPDATE documents SET deleted = ? WHERE doc = ?", [(generation, doc) for doc, _, _ in rows]
            )
            database.increase("documents", -len(rows))
            database.increase("passages", -sum(count for _, _, count in rows))
            database.put(tombstones=tombstones(database.number("tombstones"), rows))
        return len(rows)

    def purge_deleted(self, generation: int) -> Removed:
        """Remove what is marked as deleted; readers of earlier commits must open the index again.

        Raises:
            DamagedError: A deleted document differs from its checksum, so that the one of all documents would be wrong
                without it.
        """
        db = self._database.db
        query = (
            "SELECT doc, id, title, text, metadata, checksum, first_row, passages, seal FROM documents "
            "WHERE deleted > 0 ORDER BY doc"
        )
        removed = np.fromiter(self._removed(db.execute(query)), _REMOVED)
        ranges = zip(removed["row"].tolist(), (removed["row"] + removed["passages"]).tolist(), strict=True)
        db.executemany("DELETE FROM passages WHERE row >= ? AND row < ?", ranges)
        db.execute("DELETE FROM documents WHERE deleted > 0")
        contents = self._database.number("contents") ^ int(np.bitwise_xor.reduce(removed["checksum"]))
        self._database.put(tombstones=0, contents=contents, compacted=generation)
        return Removed(removed["doc"], removed["checksum"])

    def _removed(self, rows: Iterable[Sequence[Any]]) -> Iterator[tuple[int, int, int, int]]:
        for doc, *parts, first, count, checksum in rows:
            document = self._verified_document(checksum, doc, first, count, parts)
            row = (doc, first, count, document.id, document.title, document.metadata)
            yield doc, first, count, row_checksum(row)

    def _verified_document(
        self,
        checksum: str,
        doc: int,
        first: int,
        count: int,
        parts: Sequence[str],
        db: sqlite3.Connection | None = None,
    ) -> NewDocument:
        """A document from its columns (id, title, text, metadata, checksum), once its own checksum matches."""
        id, title, text, metadata, content = parts
        document = NewDocument(id, title, text, metadata, content, spans(db or self._database.db, doc, first, count))
        if checksum != document_checksum(doc, first, document):
            raise DamagedError(
                self._database.file,
                f"is damaged: document {id!r} differs from its checksum",
                "see what is intact with: searchkit check INDEX",
            )
        return document


def _stored_passages(db: sqlite3.Connection) -> int:
    """The living passages, which a setting counts, and those of deleted documents: counting rows would read all."""
    living = "SELECT CAST(value AS INTEGER) FROM settings WHERE key = 'passages'"
    query = f"SELECT ({living}) + coalesce(sum(passages), 0) FROM documents WHERE deleted > 0"
    (count,) = db.execute(query).fetchone()
    return int(count)


def _passage_at(db: sqlite3.Connection, place: int) -> tuple[int, int]:
    """The row and the document of a passage by its place among all; above all of them where there is none.

    SQLite walks to it, so from the nearer end: that is where the passages of the last commit are.
    """
    count = _stored_passages(db)
    if place >= count:
        return 0, 1 << 62
    order, offset = ("ASC", place) if place < count // 2 else ("DESC", count - 1 - place)
    found = db.execute(f"SELECT row, doc FROM passages ORDER BY row {order} LIMIT 1 OFFSET ?", (offset,)).fetchone()
    return found or (0, 1 << 62)


def spans(db: sqlite3.Connection, doc: int, first: int, count: int) -> list[tuple[int, int]]:
    """Start and end of a document's passages in its text, by its position, first row and number of passages."""
    # SQLite adds, and not Python: damage may have changed the type of either number.
    query = "SELECT start, stop FROM passages WHERE row >= ?1 AND row < ?1 + ?2 AND doc = ?3 ORDER BY row"
    return db.execute(query, (first, count, doc)).fetchall()


def document_checksum(doc: int, first_row: int, document: NewDocument) -> str:
    """The checksum of a document's own row and its passages' rows, which SQLite does not keep."""
    content = _JSON.encode([doc, first_row, *document[:5], document.spans])
    return blake2b(content.encode(), digest_size=12).hexdigest()


def tombstones(before: int, ranges: Iterable[tuple[int, int, int]]) -> int:
    """The checksum of the deleted documents, independent of their order; `before` is that of those deleted earlier."""
    for row in ranges:
        content = json.dumps(list(row), default=repr)
        before ^= int.from_bytes(blake2b(content.encode(), digest_size=6).digest(), "big")
    return before
