"""Rebuild what is damaged in an index folder from what is not."""

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
    RESTORE,
    Finding,
    check,
    codebook_damage,
    file_damage,
    has_sound_vectors,
    index_damage,
    is_intact,
    lexical_state,
    row_ranges,
)
from searchkit.engine import COMMIT_EVERY, SearchEngine
from searchkit.errors import DamagedError, InputError, StoreError
from searchkit.indexer import repair as tables
from searchkit.indexer.database import LAST, NAME
from searchkit.indexer.errors import REBUILD
from searchkit.indexer.lexical import LexicalIndex
from searchkit.indexer.store import Store
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
from searchkit.indexer.vectors.similarity import Similarity
from searchkit.indexer.vectors.storage import Storage
from searchkit.ingest import to_passages, window_size
from searchkit.models.embedder import Embedder
from searchkit.records import Document, join_title


@dataclass
class Repair:
    """What a repair did.

    Args:
        done: A sentence for everything that was rebuilt.
        lost: Ids of documents that could not be repaired and were removed.
        file: Where what is left of them was written.
        vectorless: Ids of documents whose vectors, which no model made, are lost; they are found lexically.
        findings: Of the check afterwards.
    """

    done: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    file: Path | None = None
    vectorless: list[str] = field(default_factory=list)
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
    """Rebuild what is damaged: vectors from what is kept of them or by the model, the lexical index from the documents.

    Documents whose checksums differ cannot be rebuilt. They are removed, and what is left of them is written to
    FOLDER.lost.jsonl, in a form that can be corrected and added again.

    Args:
        folder: The index folder.
        model: As for `SearchEngine.open`; loaded only where vectors are lost.
        adapter: Likewise.
        device: Likewise.
        dtype: Likewise.
        threads: Likewise.

    Raises:
        StoreError: The database cannot be read, or it cannot be determined what is wrong with it.
    """
    report = Repair()
    folder = Path(folder)
    try:
        removed = _left_over(folder)
        with Store(folder, writable=True) as store:
            damaged = _repair_database(store, report)
        removed = removed or _left_over(folder)
        # Opened again: once the settings are right, it is known, and removed, what no commit names.
        with SearchEngine.open(
            folder, model=model, adapter=adapter, device=device, dtype=dtype, threads=threads, writable=True
        ) as engine:
            report.done += removed
            storage = engine.store.storage
            _repair_rest(engine, damaged, report)
            if engine.store.storage.plan != storage.plan:
                _train_again(engine, storage, report)
    except DamagedError as error:
        if error.repairable:
            raise
        raise DamagedError(error.path, error.damage, f"{error.advice}, {RESTORE}", repairable=False) from error
    report.findings = check(folder)
    return report


def _left_over(folder: Path) -> list[str]:
    with Store(folder) as store:
        left = store.leftovers() if store.database.settings_intact() else []
    return [f"{path.relative_to(folder)}: removed, no commit names it" for path in left]


# The database


def _repair_database(store: Store, report: Repair) -> list[int]:
    """Correct what the database says of itself; returns the positions of documents that are damaged."""
    database = store.database
    lost = database.lost_commits()
    if database.integrity():
        tables.reindex(store)
        if faults := database.integrity():
            raise DamagedError(database.file, f"cannot be read ({faults[0]})", REBUILD, repairable=False)
        report.done.append(f"{NAME}: its search trees rebuilt from its tables")
    if database.note_is_gone():
        report.done.append(f"{LAST}: written again")  # by the commit at the end
    if not database.settings_intact():
        if (key := tables.repair_settings(store)) is None:
            raise _undetermined(store, "settings")
        report.done.append(f"settings: {key} counted again")
    damaged = [examined.doc for examined in tables.examine(store) if not is_intact(examined)]
    counted, settings = tables.counted(store), database.settings()
    if counted["tombstones"] != settings["tombstones"]:
        if (id := tables.repair_deletions(store)) is not None:
            report.done.append(f"settings: the deletion mark of document {id!r} corrected")
        elif not damaged or counted["documents"] != settings["documents"]:
            raise _undetermined(store, "deletions")
        else:  # as many as there should be: what differs are the positions of damaged documents
            tables.recount(store)
    elif missing := settings["documents"] - counted["documents"]:
        report.done.append(f"documents: {missing} are missing from the database; add them again")
        tables.recount(store)
    elif not damaged and not tables.complete(store):
        report.done.append("settings: the checksum of all documents computed again")
    if lost:
        report.done.append(f"{NAME}: the last {lost} commits are lost; repeat what they added or deleted")
        tables.forget_lost_commits(store)
    if not damaged and (ids := tables.repair_metadata(store)):
        report.done.append(f"documents: NaN and Infinity replaced by null in the metadata of {len(ids)}")
    return damaged


