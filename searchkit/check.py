"""Check an index folder part by part, and make what is damaged anew from what is sound."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from searchkit.embedder import Embedder
from searchkit.engine import COMMIT_EVERY, SearchEngine
from searchkit.indexer import dense
from searchkit.indexer.files import StoreError, verify
from searchkit.indexer.lexical import LexicalIndex
from searchkit.indexer.recipes import Plan
from searchkit.indexer.segments import (
    DOCS,
    INDEX,
    ROWS,
    VECTORS,
    DiskSegment,
    Entry,
    all_rows,
    copy_segment,
    write_segment,
)
from searchkit.indexer.store import NewDocument, Store
from searchkit.ingest import to_passages
from searchkit.records import Document, join_title

_SAMPLE = 256
"""Vectors looked at in every segment: damage by accident shows in the checksums, a wrong model in every vector."""

_PUT_BACK = "put a copy of index.db in its place: nothing else holds the documents, so it cannot be made anew"
_RETRIES = 8
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check says of one part of an index.

    Args:
        part: Its name: "index.db", "settings", "documents", "codebook", "segments/000001", "lexical", "left over".
        damage: What is wrong with it; "" where nothing is.
        note: What else there is to know.
    """

    part: str
    damage: str = ""
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the part is sound."""
        return not self.damage


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


# Checking


def check(folder: str | Path) -> list[Finding]:
    """Compare everything in an index folder with its checksums, and its parts with each other; changes nothing.

    Returns:
        A finding for every part, the sound ones too.

    Raises:
        StoreError: There is no index, or a writer changes it faster than it can be checked.
    """
    folder = Path(folder)
    for _ in range(_RETRIES):
        try:
            store = Store(folder)
        except StoreError as error:
            if not (folder / "index.db").is_file():
                raise
            return [Finding("index.db", f"{error}, or {_PUT_BACK}")]
        with store:
            try:
                before = store.setting("generation")
                findings = list(_findings(store))
                if all(finding.ok for finding in findings) or store.setting("generation") == before:
                    return findings
            except StoreError as error:
                return [Finding("index.db", str(error))]
        time.sleep(0.05)  # a writer took away what was being looked at
    raise StoreError(f"{folder} is being written while it is checked; check it when the writer is done")


def _findings(store: Store) -> Iterator[Finding]:
    lost = [f"{count} commits are lost, its log is damaged or missing"] if (count := store.lost_commits()) else []
    yield Finding("index.db", "; ".join([*lost, *store.integrity()]))
    yield Finding("settings", _settings_damage(store))
    yield _documents(store)
    if store.setting("storage")["codebook"] is not None:
        yield Finding("codebook", _said(store.storage))
    segments = store.named_segments()
    for segment, (first, below) in zip(segments, _ranges(segments), strict=True):
        yield Finding(f"segments/{segment.entry.name}", _segment_damage(store, segment, first, below))
    if not segments and (count := store.stored_passages()):
        yield Finding("segments", f"{count} passages have no vectors")
    yield _lexical(store)
    if left := store.leftovers():
        names = _listed([str(path.relative_to(store.folder)) for path in left])
        yield Finding("left over", note=f"{names} of a stopped writer; the next one removes them")


def _settings_damage(store: Store) -> str:
    if not store.sealed():
        return "they differ from their checksum"
    set_to = store.settings()
    wrong = [
        "the deletions differ from their checksum" if key == "tombstones" else f"{set_to[key]} {key}, but {value} found"
        for key, value in store.counted().items()
        if set_to[key] != value
    ]
    return "; ".join(wrong)


def _documents(store: Store) -> Finding:
    count, unsound = 0, []
    for each in store.examine():
        count += not each.deleted
        if not (each.sound and each.document.checksum == _checksum(each.document)):
            unsound.append(each.document.id)
    wrong = [f"{len(unsound)} differ from their checksums: {_listed(unsound)}"] if unsound else []
    if not unsound and not store.complete():
        wrong.append("some are missing")
    if stray := store.stray_passages():
        wrong.append(f"{stray} passages belong to none")
    return Finding("documents", "; ".join(wrong), "" if wrong else str(count))


def _checksum(document: NewDocument) -> str:
    """As `Document.checksum` computes it, from the metadata as they are stored, which is how it saw them."""
    head = json.dumps([document.id, document.title, document.text], ensure_ascii=False)[:-1]
    return sha256(f"{head}, {document.metadata}]".encode()).hexdigest()


def _segment_damage(store: Store, segment: DiskSegment, first: int, below: int) -> str:
    if wrong := [fault for name in segment.entry.files if (fault := _file_damage(segment, name))]:
        return "; ".join(wrong)
    rows, docs = store.passage_rows(first, below)
    if not np.array_equal(all_rows([segment]), rows):
        return "its rows are not those of the documents"
    if not np.array_equal(segment.docs, docs):
        return f"{DOCS} names other documents than the database does"
    try:
        _ = segment.index
    except (StoreError, RuntimeError) as error:  # RuntimeError is FAISS's
        return _short(error, segment.folder)
    return "" if not segment.keeps_vectors or _unit(segment) else "vectors are not finite or not of unit length"


def _file_damage(segment: DiskSegment, name: str) -> str:
    try:
        verify(segment.folder / name, segment.entry.files[name])
    except StoreError as error:
        return _short(error, segment.folder)
    return ""


def _unit(segment: DiskSegment) -> bool:
    """Whether some vectors drawn at random are finite and of unit length, to half precision."""
    drawn = np.random.default_rng(0).permutation(segment.count)[:_SAMPLE]
    lengths = np.linalg.norm(segment.vectors(np.sort(drawn)), axis=1)
    return bool(np.all(np.abs(lengths - 1) < 0.01))  # a comparison with NaN is false


def _lexical(store: Store) -> Finding:
    damage, behind = "", 0
    for attempt in range(_RETRIES):
        try:
            store.check_lexical()
            behind = store.stored_passages() - _indexed(store)
            damage = f"it holds {-behind} passages more than the database" if behind < 0 else ""
            break
        except (ValueError, OSError) as error:  # ValueError is tantivy's, too
            damage = _short(error, store.lexical_folder())
            # A writer that is at work names its files right after it has written them.
            if attempt < _RETRIES - 1:
                time.sleep(0.05)
    note = f"{behind} passages behind, which the next search makes good" if behind > 0 and not damage else ""
    return Finding("lexical", damage, note)


def _indexed(store: Store) -> int:
    """Passages in the lexical index."""
    folder, language = store.lexical_folder(), store.setting("language")
    if not (folder / "meta.json").is_file():  # opening would make one
        return 0
    if os.access(folder, os.W_OK, effective_ids=True):
        return len(LexicalIndex(folder, language))
    with tempfile.TemporaryDirectory(prefix="searchkit-") as place:  # tantivy needs its lock file even to read
        shutil.copytree(folder, Path(place) / "lexical", copy_function=shutil.copyfile)
        return len(LexicalIndex(Path(place) / "lexical", language))


def _ranges(segments: Sequence[DiskSegment]) -> list[tuple[int, int]]:
    """For every segment the rows (first, below) that are in it or in none."""
    edges = [0, *(segment.first_row for segment in segments[1:]), 1 << 62]
    return list(pairwise(edges)) if segments else []


def _said(work: Any) -> str:
    """What is wrong, by the error that some work ends in."""
    try:
        work()
    except (StoreError, RuntimeError) as error:
        return _short(error)
    return ""


def _short(error: Exception, folder: Path | None = None) -> str:
    """An error without its advice, which is for those who did not ask for a check."""
    text = str(error).partition("; mend the index")[0]
    return text.removeprefix(f"{folder}/") if folder else text


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


# Repairing


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
            storage = engine.store.setting("storage")
            _mend_rest(engine, unsound, report)
            if engine.store.setting("storage")["plan"] != storage["plan"]:
                _store_as_before(engine, storage, report)
    except StoreError as error:
        if "cannot be read" not in str(error):
            raise
        raise StoreError(f"{error}, or {_PUT_BACK}") from error
    report.findings = check(folder)
    return report


def _store_as_before(engine: SearchEngine, storage: dict[str, Any], report: Repair) -> None:
    """Learn a recipe again whose codebook was lost with all its codes."""
    before = Plan(**storage["plan"])
    engine.reload()
    try:
        engine.store_as(before.spelling, keep_vectors=storage["keep_vectors"], tuning=dense.Tuning(**storage["tuning"]))
        report.done.append(f"codebook: recipe {before.spelling} learnt anew")
    except ValueError as error:
        report.done.append(f"codebook: vectors are stored flat from now on ({error})")


def _left(folder: Path) -> list[str]:
    with Store(folder) as store:
        left = store.leftovers() if store.sealed() else []
    return [f"{path.relative_to(folder)}: removed, no commit names it" for path in left]


def _mend_database(store: Store, report: Repair) -> list[int]:
    """Put right what the database says of itself; returns the positions of documents that are lost."""
    lost = store.lost_commits()
    if store.integrity():
        store.reindex()
        if faults := store.integrity():
            raise StoreError(f"{store.folder / 'index.db'} cannot be read ({faults[0]}); build the index again")
        report.done.append("index.db: its search trees made anew from its tables")
    if not store.sealed():
        if (key := store.mend_settings()) is None:
            raise StoreError(_untold(store, "settings"))
        report.done.append(f"settings: {key} counted again")
    unsound = [
        each.doc for each in store.examine() if not (each.sound and each.document.checksum == _checksum(each.document))
    ]
    counted, settings = store.counted(), store.settings()
    if counted["tombstones"] != settings["tombstones"]:
        if (id := store.mend_deletions()) is not None:
            report.done.append(f"settings: the deletion mark of document {id!r} put right")
        elif not unsound or counted["documents"] != settings["documents"]:
            raise StoreError(_untold(store, "deletions"))
        else:  # as many as there should be: what differs are the places of lost documents
            store.recount()
    elif missing := settings["documents"] - counted["documents"]:
        report.done.append(f"documents: {missing} are not in the database any more; add them again")
        store.recount()
    elif not unsound and not store.complete():
        report.done.append("settings: the checksum of all documents made anew")
    if lost:
        report.done.append(f"index.db: the last {lost} commits are lost; do again what was added or deleted by them")
        store.forget_lost_commits()
    return unsound


def _untold(store: Store, what: str) -> str:
    return (
        f"{store.folder / 'index.db'} is damaged: its {what} differ from their checksum, and which of them is wrong "
        "cannot be told; put a copy of index.db in its place, or build the index again"
    )


def _salvage(store: Store, unsound: Sequence[int]) -> tuple[list[str], Path | None]:
    """Write down what is left of lost documents; their ids as they are now, and the file."""
    wanted = set(unsound)
    lost = [each.document for each in store.examine() if each.doc in wanted and not each.deleted]
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
    stray = store.stray_passages()
    lexical = _lexical(store)
    words = bool(lexical.damage or unsound or stray)
    segments = store.named_segments()
    recovered = _codebook(store, segments, report)
    entries: list[Entry] = []
    present: list[DiskSegment | None] = [*segments]
    for segment, (first, below) in zip(present or [None], _ranges(segments) or [(0, 1 << 62)], strict=True):
        rows, docs = store.passage_rows(first, below)
        kept = ~np.isin(docs, unsound)
        wanted = _Wanted(rows, rows[kept], docs[kept])
        entry, done = _mended_segment(engine, segment, wanted, recovered)
        if done:
            name = segment.entry.name if segment else "000001"
            report.done.append(f"segments/{name}: {done}")
        entries += [entry] if entry else []
    report.lost, report.file = _salvage(store, unsound)
    if words or entries != [segment.entry for segment in segments] or not recovered or report.done:
        store.mend(entries, lost=unsound, new_lexical=words, plan=None if recovered else Plan("flat", _dim(store)))
    if unsound:
        deleted = len(unsound) - len(report.lost)
        report.done.append(
            f"documents: {len(unsound)} taken out" + (f", {deleted} of them deleted before" if deleted else "")
        )
    if words or lexical.note:
        index = LexicalIndex(store.lexical_folder(), store.setting("language"))
        index.add((row, join_title(title, text)) for row, title, text in store.texts(len(index)))
        store.name_lexical()
        report.done.append(f"lexical: {'made anew' if words else 'brought up'} from the documents")


def _codebook(store: Store, segments: Sequence[DiskSegment], report: Repair) -> bool:
    """Take a lost codebook out of a sound segment; False when there is none, and codes mean nothing any more."""
    if not (fault := _said(store.storage)):
        return True
    plan = Plan(**store.setting("storage")["plan"])
    for segment in segments:
        if not _said(lambda segment=segment: segment.index):
            # Every segment's index began as a copy of the empty, trained one.
            index = dense.read(segment.folder / INDEX, plan, mapped=False)
            index.reset()
            store.mend_codebook(plan, index)
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
        sound = {name for name in segment.entry.files if not _file_damage(segment, name)}
        held = _held(segment, sound, wanted.before)
        index = INDEX in sound and codebook and not _said(lambda: segment.index)
        source = None if held is None else _source(segment, sound, index=index)
        complete = source is not None and held is not None and np.array_equal(held, rows)
        if complete and index and {VECTORS} & segment.entry.files.keys() <= sound:
            if segment.entry.files.keys() == sound and np.array_equal(segment.docs, docs):
                return segment.entry, ""
            return copy_segment(places, segment, docs, rows), "its list of documents made anew from the database"
        if source is not None and held is not None:
            found = np.minimum(np.searchsorted(held, rows), len(held) - 1)
            positions = np.where(held[found] == rows, found, -1)
    plan, template = store.storage() if codebook else (Plan("flat", _dim(store)), None)
    vectors = _vectors(engine, rows, docs, positions, source)
    keep = store.setting("storage")["keep_vectors"]
    entry = write_segment(places, plan, template, vectors, docs, rows, keep_vectors=keep)
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
    return segment if not segment.keeps_vectors or _unit(segment) else None


def _vectors(
    engine: SearchEngine, rows: np.ndarray, docs: np.ndarray, positions: np.ndarray, source: DiskSegment | None
) -> Iterator[np.ndarray]:
    """The vectors of some rows, a commit's worth at a time: from their positions in a segment, or else by the model."""
    for start, stop in _windows(docs):
        some = np.empty((stop - start, _dim(engine.store)), dtype=np.float32)
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
        first, stored = engine.store.document(doc)
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


def _dim(store: Store) -> int:
    return int(store.setting("storage")["plan"]["dim"])
