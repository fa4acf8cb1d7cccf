"""Documents on their way in: told apart from those that are there, and cut into passages."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

from searchkit.chunking import chunk
from searchkit.errors import InputError
from searchkit.indexer.documents import NewDocument
from searchkit.indexer.store import Store
from searchkit.models.embedder import Embedder
from searchkit.records import Document, join_title

LONGEST_PASSAGE = 512
"""Tokens of a passage for models that could take more: a longer one blurs its vector and its display."""

OnRefused = Callable[[Document, str], None]


@dataclass
class AddReport:
    """What one call of `SearchEngine.add` did."""

    documents: int = 0
    passages: int = 0
    unchanged: int = 0
    updated: int = 0
    refused: int = 0
    truncated: int = 0
    seconds: float = 0.0


def new_documents(
    documents: Iterable[Document],
    store: Store,
    report: AddReport,
    on_refused: OnRefused | None,
    *,
    update: bool = False,
) -> Iterator[tuple[Document, str]]:
    """Those that the store lacks, each with its checksum; the others are counted in the report.

    With `update` also those that it has with other content.

    Raises:
        ValueError: A document cannot be added, and nobody takes refused ones.
    """
    # Ids of this call, on disk: a set in memory would grow with the corpus.
    with closing(sqlite3.connect("", isolation_level=None)) as seen:
        seen.executescript("PRAGMA journal_mode=OFF; CREATE TABLE seen (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID")
        seen.execute("BEGIN")
        for document in documents:
            checksum, fault = _checked(document)
            fault = fault or _repeated(document, seen)
            if fault is None:
                stored = store.documents.checksum_of(document.id)
                if stored == checksum or (stored is not None and _only_incidental(document, stored, store)):
                    report.unchanged += 1
                elif stored is None:
                    yield document, checksum
                elif update:
                    report.updated += 1
                    yield document, checksum
                else:
                    fault = f"id {document.id!r} is in the index with other content; to replace it: searchkit update"
            if fault is not None:
                if on_refused is None:
                    raise InputError(f"{document.place}: {fault}" if document.place else fault)
                report.refused += 1
                on_refused(document, fault)


def _checked(document: Document) -> tuple[str, str | None]:
    """The checksum, and why the document cannot be stored, if it cannot."""
    if not document.id.strip():
        return "", "the id is empty"
    if not document.text.strip() and not document.title.strip():
        return "", f"document {document.id!r} has neither text nor title"
    if "\0" in document.id + document.title + document.text:
        return "", f"document {document.id!r} holds a NUL byte; take it out"
    try:
        return document.checksum(), None
    except (TypeError, ValueError) as error:  # metadata that is no JSON, a lone surrogate
        return "", f"document {document.id!r} cannot be stored: {error}"


def _only_incidental(document: Document, stored: str, store: Store) -> bool:
    """Whether the document differs from the stored one only in what does not make it another."""
    if not document.incidental:
        return False
    (position,) = store.documents.positions_of([document.id])
    before = json.loads(store.documents.document(position)[1].metadata)
    kept = {key: value for key, value in document.metadata.items() if key not in document.incidental}
    kept |= {key: before[key] for key in document.incidental if key in before}
    return replace(document, metadata=kept).checksum() == stored


def _repeated(document: Document, seen: sqlite3.Connection) -> str | None:
    try:
        seen.execute("INSERT INTO seen VALUES (?, ?)", (document.id, document.place))
    except sqlite3.IntegrityError:
        (first,) = seen.execute("SELECT place FROM seen WHERE id = ?", (document.id,)).fetchone()
        return f"id {document.id!r} came before{f', at {first}' if first else ''}; ids must be unique"
    return None


def to_passages(
    document: Document, checksum: str, embedder: Embedder, chunk_tokens: int, overlap: int
) -> tuple[NewDocument, list[str]]:
    """The document as it is stored, and the texts of its passages as they are embedded."""
    title, spans = _spans(document, embedder, chunk_tokens, overlap)
    metadata = json.dumps(document.metadata, ensure_ascii=False, sort_keys=True)
    new = NewDocument(document.id, document.title, document.text, metadata, checksum, spans)
    return new, [join_title(title, document.text[start:stop]) for start, stop in spans]


def _spans(document: Document, embedder: Embedder, tokens: int, overlap: int) -> tuple[str, list[tuple[int, int]]]:
    """The title as it goes with every passage, and the passages' places in the text."""
    if tokens == 0 or not document.text.strip():
        return document.title, [(0, len(document.text))]
    tokens -= len(embedder.offsets(embedder.conventions.document_prefix))
    title, places = document.title, embedder.offsets(document.title)
    if len(places) > tokens // 2:  # the title stands first, so too long a one would push the text out
        places = places[: tokens // 2]
        title = title[: places[-1][1]]
    room = tokens - len(places)
    return title, chunk(document.text, embedder.offsets, tokens=room, overlap=min(overlap, room // 2))


def chunk_settings(embedder: Embedder, chunk_tokens: int | None, overlap: int | None) -> dict[str, int]:
    """The length and overlap of passages, with what the model suggests where None came."""
    room = embedder.max_length - embedder.special_tokens
    tokens = min(room, LONGEST_PASSAGE) if chunk_tokens is None else chunk_tokens
    if tokens != 0 and not 8 <= tokens <= room:
        raise InputError(f"chunk_tokens is {tokens}; expected 0 (whole documents) or 8 to {room} for this model")
    overlap = tokens // 8 if overlap is None else overlap
    if not 0 <= overlap <= tokens // 2:
        raise InputError(f"overlap is {overlap}; expected 0 to {tokens // 2}, half of a passage of {tokens} tokens")
    return {"chunk_tokens": tokens, "overlap": overlap}
