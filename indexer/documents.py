"""Documents and their passages in the database, each under a seal that is compared whenever it is shown.

A deleted document keeps its place, marked with the commit that deleted it, until the index is compacted, so that
readers of an older commit go on.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from searchkit.indexer.database import NAME, Database
from searchkit.indexer.errors import StoreError

_JSON = json.JSONEncoder(ensure_ascii=False)  # made once, which takes as long as to use it


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


class Documents(Database):
    """The documents of an index (arguments and errors as :class:`searchkit.indexer.database.Database` has them)."""

    def __init__(self, folder: Path, *, writable: bool) -> None:
        super().__init__(folder, writable=writable)
        self._summed = (0, 0, 0)  # the purge since which, and the document below which, all were read, and their sum

    # By id and by position

    def checksum_of(self, document_id: str) -> str | None:
        """The checksum of the stored document of that id, or None when there is none."""
        with self.sound():
            found = self.db.execute(
                "SELECT checksum FROM documents WHERE id = ? AND deleted = 0", (document_id,)
            ).fetchone()
        return None if found is None else str(found[0])

    def ids_of(self, docs: Iterable[int]) -> dict[int, str]:
        """The ids of documents by their positions, of the deleted too."""
        wanted = json.dumps([int(doc) for doc in docs])
        with self.sound():
            self.check_contents()
            return dict(
                self.db.execute(
                    "SELECT doc, id FROM documents WHERE doc IN (SELECT value FROM json_each(?))", (wanted,)
                )
            )

    def known_ids(self, ids: Sequence[str]) -> set[str]:
        """Which of these document ids the index holds."""
        query = "SELECT id FROM documents {} WHERE deleted = 0 AND id IN (SELECT value FROM json_each(?))"
        with self.sound():
            found = {found for (found,) in self.db.execute(query.format(""), (json.dumps(list(ids)),))}
            if missing := [each for each in ids if each not in found]:
                # Neither the search tree of the ids nor the ids themselves may be damaged when none is there.
                self.check_contents()
                if self.db.execute(query.format("NOT INDEXED"), (json.dumps(missing),)).fetchone():
                    raise sqlite3.DatabaseError("the search tree of the ids differs from the documents")
            return found

    def positions_of(self, ids: Iterable[str]) -> list[int]:
        """The positions of living documents by their ids; unknown ids are left out."""
        query = "SELECT doc FROM documents WHERE deleted = 0 AND id IN (SELECT value FROM json_each(?))"
        with self.sound():
            return [doc for (doc,) in self.db.execute(query, (json.dumps(list(ids)),))]

    def document(self, doc: int) -> tuple[int, NewDocument]:
        """The first row and the content of a document, by its position."""
        query = "SELECT id, title, text, metadata, checksum, first_row, passages FROM documents WHERE doc = ?"
        with self.sound():
            id, title, text, metadata, checksum, first, count = self.db.execute(query, (doc,)).fetchone()
            return int(first), NewDocument(id, title, text, metadata, checksum, self.spans(doc, first, count))

    def passages(self, rows: Sequence[int]) -> dict[int, StoredPassage]:
        """Passages by row, each document compared with its checksum; compacted ones are missing."""
        query = (
            "SELECT DISTINCT d.doc, d.id, d.title, d.text, d.metadata, d.checksum, d.first_row, d.passages, d.seal "
            "FROM passages p JOIN documents d USING (doc) WHERE p.row IN (SELECT value FROM json_each(?))"
        )
        wanted = {int(row) for row in rows}
        found = {}
        with self.sound():
            for doc, id, title, text, metadata, checksum, first, count, seal in self.db.execute(
                query, (json.dumps(sorted(wanted)),)
            ).fetchall():
                spans = self.spans(doc, first, count)
                self._check_seal(seal, doc, first, NewDocument(id, title, text, metadata, checksum, spans))
                for row, (start, stop) in enumerate(spans, start=first):
                    if row in wanted:
                        found[row] = StoredPassage(
                            row, doc, id, title, text[start:stop], start, stop, json.loads(metadata)
                        )
        return found

    def spans(self, doc: int, first: int, count: int) -> list[tuple[int, int]]:
        """Where the passages of a document begin and end in its text, by its position, first row and their number."""
        return self.db.execute(
            "SELECT start, stop FROM passages WHERE row >= ? AND row < ? AND doc = ? ORDER BY row",
            (first, first + count, doc),
        ).fetchall()

    # All of them

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
        with self.sound():
            row, first_doc = self.db.execute(
                "SELECT row, doc FROM passages ORDER BY row LIMIT 1 OFFSET ?", (skip,)
            ).fetchone() or (0, 1 << 62)
            for doc, id, title, text, metadata, checksum, first, count, seal in self.db.execute(query, (first_doc,)):
                spans = self.spans(doc, first, count)
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
        deletions, contents, expected = 0, 0, ["0", "0"]
        with self.sound():
            for doc, first, count, seal, deleted, *parts, tombs, held in self.db.execute(query):
                expected = [tombs, held]
                id, title, text, metadata, checksum = parts
                document = NewDocument(id, title, text, metadata, checksum, self.spans(doc, first, count))
                self._check_seal(seal, doc, first, document)
                contents ^= _sum((doc, first, count, document.id, document.title, document.metadata))
                if deleted:
                    deletions = tombstones(deletions, [(doc, first, count)])
                else:
                    yield document.id, document.title, document.text, document.metadata
        if expected != [json.dumps(deletions), json.dumps(contents)]:
            raise self._differing()

    def checksum(self) -> str:
        """SHA-256 of all living documents in order, as hex; equal for equal collections."""
        whole = hashlib.sha256()
        with self.sound():
            for row in self.db.execute("SELECT id, checksum FROM documents WHERE deleted = 0 ORDER BY doc"):
                whole.update(json.dumps(row).encode())
        return whole.hexdigest()

    # Counting

    def counts(self) -> tuple[int, int]:
        """(documents, passages) of the last commit, without the deleted."""
        return int(self.setting("documents")), int(self.setting("passages"))

    def waiting(self) -> tuple[int, int]:
        """(documents, passages) that are deleted and wait for compaction."""
        query = "SELECT count(*), coalesce(sum(passages), 0) FROM documents WHERE deleted > 0"
        with self.sound():
            documents, passages = self.db.execute(query).fetchone()
        return int(documents), int(passages)

    def stored_passages(self) -> int:
        """Passages that the database holds, of deleted documents too."""
        with self.sound():
            (count,) = self.db.execute("SELECT count(*) FROM passages").fetchone()
        return int(count)

    # Changing, as part of a transaction

    def insert(self, documents: Sequence[NewDocument], doc: int, row: int) -> None:
        """Add documents and their passages, from a position and a row on."""
        contents = int(self.setting("contents"))
        whole: list[tuple[Any, ...]] = []
        parts: list[tuple[int, int, int, int]] = []
        for document in documents:
            count = len(document.spans)
            whole.append((doc, *document[:5], row, count, seal_of(doc, row, document)))
            contents ^= _sum((doc, row, count, document.id, document.title, document.metadata))
            parts += [(row + n, doc, start, stop) for n, (start, stop) in enumerate(document.spans)]
            doc, row = doc + 1, row + count
        self.db.executemany(
            "INSERT INTO documents (doc, id, title, text, metadata, checksum, first_row, passages, seal) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            whole,
        )
        self.db.executemany("INSERT INTO passages VALUES (?, ?, ?, ?)", parts)
        self.increase("documents", len(whole))
        self.increase("passages", len(parts))
        self.put(next_row=row, next_doc=doc, contents=contents)

    def mark_deleted(self, docs: Iterable[int], generation: int) -> int:
        """Mark living documents as deleted by a commit; returns how many there were."""
        wanted = json.dumps([int(doc) for doc in docs])
        query = (
            "SELECT doc, first_row, passages FROM documents "
            "WHERE deleted = 0 AND doc IN (SELECT value FROM json_each(?))"
        )
        found = self.db.execute(query, (wanted,)).fetchall()
        if found:
            self.db.executemany(
                "UPDATE documents SET deleted = ? WHERE doc = ?", [(generation, doc) for doc, _, _ in found]
            )
            self.increase("documents", -len(found))
            self.increase("passages", -sum(count for _, _, count in found))
            self.put(tombstones=tombstones(int(self.setting("tombstones")), found))
        return len(found)

    def purge_deleted(self, generation: int) -> None:
        """Take out what is marked as deleted; readers of earlier commits must open the index again."""
        self.db.execute("DELETE FROM passages WHERE doc IN (SELECT doc FROM documents WHERE deleted > 0)")
        contents = int(self.setting("contents")) ^ self.contents("deleted > 0")
        self.db.execute("DELETE FROM documents WHERE deleted > 0")
        self.put(tombstones=0, contents=contents, compacted=generation)

    # Seals and sums

    def _check_seal(self, seal: str, doc: int, first_row: int, document: NewDocument) -> None:
        if seal != seal_of(doc, first_row, document):
            raise StoreError(
                f"{self.folder / NAME} is damaged: document {document.id!r} differs from its checksum; "
                "see what is sound with: searchkit check INDEX"
            )

    def check_contents(self) -> None:
        """Compare what is asked of all documents at once, ids, titles and metadata, with its checksum, once.

        A document that damage hides from a filter is not among the hits, whose seals are compared.
        """
        with self.reading():
            settings = {key: int(self.setting(key)) for key in ("compacted", "next_doc", "contents")}
            since, below, found = self._summed
            if since != settings["compacted"]:
                below = found = 0
            found ^= self.contents("doc >= ?", (below,))
        if found != settings["contents"]:
            raise self._differing()
        self._summed = (settings["compacted"], settings["next_doc"], found)

    def contents(self, condition: str = "1", parameters: tuple[int, ...] = ()) -> int:
        """The checksum of what some documents have besides their texts, in any order."""
        query = f"SELECT doc, first_row, passages, id, title, metadata FROM documents WHERE {condition}"
        found = 0
        for each in self.db.execute(query, parameters):
            found ^= _sum(each)
        return found

    def _differing(self) -> StoreError:
        return StoreError(
            f"{self.folder / NAME} is damaged: its documents differ from their checksum; "
            "see what is sound with: searchkit check INDEX"
        )


def seal_of(doc: int, first_row: int, document: NewDocument) -> str:
    """The checksum of a document's own row and its passages' rows, which SQLite does not keep."""
    content = _JSON.encode([doc, first_row, *document[:5], document.spans])
    return blake2b(content.encode(), digest_size=12).hexdigest()


def tombstones(before: int, ranges: Iterable[tuple[int, int, int]]) -> int:
    """A checksum of the deleted documents, in any order; deleting more goes on from what it was before."""
    for each in ranges:
        before ^= int.from_bytes(blake2b(json.dumps(list(each)).encode(), digest_size=6).digest(), "big")
    return before


def _sum(row: tuple[Any, ...]) -> int:
    """The checksum of some values of one document."""
    content = "\0".join(map(str, row)).encode(errors="replace")
    return int.from_bytes(blake2b(content, digest_size=6).digest(), "big")
