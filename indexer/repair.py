"""What a check reads from an index folder's database, and what a repair changes in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import NamedTuple

import numpy as np

from searchkit.indexer.database import settings_checksum
from searchkit.indexer.documents import NO_VECTOR, NewDocument, document_checksum, spans, tombstones
from searchkit.indexer.files import next_number
from searchkit.indexer.lexical_files import stamps
from searchkit.indexer.store import Store
from searchkit.indexer.unicode import strict_json
from searchkit.indexer.vectors.backend import VectorIndex
from searchkit.indexer.vectors.recipes import Plan
from searchkit.indexer.vectors.segments import DiskSegment, Entry

_STRAY = (
    "NOT EXISTS (SELECT 1 FROM documents WHERE documents.doc = passages.doc AND row >= first_row "
    "AND row < first_row + documents.passages)"
)


class Examined(NamedTuple):
    """A document as a check reads it, and whether it matches its checksum."""

    doc: int
    first_row: int
    passages: int
    deleted: bool
    sound: bool
    document: NewDocument


# Looking


def counted(store: Store) -> dict[str, int]:
    """Settings that follow from the tables, as the tables have them."""
    query = "SELECT count(*), coalesce(sum(passages), 0) FROM documents WHERE deleted = 0"
    with store.database.access():
        documents, passages = store.database.db.execute(query).fetchone()
        ranges = store.database.db.execute(
            "SELECT doc, first_row, passages FROM documents WHERE deleted > 0"
        ).fetchall()
    return {"documents": documents, "passages": passages, "tombstones": tombstones(0, ranges)}


def complete(store: Store) -> bool:
    """Whether the documents together are those that the last commit left; check their own checksums first."""
    with store.database.access():
        return store.documents.contents() == store.database.number("contents")


def examine(store: Store) -> Iterator[Examined]:
    """Every document in order, deleted ones included, with what can be read of it."""
    query = (
        "SELECT doc, first_row, passages, deleted > 0, CAST(seal AS BLOB), CAST(id AS BLOB), CAST(title AS BLOB), "
        "CAST(text AS BLOB), CAST(metadata AS BLOB), CAST(checksum AS BLOB) FROM documents ORDER BY doc"
    )
    with store.database.snapshot() as db:
        for doc, first, count, deleted, checksum, *parts in db.execute(query):
            try:
                id, title, text, metadata, content = (part.decode() for part in parts)
                document = NewDocument(id, title, text, metadata, content, spans(db, doc, first, count))
                sound = checksum.decode() == document_checksum(doc, first, document)
            except (AttributeError, UnicodeDecodeError):  # damage made NULL of a column, or bytes that are no text
                id, title, text, metadata, content = ((part or b"").decode(errors="replace") for part in parts)
                document, sound = NewDocument(id, title, text, metadata, content, []), False
            yield Examined(doc, first, count, bool(deleted), sound, document)


def passage_rows(store: Store, first: int, below: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, docs), each int64: the passages from one row to below another that have a vector, deleted ones too."""
    query = (
        "SELECT row, doc FROM passages JOIN documents USING (doc) "
        "WHERE row >= ? AND row < ? AND row >= first_row AND row < first_row + documents.passages "
        f"AND documents.checksum NOT LIKE '%{NO_VECTOR}' ORDER BY row"
    )
    with store.database.access():
        pairs = store.database.db.execute(query, (first, below)).fetchall()
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def stray_passages(store: Store) -> int:
    """Passages that belong to no document."""
    with store.database.access():
        (count,) = store.database.db.execute(f"SELECT count(*) FROM passages WHERE {_STRAY}").fetchone()
    return int(count)


def ids_with_invalid_metadata(store: Store) -> list[str]:
    """Ids of living documents whose metadata is not JSON: earlier versions stored NaN and Infinity."""
    query = "SELECT id FROM documents WHERE deleted = 0 AND NOT json_valid(metadata) ORDER BY doc"
    with store.database.access():
        return [str(id) for (id,) in store.database.db.execute(query)]


def named_segments(store: Store) -> list[DiskSegment]:
    """The segments as the last commit lists them, without comparing any checksum."""
    plan = store.storage.plan
    folder = store.folder / "segments"
    return [DiskSegment(folder / entry.name, entry, plan, store.backend) for entry in store.entries()]


# Changing


def forget_lost_commits(store: Store) -> None:
    """Carry on from the commit that the database is at."""
    store.database.check_writable()
    store.database.note_commit(store.database.number("generation"))


def reindex(store: Store) -> None:
    """Rebuild the database's search trees from its tables."""
    store.database.check_writable()
    with store.database.access():
        store.database.db.execute("REINDEX")


