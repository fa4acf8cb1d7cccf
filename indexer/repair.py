"""What a check asks of an index folder's database, and what a repair changes in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from searchkit.indexer.database import settings_seal
from searchkit.indexer.documents import NewDocument, seal_of, tombstones
from searchkit.indexer.files import next_number
from searchkit.indexer.store import Store, stamps
from searchkit.indexer.vectors.recipes import Plan
from searchkit.indexer.vectors.segments import DiskSegment, Entry

_STRAY = (
    "NOT EXISTS (SELECT 1 FROM documents WHERE documents.doc = passages.doc AND row >= first_row "
    "AND row < first_row + documents.passages)"
)


class Examined(NamedTuple):
    """A document as it is read when the index is checked, with whether it is as its seal says."""

    doc: int
    first_row: int
    passages: int
    deleted: bool
    sound: bool
    document: NewDocument


# Looking


def counted(store: Store) -> dict[str, int]:
    """Settings that can be told from the tables, as the tables have them."""
    query = "SELECT count(*), coalesce(sum(passages), 0) FROM documents WHERE deleted = 0"
    with store.sound():
        documents, passages = store.db.execute(query).fetchone()
        ranges = store.db.execute("SELECT doc, first_row, passages FROM documents WHERE deleted > 0").fetchall()
    return {"documents": documents, "passages": passages, "tombstones": tombstones(0, ranges)}


def complete(store: Store) -> bool:
    """Whether the documents together are those that the last commit left; their own seals come first."""
    with store.sound():
        return store.contents() == int(store.setting("contents"))


def examine(store: Store) -> Iterator[Examined]:
    """Every document, of the deleted too, in order, with what can be read of it."""
    query = (
        "SELECT doc, first_row, passages, deleted > 0, CAST(seal AS BLOB), CAST(id AS BLOB), CAST(title AS BLOB), "
        "CAST(text AS BLOB), CAST(metadata AS BLOB), CAST(checksum AS BLOB) FROM documents ORDER BY doc"
    )
    with store.sound():
        for doc, first, count, deleted, seal, *parts in store.db.execute(query):
            try:
                id, title, text, metadata, checksum = (part.decode() for part in parts)
                document = NewDocument(id, title, text, metadata, checksum, store.spans(doc, first, count))
                sound = seal.decode() == seal_of(doc, first, document)
            except (AttributeError, TypeError, UnicodeDecodeError):  # a damaged length, type or character
                id, title, text, metadata, checksum = ((part or b"").decode(errors="replace") for part in parts)
                document, sound = NewDocument(id, title, text, metadata, checksum, []), False
            yield Examined(doc, first, count, bool(deleted), sound, document)


def passage_rows(store: Store, first: int, below: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, docs), each int64: the passages from one row to below another, of deleted documents too."""
    query = (
        "SELECT row, doc FROM passages JOIN documents USING (doc) "
        "WHERE row >= ? AND row < ? AND row >= first_row AND row < first_row + documents.passages ORDER BY row"
    )
    with store.sound():
        found = np.array(store.db.execute(query, (first, below)).fetchall(), dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def stray_passages(store: Store) -> int:
    """Passages that belong to no document."""
    with store.sound():
        (count,) = store.db.execute(f"SELECT count(*) FROM passages WHERE {_STRAY}").fetchone()
    return int(count)


def named_segments(store: Store) -> list[DiskSegment]:
    """The segments as the last commit lists them, no checksum compared."""
    with store.sound():
        plan = store.storage.plan
        return [DiskSegment(store.folder / "segments" / entry.name, entry, plan) for entry in store.entries()]


# Changing


def forget_lost_commits(store: Store) -> None:
    """Go on from the commit that the database is at."""
    store.check_writable()
    store.note_commit(int(store.setting("generation")))


def reindex(store: Store) -> None:
    """Make the database's search trees anew from its tables."""
    store.check_writable()
    with store.sound():
        store.db.execute("REINDEX")


def mend_settings(store: Store) -> str | None:
    """Set the one setting that is wrong and can be told from the rest; None where the seal fits no such change."""
    store.check_writable()
    with store.sound():
        highest = "SELECT (SELECT max(row) FROM passages), (SELECT max(doc) FROM documents)"
        row, doc = store.db.execute(highest).fetchone()
        folder = store.folder / "lexical" / str(store.setting("lexical"))
        found = {
            **counted(store),
            "contents": store.contents(),
            "next_row": 1 + (-1 if row is None else row),
            "next_doc": 1 + (-1 if doc is None else doc),
            "lexical_files": stamps(folder) if folder.is_dir() else {},
        }
        for key, value in found.items():
            store.db.execute("BEGIN IMMEDIATE")
            store.put(**{key: value})
            fits = store.setting("seal") == settings_seal(store.db)
            store.db.execute("COMMIT" if fits else "ROLLBACK")
            if fits:
                return key
    return None


def mend_deletions(store: Store) -> str | None:
    """Set the one deletion mark that is wrong, where the checksum says which; the id of its document, or None."""
    store.check_writable()
    differing = counted(store)["tombstones"] ^ int(store.setting("tombstones"))
    with store.sound():
        for doc, first, count, deleted in store.db.execute("SELECT doc, first_row, passages, deleted FROM documents"):
            if tombstones(0, [(doc, first, count)]) == differing:
                mark = 0 if deleted else int(store.setting("generation"))
                store.db.execute("UPDATE documents SET deleted = ? WHERE doc = ?", (mark, doc))
                return store.ids_of([doc])[doc]
    return None


def recount(store: Store) -> None:
    """Set what can be counted to what there is."""
    store.check_writable()
    with store.transaction():
        store.put(**counted(store))  # not what the contents are: some may be about to be taken out


def mend_codebook(store: Store, plan: Plan, template: Any) -> None:
    """Name a new codebook in a commit."""
    store.check_writable()
    codebook = store.write_codebook(plan, template)
    with store.transaction():
        store.put(storage=replace(store.storage, plan=plan, codebook=codebook).to_json())
    store.forget_template()


def mend(
    store: Store,
    entries: Sequence[Entry],
    *,
    lost: Iterable[int] = (),
    new_lexical: bool = False,
    plan: Plan | None = None,
) -> None:
    """Replace what was damaged, in one commit.

    Args:
        store: The index, open for writing.
        entries: All segments from now on.
        lost: Positions of documents to take out, whose seals fail.
        new_lexical: Begin an empty lexical index.
        plan: A recipe without a codebook, where that was lost.
    """
    store.check_writable()
    with store.transaction() as generation:
        store.db.execute(
            "DELETE FROM documents WHERE doc IN (SELECT value FROM json_each(?))", (json.dumps(list(lost)),)
        )
        store.db.execute(f"DELETE FROM passages WHERE {_STRAY}")
        store.db.execute("DELETE FROM segments")
        for entry in entries:
            store.name(entry)
        # As after a compaction, readers of earlier commits must open the index again.
        store.put(**counted(store), contents=store.contents(), compacted=generation)
        if plan is not None:
            store.put(storage=replace(store.storage, plan=plan, codebook=None).to_json())
        if new_lexical:
            (store.folder / "lexical").mkdir(exist_ok=True)
            store.put(lexical=next_number(store.folder / "lexical", store.setting("lexical")), lexical_files={})
    store.forget_template()
    store.sweep()
