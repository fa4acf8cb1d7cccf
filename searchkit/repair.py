"""Make what is damaged in an index folder anew from what is sound."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from searchkit.check import (
    PUT_BACK,
    Finding,
    check,
    error_of,
    file_damage,
    is_sound,
    lexical_state,
    of_unit_length,
    row_ranges,
)
from searchkit.engine import COMMIT_EVERY, SearchEngine
from searchkit.errors import DamagedError, StoreError
from searchkit.indexer import repair as mending
from searchkit.indexer.database import LAST
from searchkit.indexer.errors import REBUILD
from searchkit.indexer.lexical import LexicalIndex
from searchkit.indexer.store import Store
from searchkit.indexer.vectors import faiss_index as dense
from searchkit.indexer.vectors.recipes import Plan
from searchkit.indexer.vectors.segments import (
    INDEX,
    ROWS,
    VECTORS,
    DiskSegment,
    Entry,
    all_rows,
    copy_segment,
    write_segment,
)
from searchkit.indexer.vectors.storage import Storage
from searchkit.ingest import to_passages
from searchkit.models.embedder import Embedder
from searchkit.records import Document, join_title


@dataclass
class Repair:
    """What a repair did.

    Args:
        done: A sentence for everything that was made anew.
        lost: Ids of documents that could not be repaired and were taken out.
        file: Where what is left of them was written.
        findings: Of the check afterwards.
    """

    done: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    file: Path | None = None
    findings: list[Finding] = field(default_factory=list)


def repair(
    folder: str | Path,
    *,
    model: Embedder | str | Path | None = None,
    adapter: str | Path | None = None,
    device: str | None = None,
    dtype: str = "auto",
    threads: int | None = None,
) -> Repair:
    """Make what is damaged anew: vectors from what is kept of them or by the model, words from the documents.

    Documents whose checksums fail cannot be made anew. They are taken out, and what is left of them goes to
    FOLDER.lost.jsonl, in a form that can be corrected and added again.

    Args:
        folder: The index folder.
        model: As for `SearchEngine.open`; loaded only where vectors are lost.
        adapter: Likewise.
        device: Likewise.
        dtype: Likewise.
        threads: Likewise.

    Raises:
        StoreError: The database cannot be read, or not be told what is wrong with it.
    """
    report = Repair()
    folder = Path(folder)
    try:
        left = _left(folder)
        with Store(folder, writable=True) as store:
            unsound = _mend_database(store, report)
        left = left or _left(folder)
        # Opened again: what no commit names is known, and removed, once the settings are right.
        with SearchEngine.open(
            folder, model=model, adapter=adapter, device=device, dtype=dtype, threads=threads, writable=True
        ) as engine:
            report.done += left
            storage = engine.store.storage
            _mend_rest(engine, unsound, report)
            if engine.store.storage.plan != storage.plan:
                _store_as_before(engine, storage, report)
    except DamagedError as error:
        if error.repairable:
            raise
        raise StoreError(f"{error}, or {PUT_BACK}") from error
    report.findings = check(folder)
    return report


def _store_as_before(engine: SearchEngine, storage: Storage, report: Repair) -> None:
    """Learn a recipe again whose codebook was lost with all its codes."""
    before = storage.plan
    engine.reload()
    try:
        engine.store_as(before.spelling, keep_vectors=storage.keep_vectors, tuning=storage.tuning)
        report.done.append(f"codebook: recipe {before.spelling} learnt anew")
    except ValueError as error:
        report.done.append(f"codebook: vectors are stored flat from now on ({error})")


def _left(folder: Path) -> list[str]:
    with Store(folder) as store:
        left = store.leftovers() if store.database.settings_intact() else []
    return [f"{path.relative_to(folder)}: removed, no commit names it" for path in left]


def _mend_database(store: Store, report: Repair) -> list[int]:
    """Put right what the database says of itself; returns the positions of documents that are lost."""
    lost = store.database.lost_commits()
    if store.database.integrity():
        mending.reindex(store)
        if faults := store.database.integrity():
            raise DamagedError(store.database.file, f"cannot be read ({faults[0]})", REBUILD, repairable=False)
        report.done.append("index.db: its search trees made anew from its tables")
    if store.database.note_is_gone():
        report.done.append(f"{LAST}: written anew")  # by the commit at the end
    if not store.database.settings_intact():
        if (key := mending.repair_settings(store)) is None:
            raise StoreError(_untold(store, "settings"))
        report.done.append(f"settings: {key} counted again")
    unsound = [each.doc for each in mending.examine(store) if not is_sound(each)]
    counted, settings = mending.counted(store), store.database.settings()
    if counted["tombstones"] != settings["tombstones"]:
        if (id := mending.repair_deletions(store)) is not None:
            report.done.append(f"settings: the deletion mark of document {id!r} put right")
        elif not unsound or counted["documents"] != settings["documents"]:
            raise StoreError(_untold(store, "deletions"))
        else:  # as many as there should be: what differs are the places of lost documents
            mending.recount(store)
    elif missing := settings["documents"] - counted["documents"]:
        report.done.append(f"documents: {missing} are not in the database any more; add them again")
        mending.recount(store)
    elif not unsound and not mending.complete(store):
        report.done.append("settings: the checksum of all documents made anew")
    if lost:
        report.done.append(f"index.db: the last {lost} commits are lost; do again what was added or deleted by them")
        mending.forget_lost_commits(store)
    return unsound


def _untold(store: Store, what: str) -> str:
    return (
        f"{store.folder / 'index.db'} is damaged: its {what} differ from their checksum, and which of them is wrong "
        "cannot be told; put a copy of index.db in its place, or build the index again"
    )


def _salvage(store: Store, unsound: Sequence[int]) -> tuple[list[str], Path | None]:
    """Write down what is left of lost documents; their ids as they are now, and the file."""
    wanted = set(unsound)
    lost = [each.document for each in mending.examine(store) if each.doc in wanted and not each.deleted]
    if not lost:
        return [], None
    folder = store.folder.resolve()
    file = folder.with_name(folder.name + ".lost.jsonl")
    with file.open("a", encoding="utf-8") as stream:
        for document in lost:
            row: dict[str, Any] = {"id": document.id, "title": document.title, "text": document.text}
            row["metadata"] = document.metadata
            with suppress(ValueError):
                row["metadata"] = json.loads(document.metadata)
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    return [document.id for document in lost], file


def _mend_rest(engine: SearchEngine, unsound: list[int], report: Repair) -> None:
    """Vectors and words, in one commit; the words are then written after it, as they always are."""
    store = engine.store
    stray = mending.stray_passages(store)
    lexical = lexical_state(store)
    words = bool(lexical.damage or unsound or stray)
    segments = mending.named_segments(store)
    recovered = _codebook(store, segments, report)
    entries: list[Entry] = []
    present: list[DiskSegment | None] = [*segments]
    for segment, (first, below) in zip(present or [None], row_ranges(segments) or [(0, 1 << 62)], strict=True):
        rows, docs = mending.passage_rows(store, first, below)
        kept = ~np.isin(docs, unsound)
        wanted = _Wanted(rows, rows[kept], docs[kept])
        entry, done = _mended_segment(engine, segment, wanted, recovered)
        if done:
            name = segment.entry.name if segment else "000001"
            report.done.append(f"segments/{name}: {done}")
        entries += [entry] if entry else []
    report.lost, report.file = _salvage(store, unsound)
    if words or entries != [segment.entry for segment in segments] or not recovered or report.done:
        plan = None if recovered else Plan("flat", store.storage.plan.dim)
        mending.replace_damaged(store, entries, lost=unsound, new_lexical=words, plan=plan)
    if unsound:
        deleted = len(unsound) - len(report.lost)
        report.done.append(
            f"documents: {len(unsound)} taken out" + (f", {deleted} of them deleted before" if deleted else "")
        )
    if words or lexical.note:
        index = LexicalIndex(store.lexical.folder, store.database.setting("language"))
        store.lexical.keep()
        index.add((row, join_title(title, text)) for row, title, text in store.documents.texts(len(index)))
        store.lexical.commit()
        report.done.append(f"lexical: {'made anew' if words else 'brought up'} from the documents")


def _codebook(store: Store, segments: Sequence[DiskSegment], report: Repair) -> bool:
    """Take a lost codebook out of a sound segment; False when there is none, and codes mean nothing any more."""
    if not (fault := error_of(store.template)):
        return True
    plan = store.storage.plan
    for segment in segments:
        if not error_of(lambda segment=segment: segment.index):
            # Every segment's index began as a copy of the empty, trained one.
            index = dense.read(segment.folder / INDEX, plan, mapped=False)
            index.reset()
            mending.replace_codebook(store, plan, index)
            report.done.append(f"codebook: taken from segments/{segment.entry.name}")
            return True
    report.done.append(f"codebook: lost ({fault.rpartition('/')[2]})")
    return False


class _Wanted(NamedTuple):
    """Rows of a segment, as the database has them: those that were, and those that stay with their documents."""

    before: np.ndarray
    rows: np.ndarray
    docs: np.ndarray


def _mended_segment(
    engine: SearchEngine, segment: DiskSegment | None, wanted: _Wanted, codebook: bool
) -> tuple[Entry | None, str]:
    """A segment with what is wanted of it, and what was done for it; "" where it is as it should be already.

    Args:
        engine: For the texts and the model.
        segment: What there is of it, if there is any.
        wanted: What should be in it.
        codebook: Whether its codes mean something; else it becomes a flat one.
    """
    store, rows, docs = engine.store, wanted.rows, wanted.docs
    if not len(rows):
        return None, "left out, nothing remains in it" if segment else ""
    places = store.folder / "segments"
    source, positions = None, np.full(len(rows), -1)
    if segment is not None:
        sound = {name for name in segment.entry.files if not file_damage(segment, name)}
        held = _held(segment, sound, wanted.before)
        index = INDEX in sound and codebook and not error_of(lambda: segment.index)
        source = None if held is None else _source(segment, sound, index=index)
        complete = source is not None and held is not None and np.array_equal(held, rows)
        if complete and index and {VECTORS} & segment.entry.files.keys() <= sound:
            if segment.entry.files.keys() == sound and np.array_equal(segment.docs, docs):
                return segment.entry, ""
            return copy_segment(places, segment, docs, rows), "its list of documents made anew from the database"
        if source is not None and held is not None:
            found = np.minimum(np.searchsorted(held, rows), len(held) - 1)
            positions = np.where(held[found] == rows, found, -1)
    storage = store.storage
    plan, template = (storage.plan, store.template()) if codebook else (Plan("flat", storage.plan.dim), None)
    vectors = _vectors(engine, rows, docs, positions, source)
    entry = write_segment(
        places, plan, template, vectors, docs, rows, keep_vectors=storage.keep_vectors, devices=store.devices
    )
    if again := int((positions < 0).sum()):
        return entry, f"{again} of {len(rows)} passages embedded again"
    whence = VECTORS if source and VECTORS in source.entry.files else "its own index"
    return entry, f"{len(rows)} vectors written anew from {whence}"


def _held(segment: DiskSegment, sound: set[str], before: np.ndarray) -> np.ndarray | None:
    """The row of every position in a segment, or None when it cannot be told."""
    if ROWS not in segment.entry.files or ROWS in sound:
        return all_rows([segment])
    return before if len(before) == segment.count else None


def _source(segment: DiskSegment, sound: set[str], *, index: bool) -> DiskSegment | None:
    """The segment, if it gives its vectors as well as ever; None when they are lost."""
    if not (VECTORS in sound if VECTORS in segment.entry.files else index):
        return None
    return segment if not segment.keeps_vectors or of_unit_length(segment) else None


def _vectors(
    engine: SearchEngine, rows: np.ndarray, docs: np.ndarray, positions: np.ndarray, source: DiskSegment | None
) -> Iterator[np.ndarray]:
    """The vectors of some rows, a commit's worth at a time: from their positions in a segment, or else by the model."""
    for start, stop in _windows(docs):
        some = np.empty((stop - start, engine.dim), dtype=np.float32)
        there = positions[start:stop] >= 0
        if source is not None and there.any():
            some[there] = source.vectors(positions[start:stop][there])
        if not there.all():
            some[~there] = _embedded(engine, rows[start:stop], docs[start:stop])[~there]
        yield some


def _windows(docs: np.ndarray) -> Iterator[tuple[int, int]]:
    """Whole documents together, as many as `SearchEngine.add` commits at once: equal batches give equal vectors."""
    starts = np.flatnonzero(np.diff(docs, prepend=-1))
    start = 0
    while start < len(docs):
        later = starts[starts >= start + COMMIT_EVERY]
        stop = int(later[0]) if len(later) else len(docs)
        yield start, stop
        start = stop


def _embedded(engine: SearchEngine, rows: np.ndarray, docs: np.ndarray) -> np.ndarray:
    texts: dict[int, str] = {}
    for doc in dict.fromkeys(docs.tolist()):
        first, stored = engine.store.documents.document(doc)
        settings = engine.settings
        new, passages = to_passages(
            Document(stored.id, stored.text, stored.title),
            stored.checksum,
            engine.embedder,
            settings["chunk_tokens"],
            settings["overlap"],
        )
        if new.spans != stored.spans:  # cut by another version of this program
            passages = [join_title(stored.title, stored.text[start:stop]) for start, stop in stored.spans]
        texts.update(enumerate(passages, start=first))
    return engine.embedder.encode_passages([texts[row] for row in rows.tolist()])