def repair_settings(store: Store) -> str | None:
    """Set the one setting that is wrong and follows from the rest; None where the checksum fits no such change."""
    database = store.database
    database.check_writable()
    with database.access():
        highest = "SELECT (SELECT max(row) FROM passages), (SELECT max(doc) FROM documents)"
        row, doc = database.db.execute(highest).fetchone()
        folder = store.lexical.folder
        candidates = {
            **counted(store),
            "contents": store.documents.contents(),
            "next_row": 1 + (-1 if row is None else row),
            "next_doc": 1 + (-1 if doc is None else doc),
            "lexical_files": stamps(folder) if folder.is_dir() else {},
        }
        for key, value in candidates.items():
            database.db.execute("BEGIN IMMEDIATE")
            database.put(**{key: value})
            fits = database.setting("seal") == settings_checksum(database.db)
            database.db.execute("COMMIT" if fits else "ROLLBACK")
            if fits:
                return key
    return None


def repair_deletions(store: Store) -> str | None:
    """Correct the one deletion mark that is wrong, if the checksum shows which; the id of its document, or None."""
    database = store.database
    database.check_writable()
    differing = counted(store)["tombstones"] ^ database.number("tombstones")
    with database.access():
        for doc, first, count, deleted in database.db.execute(
            "SELECT doc, first_row, passages, deleted FROM documents"
        ):
            if tombstones(0, [(doc, first, count)]) == differing:
                mark = 0 if deleted else database.number("generation")
                database.db.execute("UPDATE documents SET deleted = ? WHERE doc = ?", (mark, doc))
                return store.documents.ids_of([doc])[doc]
    return None


def recount(store: Store) -> None:
    """Set what can be counted to the actual counts."""
    store.database.check_writable()
    with store.database.transaction():
        store.database.put(**counted(store))  # not the checksum of the contents: some may be about to be removed


def repair_metadata(store: Store) -> list[str]:
    """Replace NaN and Infinity in metadata by null, in one commit; the ids of the documents that held them."""
    database = store.database
    database.check_writable()
    with database.access():
        query = "SELECT doc, id, deleted FROM documents WHERE NOT json_valid(metadata)"
        invalid = database.db.execute(query).fetchall()
    if not invalid:
        return []
    with database.transaction() as generation:
        for doc, _, _ in invalid:
            first, stored = store.documents.document(doc)
            metadata = strict_json(stored.metadata)
            content = f"{json.dumps([stored.id, stored.title, stored.text], ensure_ascii=False)[:-1]}, {metadata}]"
            vector = "".join(stored.checksum.partition(":")[1:])
            checksum = sha256(content.encode()).hexdigest() + vector
            document = stored._replace(metadata=metadata, checksum=checksum)
            database.db.execute(
                "UPDATE documents SET metadata = ?, checksum = ?, seal = ? WHERE doc = ?",
                (document.metadata, document.checksum, document_checksum(doc, first, document), doc),
            )
        # As after a compaction, readers of earlier commits must open the index again.
        database.put(contents=store.documents.contents(), compacted=generation)
    return [id for _, id, deleted in invalid if not deleted]


def replace_codebook(store: Store, template: VectorIndex) -> None:
    """Name a new codebook in a commit."""
    store.database.check_writable()
    codebook = store.write_codebook(template)
    with store.database.transaction():
        store.database.put(storage=replace(store.storage, plan=template.plan, codebook=codebook).to_json())
    store.forget_template()


def replace_damaged(
    store: Store,
    entries: Sequence[Entry],
    *,
    lost: Iterable[int] = (),
    vectorless: Iterable[int] = (),
    new_lexical: bool = False,
    plan: Plan | None = None,
) -> None:
    """Replace what was damaged, in one commit.

    Args:
        store: The index, open for writing.
        entries: All segments from now on.
        lost: Positions of documents to remove, whose checksums do not match.
        vectorless: Positions of documents that have no vector any more.
        new_lexical: Begin an empty lexical index.
        plan: A recipe without a codebook, where the codebook was lost.
    """
    database = store.database
    database.check_writable()
    with database.transaction() as generation:
        lost_docs = json.dumps(list(lost))
        database.db.execute("DELETE FROM documents WHERE doc IN (SELECT value FROM json_each(?))", (lost_docs,))
        database.db.execute(f"DELETE FROM passages WHERE {_STRAY}")
        database.db.execute("DELETE FROM segments")
        for entry in entries:
            store.list_segment(entry)
        for doc in vectorless:
            first, stored = store.documents.document(doc)
            document = stored._replace(checksum=stored.checksum.partition(":")[0] + NO_VECTOR)
            database.db.execute(
                "UPDATE documents SET checksum = ?, seal = ? WHERE doc = ?",
                (document.checksum, document_checksum(doc, first, document), doc),
            )
        # As after a compaction, readers of earlier commits must open the index again.
        database.put(**counted(store), contents=store.documents.contents(), compacted=generation)
        if plan is not None:
            database.put(storage=replace(store.storage, plan=plan, codebook=None).to_json())
        if new_lexical:
            folder = store.folder / "lexical"
            folder.mkdir(exist_ok=True)
            database.put(lexical=next_number(folder, database.setting("lexical")), lexical_files={})
    store.forget_template()
    store.sweep()
