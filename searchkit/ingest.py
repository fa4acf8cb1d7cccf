"""Documents on their way in: validated, compared with those stored, cut into passages, embedded and committed."""

from __future__ import annotations

import json
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np

from searchkit.chunking import chunk
from searchkit.errors import InputError
from searchkit.indexer.documents import NewDocument
from searchkit.indexer.store import Snapshot, Store
from searchkit.lexical_sync import LexicalSync
from searchkit.models.embedder import Embedder
from searchkit.own_vectors import OwnVectors, identified
from searchkit.records import Document, join_title
from searchkit.validation import check_document, described, whole_number

LONGEST_PASSAGE = 512
"""Tokens of a passage, even for models that could take more: a longer one blurs its vector and its display."""

COMMIT_EVERY = 1024
"""Passages a commit."""

COMMIT_SECONDS = 1.0
"""A commit also falls after this long: what was embedded before somebody stops is kept, however slow the model is."""

COMMIT_SHARE = 0.02
"""Share of the time that those commits may take."""

OnRefused = Callable[[Document, str], None]
OnProgress = Callable[[float, int], None]


@dataclass
class AddReport:
    """What one call of `add` did."""

    documents: int = 0
    passages: int = 0
    unchanged: int = 0
    updated: int = 0
    refused: int = 0
    truncated: int = 0
    unreadable: int = 0
    without_vector: int = 0
    seconds: float = 0.0


class Known(Protocol):
    """The documents that there are already."""

    def checksum_of(self, document_id: str) -> str | None:
        """The checksum of the document with that id, None when there is none."""

    def metadata_of(self, document_id: str) -> str:
        """The metadata of the document with that id, as JSON."""


class Committer(ABC):
    """What one call of `add` commits, some documents at a time.

    Args:
        report: Counts what was done.
        every: Passages a commit; one also falls after `COMMIT_SECONDS`.
        on_progress: Called now and then with (documents, passages) done so far.
    """

    def __init__(self, report: AddReport, every: int, on_progress: OnProgress | None) -> None:
        self.report, self.every, self.on_progress = report, every, on_progress
        self._documents: list[NewDocument] = []  # since the last commit
        self._vectors: list[np.ndarray] = []
        self._passages = 0
        self._due = time.monotonic() + COMMIT_SECONDS

    @abstractmethod
    def write(self, documents: Sequence[NewDocument], vectors: np.ndarray) -> None:
        """Commit documents in place of those that have their ids, with a vector for each of their passages."""

    def add(self, documents: Sequence[NewDocument], vectors: np.ndarray) -> None:
        """Take documents with their vectors, and commit if that is due."""
        self._documents += documents
        self._vectors.append(vectors)
        self._passages += sum(len(document.spans) for document in documents)
        if self._passages >= self.every or time.monotonic() >= self._due:
            began = time.monotonic()
            self.commit()
            ended = time.monotonic()
            self._due = ended + max(COMMIT_SECONDS, (ended - began) / COMMIT_SHARE)

    def commit(self) -> None:
        """Commit what there is."""
        if not self._documents:
            return
        self.write(self._documents, np.concatenate(self._vectors))
        self.report.documents += len(self._documents)
        self.report.passages += self._passages
        self._documents, self._vectors, self._passages = [], [], 0

    def progress(self, documents: float = 0, passages: int = 0) -> None:
        """Report what is done, with this much that has not been taken yet."""
        if self.on_progress is not None:
            before = self.report.unchanged + self.report.documents + len(self._documents)
            self.on_progress(before + documents, self.report.passages + self._passages + passages)


class Commits(Committer):
    """Commits of an index folder.

    Args:
        store: The index, open for writing.
        lexical: Its lexical index.
        snapshot: The last commit before this call.
        report, every, on_progress: As for `Committer`.
    """

    def __init__(
        self,
        store: Store,
        lexical: LexicalSync,
        snapshot: Snapshot,
        report: AddReport,
        every: int,
        on_progress: OnProgress | None,
    ) -> None:
        super().__init__(report, every, on_progress)
        self.store, self.lexical, self.snapshot = store, lexical, snapshot

    def write(self, documents: Sequence[NewDocument], vectors: np.ndarray) -> None:
        """Commit documents in place of those that have their ids, with a vector for each of their passages."""
        # The commit deletes the documents that these replace; the ids of new ones are unknown, and ignored.
        ids = [new.id for new in documents]
        before = self.store.storage.similarity
        fitted = before.fitted(vectors)
        first_row = self.store.database.number("next_row")
        self.store.commit(documents, fitted.rows(vectors), delete=ids, similarity=None if fitted is before else fitted)
        texts = _texts(documents, first_row)
        self.lexical.catch_up(self.lexical.index_of(self.snapshot), self.store, texts)
        self.store.merge_small_segments()