def _undetermined(store: Store, part: str) -> DamagedError:
    damage = f"is damaged: its {part} differ from their checksum, and which of them is wrong cannot be determined"
    return DamagedError(store.database.file, damage, f"restore {NAME} from a copy, or {REBUILD}")


# Vectors and the lexical index


def _repair_rest(engine: SearchEngine, damaged: list[int], report: Repair) -> None:
    """Rebuild segments and drop damaged documents in one commit; the lexical index follows it, as it always does."""
    store = engine.store
    stray = tables.stray_passages(store)
    lexical = lexical_state(store)
    rebuild_lexical = bool(lexical.damage or damaged or stray)
    segments = tables.named_segments(store)
    has_codebook = _repair_codebook(store, segments, report)
    entries: list[Entry] = []
    vectorless: list[int] = []
    present: list[DiskSegment | None] = [*segments]
    for segment, (first, below) in zip(present or [None], row_ranges(segments) or [(0, 1 << 62)], strict=True):
        rows, docs = tables.passage_rows(store, first, below)
        kept = ~np.isin(docs, damaged)
        wanted = _Wanted(rows, rows[kept], docs[kept])
        entry, done = _repair_segment(engine, segment, wanted, has_codebook, vectorless)
        if done:
            name = segment.entry.name if segment else "000001"
            report.done.append(f"segments/{name}: {done}")
        entries += [entry] if entry else []
    report.lost, report.file = _save_damaged(store, damaged)
    if rebuild_lexical or entries != [segment.entry for segment in segments] or not has_codebook or report.done:
        plan = None if has_codebook else Plan("flat", store.storage.plan.dim)
        tables.replace_damaged(
            store, entries, lost=damaged, vectorless=vectorless, new_lexical=rebuild_lexical, plan=plan
        )
    if vectorless:
        report.vectorless = sorted(store.documents.ids_of(vectorless).values())
    if damaged:
        deleted = len(damaged) - len(report.lost)
        note = f", {deleted} of them deleted before" if deleted else ""
        report.done.append(f"documents: {len(damaged)} removed{note}")
    if rebuild_lexical or lexical.behind:
        index = LexicalIndex(store.lexical.folder, store.database.setting("language"))
        store.lexical.keep()
        index.add((row, join_title(title, text)) for row, title, text in store.documents.texts(len(index)))
        store.lexical.commit()
        report.done.append(f"lexical: {'rebuilt' if rebuild_lexical else 'brought up to date'} from the documents")


def _save_damaged(store: Store, damaged: Sequence[int]) -> tuple[list[str], Path | None]:
    """Write down what is left of damaged documents; their ids as they are now, and the file."""
    positions = set(damaged)
    lost = [e.document for e in tables.examine(store) if e.doc in positions and not e.deleted]
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


def _repair_codebook(store: Store, segments: Sequence[DiskSegment], report: Repair) -> bool:
    """Take a lost codebook from an intact segment; False where there is none, so that codes have lost their meaning."""
    damage = codebook_damage(store)
    if not damage:
        return True
    for segment in segments:
        if not index_damage(segment):
            tables.replace_codebook(store, segment.template())
            report.done.append(f"codebook: taken from segments/{segment.entry.name}")
            return True
    report.done.append(f"codebook: lost ({damage})")
    return False


def _train_again(engine: SearchEngine, storage: Storage, report: Repair) -> None:
    """Train a recipe again whose codebook was lost together with all its codes."""
    recipe = storage.plan.spelling
    engine.reload()
    try:
        engine.store_as(recipe, keep_vectors=storage.keep_vectors, tuning=storage.tuning)
        report.done.append(f"codebook: recipe {recipe} trained again")
    except (InputError, StoreError) as error:  # too few vectors to train on, for one
        report.done.append(f"codebook: vectors are stored flat from now on ({error})")


class _Wanted(NamedTuple):
    """Rows of a segment, as the database has them: those it held, and those that stay, with their documents."""

    before: np.ndarray
    rows: np.ndarray
    docs: np.ndarray


