"""All vectors of an index written again, in one commit: by another recipe, or without those of deleted documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.indexer.files import next_number, sync_folder
from searchkit.indexer.lexical_files import stamps
from searchkit.indexer.store import Snapshot, Store
from searchkit.indexer.vectors import segments
from searchkit.indexer.vectors.backend import VectorIndex
from searchkit.indexer.vectors.recipes import Plan, Tuning
from searchkit.indexer.vectors.segments import DiskSegment
from searchkit.indexer.vectors.similarity import Similarity
from searchkit.indexer.vectors.storage import Storage

_HELD = 1 << 30
"""Bytes in memory, about, of what is written to one segment."""

_BOOKKEEPING = 32
"""Bytes of a row in memory besides its vector: rows and documents, all and those kept."""


def rewrite(
    store: Store,
    template: VectorIndex,
    *,
    keep_vectors: bool = True,
    tuning: Tuning | None = None,
    similarity: Similarity | None = None,
    purge: bool = False,
    make_lexical: Callable[[Path], None] | None = None,
) -> None:
    """Write all vectors again, in one commit: by another recipe, or without those of deleted documents.

    Args:
        store: Open for writing.
        template: The trained, empty index of the recipe from now on.
        keep_vectors: Keep half-precision vectors beside compressed ones.
        tuning: How hard to search from now on; None leaves it.
        similarity: How vectors are compared from now on; None leaves it.
        purge: Leave out what is deleted, here and in the database.
        make_lexical: Builds the lexical index of the living passages in a folder; with `purge` only.
    """
    store.database.check_writable()
    snapshot = store.snapshot()
    # Codes of the same training are copied as they are: encoding what was decoded would change some.
    old = snapshot.storage
    same = template is store.template() and keep_vectors == old.keep_vectors
    codebook = old.codebook if same else store.write_codebook(template)
    folder, entries = store.folder / "segments", []
    for group, kept in _groups(*_left(snapshot, purge=purge), template.plan):
        if same and len(group) == 1 and kept.all():
            entry = group[0].entry
        elif same:
            entry = segments.merge_segments(folder, group, template, keep_vectors=keep_vectors, kept=kept)
        else:
            vectors = segments.vectors_of(group, kept)
            rows, docs = segments.all_rows(group)[kept], np.concatenate([part.docs for part in group])[kept]
            entry = segments.write_segment(
                folder, store.backend, template, vectors, docs, rows, keep_vectors=keep_vectors
            )
        entries.append(entry)
    lexical, named = snapshot.lexical, store.lexical.named()
    if purge and make_lexical:
        lexical = next_number(store.folder / "lexical", snapshot.lexical)
        make_lexical(store.folder / "lexical" / lexical)
        named = stamps(store.folder / "lexical" / lexical, named)
        sync_folder(store.folder / "lexical")
    compacted, removed = store.database.number("compacted"), None
    with store.database.transaction() as generation:
        store.database.db.execute("DELETE FROM segments")
        for entry in entries:
            store.list_segment(entry)
        chosen = similarity or old.chosen
        storage = Storage(template.plan, tuning or old.tuning, keep_vectors, codebook, chosen)
        store.database.put(storage=storage.to_json())
        if purge:
            removed = store.documents.purge_deleted(generation)
            store.database.put(lexical=lexical, lexical_files=named)
    store.forget_template()
    store.sweep()
    if removed is not None:
        store.documents.columns.carry_over(compacted, removed)
    store.documents.columns.follow()
    if purge:
        with store.database.access():  # execute() would free a single page
            store.database.db.executescript("PRAGMA incremental_vacuum")


def consolidate(store: Store) -> None:
    """Join segments as `rewrite` does: what compressed ones find depends on how they are cut."""
    storage, parts = store.storage, store.snapshot().segments
    count = sum(part.count for part in parts)
    if any(len(group) > 1 for group, _ in _groups(parts, np.ones(count, bool), storage.plan)):
        rewrite(store, store.template(), keep_vectors=storage.keep_vectors)


def _left(snapshot: Snapshot, *, purge: bool) -> tuple[list[DiskSegment], np.ndarray]:
    """The segments that keep something, and a mask over all their rows."""
    if not snapshot.segments:
        return [], np.empty(0, bool)
    edges = np.cumsum([part.count for part in snapshot.segments])
    kept = ~np.isin(segments.all_rows(snapshot.segments), snapshot.dead) if purge else np.ones(edges[-1], bool)
    left = [
        (part, mask) for part, mask in zip(snapshot.segments, np.split(kept, edges[:-1]), strict=True) if mask.any()
    ]
    return [part for part, _ in left], np.concatenate([mask for _, mask in left] or [np.empty(0, bool)])


def _groups(parts: Sequence[DiskSegment], kept: np.ndarray, plan: Plan) -> Iterator[tuple[list[DiskSegment], Any]]:
    """Neighbouring segments, about a gigabyte in memory together, each group with its part of a mask over all rows."""
    most = max(1, _HELD // (_BOOKKEEPING + plan.held))
    group: list[DiskSegment] = []
    start = 0
    for part in [*parts, None]:
        size = sum(member.count for member in group)
        if group and (part is None or size + part.count > most):
            yield group, kept[start : start + size]
            group, start = [], start + size
        if part is not None:
            group.append(part)