def _texts(documents: Sequence[NewDocument], row: int) -> list[tuple[int, str, str]]:
    """(row, title, text) of the passages of documents, from a row on."""
    texts: list[tuple[int, str, str]] = []
    for document in documents:
        for start, stop in document.spans:
            texts.append((row + len(texts), document.title, document.text[start:stop]))
    return texts


def add_texts(
    commits: Committer, documents: Iterable[tuple[Document, str]], embedder: Embedder, chunk_tokens: int, overlap: int
) -> None:
    """Cut documents into passages, embed them, and commit both.

    Args:
        commits: Where they go.
        documents: New ones, with their checksums.
        embedder: The model.
        chunk_tokens: Longest passage in tokens, 0 for whole documents.
        overlap: Tokens shared by neighbouring passages.
    """
    new = (to_passages(document, checksum, embedder, chunk_tokens, overlap) for document, checksum in documents)
    for window in _windows(new, min(commits.every, window_size(embedder))):
        texts = [text for _, passages in window for text in passages]
        documents_a_passage = len(window) / max(1, len(texts))
        embedded = 0

        def on_batch(count: int, documents_a_passage: float = documents_a_passage) -> None:
            nonlocal embedded
            embedded += count
            commits.progress(embedded * documents_a_passage, embedded)

        vectors = embedder.encode_passages(texts, on_batch)
        commits.add([document for document, _ in window], vectors)
    commits.commit()


def add_vectors(commits: Committer, documents: Iterable[tuple[Document, str]], dim: int) -> None:
    """Commit documents with the vectors that they bring, those without one too; each is one passage.

    Args:
        commits: Where they go.
        documents: New ones, with their checksums, and with vectors as `as_vector` returns them.
        dim: Width of the vectors.
    """
    remaining = iter(documents)
    while batch := list(islice(remaining, min(commits.every, COMMIT_EVERY))):
        rows = [document.vector for document, _ in batch if document.vector is not None]
        commits.report.without_vector += len(batch) - len(rows)
        commits.add(
            [as_stored(document, checksum, [(0, len(document.text))]) for document, checksum in batch],
            np.stack(rows) if rows else np.empty((0, dim), np.float32),
        )
        commits.progress()
    commits.commit()