def _repair_segment(
    engine: SearchEngine,
    segment: DiskSegment | None,
    wanted: _Wanted,
    has_codebook: bool,
    vectorless: list[int],
) -> tuple[Entry | None, str]:
    """A segment with the wanted rows, and what was done for it; "" where it is as it should be.

    Args:
        engine: For the texts and the model.
        segment: What is left of it, if anything is.
        wanted: What should be in it.
        has_codebook: Whether its codes mean something; else it becomes a flat one.
        vectorless: Gets the documents whose vectors are lost and cannot be made again.
    """
    store, rows, docs = engine.store, wanted.rows, wanted.docs
    if not len(rows):
        return None, "dropped, nothing remains in it" if segment else ""
    parent = store.folder / "segments"
    source, positions = None, np.full(len(rows), -1)
    if segment is not None:
        intact = {name for name in segment.entry.files if not file_damage(segment, name)}
        held = _held_rows(segment, intact, wanted.before)
        has_index = INDEX in intact and has_codebook and not index_damage(segment)
        similarity = store.storage.similarity
        source = None if held is None else _source(segment, intact, similarity, has_index=has_index)
        complete = source is not None and held is not None and np.array_equal(held, rows)
        if complete and has_index and {VECTORS} & segment.entry.files.keys() <= intact:
            if segment.entry.files.keys() == intact and np.array_equal(segment.docs, docs):
                return segment.entry, ""
            return copy_segment(parent, segment, docs, rows), "its list of documents rebuilt from the database"
        if source is not None and held is not None:
            nearest = np.minimum(np.searchsorted(held, rows), len(held) - 1)
            positions = np.where(held[nearest] == rows, nearest, -1)
    note = ""
    if not engine.has_model and (gone := positions < 0).any():
        vectorless += docs[gone].tolist()
        note = f"; {gone.sum()} of {len(rows)} vectors are lost, update their documents with them"
        rows, docs, positions = rows[~gone], docs[~gone], positions[~gone]
        if not len(rows):
            return None, f"dropped{note}"
    width = store.storage.plan.dim
    template = store.template() if has_codebook else store.backend.train(Plan("flat", width), np.empty((0, width)))
    vectors = _vectors(engine, rows, docs, positions, source)
    keep_vectors = store.storage.keep_vectors
    entry = write_segment(parent, store.backend, template, vectors, docs, rows, keep_vectors=keep_vectors)
    if embedded := int((positions < 0).sum()):
        return entry, f"{embedded} of {len(rows)} passages embedded again"
    origin = VECTORS if source and VECTORS in source.entry.files else "its own index"
    return entry, f"{len(rows)} vectors written again from {origin}{note}"


def _held_rows(segment: DiskSegment, intact: set[str], before: np.ndarray) -> np.ndarray | None:
    """The row of every position in a segment, or None when that cannot be determined."""
    if ROWS not in segment.entry.files or ROWS in intact:
        return all_rows([segment])
    return before if len(before) == segment.count else None


def _source(segment: DiskSegment, intact: set[str], similarity: Similarity, *, has_index: bool) -> DiskSegment | None:
    """The segment, if its vectors can still be read from it; None when they are lost."""
    if not (VECTORS in intact if VECTORS in segment.entry.files else has_index):
        return None
    return segment if not segment.keeps_vectors or has_sound_vectors(segment, similarity) else None


def _vectors(
    engine: SearchEngine, rows: np.ndarray, docs: np.ndarray, positions: np.ndarray, source: DiskSegment | None
) -> Iterator[np.ndarray]:
    """The vectors of some rows, a commit's worth at a time: from their positions in a segment, or else by the model."""
    size = window_size(engine.embedder) if (positions < 0).any() else COMMIT_EVERY
    for start, stop in _windows(docs, size):
        vectors = np.empty((stop - start, engine.storage.plan.dim), dtype=np.float32)
        kept = positions[start:stop] >= 0
        if source is not None and kept.any():
            vectors[kept] = source.vectors(positions[start:stop][kept])
        if not kept.all():
            vectors[~kept] = _embedded(engine, rows[start:stop], docs[start:stop])[~kept]
        yield vectors


def _windows(docs: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """Whole documents together, as many as `SearchEngine.add` embeds at once: equal batches give equal vectors."""
    starts = np.flatnonzero(np.diff(docs, prepend=-1))
    start = 0
    while start < len(docs):
        later = starts[starts >= start + size]
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
