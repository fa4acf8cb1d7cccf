"""Check an index folder part by part: each against its checksum, and against the others."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np

from searchkit.errors import DamagedError, StoreError
from searchkit.indexer.database import LAST, NAME
from searchkit.indexer.files import verify
from searchkit.indexer.lexical import LexicalIndex
from searchkit.indexer.repair import (
    Examined,
    complete,
    counted,
    examine,
    ids_with_invalid_metadata,
    named_segments,
    passage_rows,
    stray_passages,
)
from searchkit.indexer.store import Store
from searchkit.indexer.vectors.segments import DOCS, DiskSegment, all_rows
from searchkit.indexer.vectors.similarity import Similarity

LEFT_OVER = "left over"
"""The part that names files of a stopped writer, which do no harm."""

RESTORE = f"or restore {NAME} from a copy: nothing else holds the documents"

_SAMPLE = 256
"""Vectors examined in every segment: accidental damage shows in the checksums, a wrong model in every vector."""

_RETRIES = 8
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found out about one part of an index.

    Args:
        part: Its name: "index.db", "settings", "documents", "codebook", "segments/000001", "lexical", "left over".
        damage: What is wrong with it; "" where nothing is.
        note: Anything else worth knowing.
    """

    part: str
    damage: str = ""
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the part is undamaged."""
        return not self.damage


@dataclass(frozen=True, slots=True)
class LexicalState:
    """What a check found out about the lexical index.

    Args:
        damage: What is wrong with it; "" where nothing is.
        behind: Passages of the database that it does not hold yet.
    """

    damage: str = ""
    behind: int = 0


def check(folder: str | Path) -> list[Finding]:
    """Compare everything in an index folder with its checksum, and its parts with each other; changes nothing.

    Returns:
        A finding for every part, the undamaged ones too.

    Raises:
        StoreError: There is no index, or a writer changes it faster than it can be checked.
    """
    folder = Path(folder)
    for _ in range(_RETRIES):
        try:
            store = Store(folder)
        except StoreError as error:
            if not (folder / NAME).is_file():
                raise
            return [Finding(NAME, f"{error}, {RESTORE}")]
        with store:
            try:
                before = store.database.setting("generation")
                findings = list(_findings(store))
                if all(finding.ok for finding in findings) or store.database.setting("generation") == before:
                    return findings
            except StoreError as error:
                return [Finding(NAME, str(error))]
        time.sleep(0.05)  # a writer removed what was being checked
    raise StoreError(f"{folder} is being written while it is checked; check it again when the writer is done")


def _findings(store: Store) -> Iterator[Finding]:
    database = store.database
    lost = database.lost_commits()
    faults = [f"{lost} commits are lost, its log is damaged or missing"] if lost else []
    yield Finding(NAME, "; ".join([*faults, *database.integrity()]))
    if database.note_is_gone():
        yield Finding(LAST, "it cannot be read, so that commits lost with the database's log would go unnoticed")
    yield Finding("settings", _settings_damage(store))
    yield _documents(store)
    if store.storage.codebook is not None:
        yield Finding("codebook", codebook_damage(store))
    segments = named_segments(store)
    for segment, (first, below) in zip(segments, row_ranges(segments), strict=True):
        yield Finding(f"segments/{segment.entry.name}", _segment_damage(store, segment, first, below))
    if not segments and (count := len(passage_rows(store, 0, 1 << 62)[0])):
        yield Finding("segments", f"{count} passages have no vectors")
    lexical = lexical_state(store)
    note = f"{lexical.behind} passages behind, which the next search adds" if lexical.behind else ""
    yield Finding("lexical", lexical.damage, note)
    if left := store.leftovers():
        names = _listed([str(path.relative_to(store.folder)) for path in left])
        yield Finding(LEFT_OVER, note=f"{names} of a stopped writer; the next one removes them")


def _settings_damage(store: Store) -> str:
    if not store.database.settings_intact():
        return "they differ from their checksum"
    settings = store.database.settings()
    faults = []
    for key, value in counted(store).items():
        if settings[key] != value:
            deletions = "the deletions differ from their checksum"
            faults.append(deletions if key == "tombstones" else f"{settings[key]} {key}, but {value} found")
    return "; ".join(faults)


def _documents(store: Store) -> Finding:
    count, damaged = 0, []
    for examined in examine(store):
        count += not examined.deleted
        if not is_intact(examined):
            damaged.append(examined.document.id)
    faults = [f"{len(damaged)} differ from their checksums: {_listed(damaged)}"] if damaged else []
    if not damaged and not complete(store):
        faults.append("some are missing")
    if stray := stray_passages(store):
        faults.append(f"{stray} passages belong to none")
    if not damaged and (invalid := ids_with_invalid_metadata(store)):
        faults.append(f"{len(invalid)} have NaN or Infinity in their metadata, which is not JSON: {_listed(invalid)}")
    return Finding("documents", "; ".join(faults), "" if faults else str(count))


def is_intact(examined: Examined) -> bool:
    """Whether a document matches both its checksums: of its row with its passages, and of its content."""
    document = examined.document
    # As `Document.checksum` computes it, but from the metadata as they are stored.
    head = json.dumps([document.id, document.title, document.text], ensure_ascii=False)[:-1]
    content = document.checksum.partition(":")[0]  # that of a vector may follow
    return examined.sound and content == sha256(f"{head}, {document.metadata}]".encode()).hexdigest()


def codebook_damage(store: Store) -> str:
    """What is wrong with the trained, empty index that new vectors are added to; "" where nothing is."""
    try:
        store.template()
    except (StoreError, RuntimeError) as error:  # RuntimeError is FAISS's
        return _without_advice(error, store.folder / "codebooks")
    return ""


def _segment_damage(store: Store, segment: DiskSegment, first: int, below: int) -> str:
    if faults := [fault for name in segment.entry.files if (fault := file_damage(segment, name))]:
        return "; ".join(faults)
    rows, docs = passage_rows(store, first, below)
    if not np.array_equal(all_rows([segment]), rows):
        return "its rows are not those of the documents"
    if not np.array_equal(segment.docs, docs):
        return f"{DOCS} names other documents than the database does"
    if damage := index_damage(segment):
        return damage
    similarity = store.storage.similarity
    if segment.keeps_vectors and not has_sound_vectors(segment, similarity):
        return "vectors are not finite" + (" or not of unit length" if similarity.name == "cosine" else "")
    return ""


def file_damage(segment: DiskSegment, name: str) -> str:
    """What is wrong with a file of a segment; "" where nothing is."""
    try:
        verify(segment.folder / name, segment.entry.files[name])
    except DamagedError as error:
        return _without_advice(error, segment.folder)
    return ""


def index_damage(segment: DiskSegment) -> str:
    """Why the index of a segment cannot be opened; "" where it can."""
    try:
        _ = segment.index
    except (StoreError, RuntimeError) as error:  # RuntimeError is FAISS's
        return _without_advice(error, segment.folder)
    return ""


def has_sound_vectors(segment: DiskSegment, similarity: Similarity) -> bool:
    """Whether vectors drawn at random are finite and, for the cosine, of unit length to half precision."""
    drawn = np.random.default_rng(0).permutation(segment.count)[:_SAMPLE]
    vectors = segment.vectors(np.sort(drawn))
    if similarity.name != "cosine":
        return bool(np.isfinite(vectors).all())
    return bool(np.all(np.abs(np.linalg.norm(vectors, axis=1) - 1) < 0.01))  # a comparison with NaN is false


def lexical_state(store: Store) -> LexicalState:
    """Check the lexical index; waits for a writer that is about to name its files."""
    damage = ""
    for attempt in range(_RETRIES):
        try:
            store.lexical.check()
            behind = store.documents.stored_passages() - _indexed(store)
            if behind < 0:
                return LexicalState(f"it holds {-behind} passages more than the database")
            return LexicalState(behind=behind)
        except (ValueError, OSError) as error:  # ValueError is tantivy's, too
            damage = _without_advice(error, store.lexical.folder)
            if attempt < _RETRIES - 1:
                time.sleep(0.05)
    return LexicalState(damage)


def _indexed(store: Store) -> int:
    """Passages in the lexical index."""
    folder, language = store.lexical.folder, store.database.setting("language")
    if not (folder / "meta.json").is_file():  # opening would make one
        return 0
    if os.access(folder, os.W_OK, effective_ids=True):
        return len(LexicalIndex(folder, language))
    with tempfile.TemporaryDirectory(prefix="searchkit-") as temporary:  # tantivy needs its lock file even to read
        shutil.copytree(folder, Path(temporary) / "lexical", copy_function=shutil.copyfile)
        return len(LexicalIndex(Path(temporary) / "lexical", language))


def row_ranges(segments: Sequence[DiskSegment]) -> list[tuple[int, int]]:
    """For every segment the rows (first, below) that are in it or in none."""
    edges = [0, *(segment.first_row for segment in segments[1:]), 1 << 62]
    return list(pairwise(edges)) if segments else []


def _without_advice(error: Exception, folder: Path | None = None) -> str:
    """What an error says is wrong, without the advice to run a check, and with paths relative to a folder."""
    text = f"{error.path} {error.damage}" if isinstance(error, DamagedError) else str(error)
    return text.removeprefix(f"{folder}/") if folder else text


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