def window_size(embedder: Embedder) -> int:
    """Passages that are embedded together: enough to fill the model's batches, and soon done.

    Batches form within a window, and a window is committed whole or not at all, so that a resumed run forms the same
    batches, and the same vectors, as an unbroken one, whenever the commits fell.
    """
    return max(64, embedder.token_budget // 64)


def _windows(
    documents: Iterable[tuple[NewDocument, list[str]]], size: int
) -> Iterator[list[tuple[NewDocument, list[str]]]]:
    """Whole documents together, of at least `size` passages apart from the last."""
    window: list[tuple[NewDocument, list[str]]] = []
    passages = 0
    for document in documents:
        window.append(document)
        passages += len(document[1])
        if passages >= size:
            yield window
            window, passages = [], 0
    if window:
        yield window


def new_documents(
    documents: Iterable[Document],
    known: Known,
    report: AddReport,
    on_refused: OnRefused | None,
    *,
    update: bool = False,
    own: OwnVectors | None = None,
) -> Iterator[tuple[Document, str]]:
    """Yield the documents that are not known yet, each with its checksum; count the others in the report.

    With `update`, also those that are known with other content.

    Args:
        documents: Read once, in order.
        known: Those of the index.
        report: Counts what is not yielded.
        on_refused: Called with a document that cannot be stored, and the reason; None raises instead.
        update: Whether documents may replace others.
        own: How vectors are checked that documents bring; None where a model makes them.

    Raises:
        InputError: A document cannot be added, and there is no `on_refused`.
    """
    if isinstance(documents, str | Document) or not isinstance(documents, Iterable):
        raise InputError(f"documents is {described(documents)}; expected a list of searchkit.Document")
    # Ids of this call, on disk: a set in memory would grow with the corpus.
    with closing(sqlite3.connect("", isolation_level=None)) as seen:
        seen.executescript("PRAGMA journal_mode=OFF; CREATE TABLE seen (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID")
        seen.execute("BEGIN")
        for document in documents:
            fault = _fault(document) or _repeated(document, seen)
            if fault is None:
                try:
                    document, checksum = identified(document, own)
                except InputError as error:
                    fault = f"document {document.id!r}: {error}"
            if fault is None:
                stored = known.checksum_of(document.id)
                if stored == checksum or (stored is not None and _only_incidental(document, checksum, stored, known)):
                    report.unchanged += 1
                elif stored is None:
                    yield document, checksum
                elif update:
                    report.updated += 1
                    yield document, checksum
                else:
                    fault = (
                        f"id {document.id!r} is in the index with other content; "
                        "to replace it: searchkit update, or update=True"
                    )
            if fault is not None:
                if on_refused is None:
                    raise InputError(f"{document.place}: {fault}" if document.place else fault)
                report.refused += 1
                on_refused(document, fault)


def _fault(document: Any) -> str | None:
    """Why a document cannot be stored, if it cannot."""
    try:
        check_document(document)
    except InputError as error:
        if not isinstance(document, Document):
            raise  # a mistake in the calling code, not in the data
        return f"document {described(document.id)}: {error}"
    return None


def _only_incidental(document: Document, checksum: str, stored: str, known: Known) -> bool:
    """Whether the document differs from the stored one only in what does not make it another."""
    if not document.incidental:
        return False
    before = json.loads(known.metadata_of(document.id))
    kept = {key: value for key, value in document.metadata.items() if key not in document.incidental}
    kept |= {key: before[key] for key in document.incidental if key in before}
    vector = checksum.partition(":")[1:]  # none, where a model makes them
    return replace(document, metadata=kept).checksum() + "".join(vector) == stored


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
    """A document as it is stored, and the texts of its passages as they are embedded."""
    title, spans = _spans(document, embedder, chunk_tokens, overlap)
    return as_stored(document, checksum, spans), [join_title(title, document.text[start:stop]) for start, stop in spans]


def as_stored(document: Document, checksum: str, spans: list[tuple[int, int]]) -> NewDocument:
    """A document as it is stored."""
    metadata = json.dumps(document.metadata, ensure_ascii=False, sort_keys=True)
    return NewDocument(document.id, document.title, document.text, metadata, checksum, spans)


def _spans(document: Document, embedder: Embedder, tokens: int, overlap: int) -> tuple[str, list[tuple[int, int]]]:
    """The title as every passage carries it, and the passages' spans in the text."""
    if tokens == 0 or not document.text.strip():
        return document.title, [(0, len(document.text))]
    prefix = embedder.conventions.document_prefix
    room = tokens - len(embedder.offsets(prefix))
    title, offsets = document.title, embedder.offsets(document.title)
    if len(offsets) > room // 2:  # the title comes first, so a long one would push the text out
        offsets = offsets[: room // 2]
        title = title[: offsets[-1][1]]
    before = prefix + f"{title} ".lstrip()
    room = tokens - len(embedder.offsets(before.rstrip()))
    overlap = min(overlap, room // 2)
    return title, chunk(document.text, embedder.offsets, tokens=tokens, overlap=overlap, before=before)


def chunk_settings(embedder: Embedder, chunk_tokens: int | None, overlap: int | None) -> dict[str, int]:
    """The length and overlap of passages; None takes what suits the model."""
    room = embedder.max_length - embedder.special_tokens
    tokens = min(room, LONGEST_PASSAGE) if chunk_tokens is None else whole_number("chunk_tokens", chunk_tokens, 0)
    least = 8 + len(embedder.offsets(embedder.conventions.document_prefix))
    if tokens != 0 and not least <= tokens <= room:
        raise InputError(f"chunk_tokens is {tokens}; expected 0 (whole documents) or {least} to {room} for this model")
    overlap = tokens // 8 if overlap is None else overlap
    half = tokens // 2
    return {"chunk_tokens": tokens, "overlap": whole_number("overlap", overlap, 0, half)}
