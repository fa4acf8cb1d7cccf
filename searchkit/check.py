"""Check an index folder part by part: each with its checksum, and with the others."""

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
from typing import Any

import numpy as np

from searchkit.errors import DamagedError, StoreError
from searchkit.indexer import repair as mending
from searchkit.indexer.database import LAST
from searchkit.indexer.files import verify
from searchkit.indexer.lexical import LexicalIndex
from searchkit.indexer.repair import Examined
from searchkit.indexer.store import Store
from searchkit.indexer.vectors.segments import DOCS, DiskSegment, all_rows

_SAMPLE = 256
"""Vectors looked at in every segment: damage by accident shows in the checksums, a wrong model in every vector."""

PUT_BACK = "put a copy of index.db in its place: nothing else holds the documents, so it cannot be made anew"
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
            return [Finding("index.db", f"{error}, or {PUT_BACK}")]
        with store:
            try:
                before = store.database.setting("generation")
                findings = list(_findings(store))
                if all(finding.ok for finding in findings) or store.database.setting("generation") == before:
                    return findings
            except StoreError as error:
                return [Finding("index.db", str(error))]
        time.sleep(0.05)  # a writer took away what was being looked at
    raise StoreError(f"{folder} is being written while it is checked; check it when the writer is done")


def _findings(store: Store) -> Iterator[Finding]:
    lost = (
        [f"{count} commits are lost, its log is damaged or missing"] if (count := store.database.lost_commits()) else []
    )
    yield Finding("index.db", "; ".join([*lost, *store.database.integrity()]))
    if store.database.note_is_gone():
        yield Finding(LAST, "it cannot be read, and commits that were lost with the database's log would not be missed")
    yield Finding("settings", _settings_damage(store))
    yield _documents(store)
    if store.storage.codebook is not None:
        yield Finding("codebook", error_of(store.template))
    segments = mending.named_segments(store)
    for segment, (first, below) in zip(segments, row_ranges(segments), strict=True):
        yield Finding(f"segments/{segment.entry.name}", _segment_damage(store, segment, first, below))
    if not segments and (count := store.documents.stored_passages()):
        yield Finding("segments", f"{count} passages have no vectors")
    yield lexical_state(store)
    if left := store.leftovers():
        names = _listed([str(path.relative_to(store.folder)) for path in left])
        yield Finding("left over", note=f"{names} of a stopped writer; the next one removes them")


def _settings_damage(store: Store) -> str:
    if not store.database.settings_intact():
        return "they differ from their checksum"
    set_to = store.database.settings()
    wrong = [
        "the deletions differ from their checksum" if key == "tombstones" else f"{set_to[key]} {key}, but {value} found"
        for key, value in mending.counted(store).items()
        if set_to[key] != value
    ]
    return "; ".join(wrong)


def _documents(store: Store) -> Finding:
    count, unsound = 0, []
    for each in mending.examine(store):
        count += not each.deleted
        if not is_sound(each):
            unsound.append(each.document.id)
    wrong = [f"{len(unsound)} differ from their checksums: {_listed(unsound)}"] if unsound else []
    if not unsound and not mending.complete(store):
        wrong.append("some are missing")
    if stray := mending.stray_passages(store):
        wrong.append(f"{stray} passages belong to none")
    return Finding("documents", "; ".join(wrong), "" if wrong else str(count))


def is_sound(each: Examined) -> bool:
    """Whether a document is as its seal and its own checksum say."""
    document = each.document
    # As `Document.checksum` computes it, from the metadata as they are stored, which is how it saw them.
    head = json.dumps([document.id, document.title, document.text], ensure_ascii=False)[:-1]
    return each.sound and document.checksum == sha256(f"{head}, {document.metadata}]".encode()).hexdigest()


def _segment_damage(store: Store, segment: DiskSegment, first: int, below: int) -> str:
    if wrong := [fault for name in segment.entry.files if (fault := file_damage(segment, name))]:
        return "; ".join(wrong)
    rows, docs = mending.passage_rows(store, first, below)
    if not np.array_equal(all_rows([segment]), rows):
        return "its rows are not those of the documents"
    if not np.array_equal(segment.docs, docs):
        return f"{DOCS} names other documents than the database does"
    try:
        _ = segment.index
    except (StoreError, RuntimeError) as error:  # RuntimeError is FAISS's
        return _short(error, segment.folder)
    if segment.keeps_vectors and not of_unit_length(segment):
        return "vectors are not finite or not of unit length"
    return ""


def file_damage(segment: DiskSegment, name: str) -> str:
    """What is wrong with a file of a segment, "" where nothing is."""
    try:
        verify(segment.folder / name, segment.entry.files[name])
    except StoreError as error:
        return _short(error, segment.folder)
    return ""


def of_unit_length(segment: DiskSegment) -> bool:
    """Whether some vectors drawn at random are finite and of unit length, to half precision."""
    drawn = np.random.default_rng(0).permutation(segment.count)[:_SAMPLE]
    lengths = np.linalg.norm(segment.vectors(np.sort(drawn)), axis=1)
    return bool(np.all(np.abs(lengths - 1) < 0.01))  # a comparison with NaN is false


def lexical_state(store: Store) -> Finding:
    """What a check says of the words."""
    damage, behind = "", 0
    for attempt in range(_RETRIES):
        try:
            store.lexical.check()
            behind = store.documents.stored_passages() - _indexed(store)
            damage = f"it holds {-behind} passages more than the database" if behind < 0 else ""
            break
        except (ValueError, OSError) as error:  # ValueError is tantivy's, too
            damage = _short(error, store.lexical.folder)
            # A writer that is at work names its files right after it has written them.
            if attempt < _RETRIES - 1:
                time.sleep(0.05)
    note = f"{behind} passages behind, which the next search makes good" if behind > 0 and not damage else ""
    return Finding("lexical", damage, note)


def _indexed(store: Store) -> int:
    """Passages in the lexical index."""
    folder, language = store.lexical.folder, store.database.setting("language")
    if not (folder / "meta.json").is_file():  # opening would make one
        return 0
    if os.access(folder, os.W_OK, effective_ids=True):
        return len(LexicalIndex(folder, language))
    with tempfile.TemporaryDirectory(prefix="searchkit-") as place:  # tantivy needs its lock file even to read
        shutil.copytree(folder, Path(place) / "lexical", copy_function=shutil.copyfile)
        return len(LexicalIndex(Path(place) / "lexical", language))


def row_ranges(segments: Sequence[DiskSegment]) -> list[tuple[int, int]]:
    """For every segment the rows (first, below) that are in it or in none."""
    edges = [0, *(segment.first_row for segment in segments[1:]), 1 << 62]
    return list(pairwise(edges)) if segments else []


def error_of(work: Any) -> str:
    """What is wrong, by the error that some work ends in."""
    try:
        work()
    except (StoreError, RuntimeError) as error:
        return _short(error)
    return ""


def _short(error: Exception, folder: Path | None = None) -> str:
    """An error without its advice, which is for those who did not ask for a check."""
    text = f"{error.path} {error.damage}" if isinstance(error, DamagedError) else str(error)
    return text.removeprefix(f"{folder}/") if folder else text


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
