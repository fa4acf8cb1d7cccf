"""An index in parts: a fixed share of a corpus each, built anywhere, and merged into one index.

A document belongs to a part by what it says, whatever the order of the corpus and the files it comes in. Merging copies
documents and vectors in the order of their ids, embeds nothing, and makes the same index whatever the order of its
parts.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from searchkit.codebook import SETTINGS, check_settings, check_similarity, is_one, take_over
from searchkit.engine import SearchEngine
from searchkit.errors import InputError, StoreError
from searchkit.indexer.documents import NewDocument
from searchkit.indexer.files import sync_folder
from searchkit.indexer.rewriting import consolidate
from searchkit.indexer.store import Store
from searchkit.indexer.vectors.segments import Gathered
from searchkit.indexer.vectors.segments import owners as owning
from searchkit.lexical_sync import LexicalSync
from searchkit.records import Document

ON_CLASH = ("refuse", "newest")

_COMMIT = 8192  # passages
_SHOWN = 5  # ids in a message


@dataclass(frozen=True, slots=True)
class Part:
    """One of several shares of a corpus.

    Args:
        number: Which, from 1.
        count: Of how many.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "3/8"; InputError where it is something else."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"the part is {text!r}; expected K/N with K from 1 to N, such as 3/8")
        return cls(int(match[1]), int(match[2]))

    @property
    def share(self) -> float:
        """Its share of the corpus."""
        return 1 / self.count

    def holds(self, document: Document) -> bool:
        """Whether a document belongs to it: by its title and text, so that it does not depend on files or order."""
        return _content_number(document) % self.count == self.number - 1


@dataclass(frozen=True, slots=True)
class Sample:
    """A random but fixed sample of a corpus, which no part has more of than others.

    Args:
        share: Of the documents, from 0 to 1.
    """

    share: float

    def holds(self, document: Document) -> bool:
        """Whether a document belongs to it: by what it says, like parts."""
        return _content_number(document) >> 32 < self.share * (1 << 32)


def _content_number(document: Document) -> int:
    """A number of 64 bits that looks random, the same for equal titles and texts."""
    content = json.dumps([document.title, document.text]).encode()
    return int.from_bytes(blake2b(content, digest_size=8).digest())


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did.

    Args:
        documents: Documents in the merged index.
        passages: Their passages.
        copied: Documents that this call copied; the others were there when it resumed.
        repeated: Documents left out because another part held the same one.
        replaced: Documents left out because another part held a newer one of the same id.
    """

    documents: int
    passages: int
    copied: int
    repeated: int
    replaced: int


class _Found(NamedTuple):
    """A document of a part."""

    id: str
    part: int
    doc: int
    checksum: str


class _Copied(NamedTuple):
    """A document with the part that it comes from, and its first row there."""

    part: int
    row: int
    document: NewDocument

    @property
    def vectors(self) -> int:
        """How many vectors it has."""
        return len(self.document.spans) if self.document.has_vectors else 0


def merge(
    parts: Sequence[str | Path],
    target: str | Path,
    *,
    on_clash: str = "refuse",
    on_progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Merge indexes of one model into a new one; resumes where an earlier call with the same parts was stopped.

    Args:
        parts: The index folders; they stay as they are.
        target: The folder to make. Until the merge is done, it is called TARGET.merging.
        on_clash: What happens to documents of one id with different content: "refuse", or "newest" to keep the one of
            the part that was changed last.
        on_progress: Called now and then with the documents done so far, and those of all parts.

    Raises:
        InputError: The parts differ in their model, settings or codebook, or an id clashes.
        StoreError: The target exists, or a part is no index, or damaged.
    """
    if on_clash not in ON_CLASH:
        raise InputError(f"on_clash is {on_clash!r}; expected one of {', '.join(ON_CLASH)}")
    folders = _distinct(parts)
    target = Path(target)
    staging = target.with_name(f"{target.name}.merging")
    if target.exists():
        raise StoreError(f"{target} exists; name another folder, or delete it")
    with ExitStack() as opened:
        engines = [opened.enter_context(SearchEngine.open(folder)) for folder in folders]
        _check_alike(folders, engines)
        ages = [(folder / "index.db").stat().st_mtime_ns for folder in folders]
        plan = _Plan(engines, ages, newest=on_clash == "newest")
        if on_clash == "refuse":
            plan.check_clashes(folders)
        total = sum(len(engine) for engine in engines)
        report = _copy(engines, plan, staging, total, on_progress)
    staging.rename(target)
    sync_folder(target.parent)
    return report


def _distinct(parts: Iterable[str | Path]) -> list[Path]:
    folders = [Path(part) for part in parts]
    if not folders:
        raise InputError("no part came; name the index folders to merge")
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            raise InputError(f"{folder} came twice; name every part once")
        seen.add(folder.resolve())
    return sorted(folders, key=str)


def _check_alike(folders: Sequence[Path], engines: Sequence[SearchEngine]) -> None:
    """Raise InputError unless all parts belong to one model, are split alike, and store vectors by one codebook."""
    first = engines[0]
    for folder, engine in zip(folders, engines, strict=True):
        check_settings(folder, engine.settings, folders[0], first.settings)
        check_similarity(folder, engine.storage, folders[0], first.storage)
        if not is_one(engine.storage, first.storage):
            mine, other = engine.storage.plan.spelling, first.storage.plan.spelling
            how = f"as {mine} and as {other}" if mine != other else f"as {mine}, but by codebooks of their own"
            kept = folder if other == "flat" else folders[0]
            raise InputError(
                f"{folder} and {folders[0]} store their vectors {how}, so that their codes do not mean the same; bring "
                f"every part to one codebook: run its command again, with --recipe-from {kept}"
            )


class _Plan:
    """Which documents of which part become the merged index, in order."""

    def __init__(self, engines: Sequence[SearchEngine], ages: Sequence[int], *, newest: bool) -> None:
        self._engines, self._ages, self._newest = engines, ages, newest
        self.repeated = self.replaced = 0

    def check_clashes(self, folders: Sequence[Path]) -> None:
        """Raise InputError where an id has different contents, before anything is copied."""
        clashes = 0
        examples: list[str] = []
        for id, found in self._groups(""):
            if len({each.checksum for each in found}) > 1:
                clashes += 1
                if len(examples) < _SHOWN:
                    examples.append(f"{id!r} ({', '.join(str(folders[each.part]) for each in found)})")
        if clashes:
            ids = "1 id has" if clashes == 1 else f"{clashes} ids have"
            raise InputError(
                f"{ids} different contents in different parts, such as {'; '.join(examples)}; keep those of the part "
                "that was changed last with --on-clash newest, or index the corpus with ids of its own"
            )

    def chosen(self, after: str) -> Iterator[_Found]:
        """One document for every id above another, in the order of ids."""
        for _, found in self._groups(after):
            best = max(found, key=lambda each: (self._ages[each.part], each.part)) if self._newest else found[0]
            for each in found:
                if each is not best:
                    self.repeated += each.checksum == best.checksum
                    self.replaced += each.checksum != best.checksum
            yield best

    def _groups(self, after: str) -> Iterator[tuple[str, list[_Found]]]:
        ordered = heapq.merge(*(self._of(part, engine, after) for part, engine in enumerate(self._engines)))
        for id, found in groupby(ordered, key=lambda each: each.id):
            yield id, list(found)

    @staticmethod
    def _of(part: int, engine: SearchEngine, after: str) -> Iterator[_Found]:
        for id, doc, checksum in engine.store.documents.by_id(after):
            yield _Found(id, part, doc, checksum)


def _copy(
    engines: Sequence[SearchEngine],
    plan: _Plan,
    staging: Path,
    total: int,
    on_progress: Callable[[int, int], None] | None,
) -> MergeReport:
    first = engines[0]
    state = [engine.store.documents.checksum() for engine in engines]
    if staging.exists():
        store = Store(staging, writable=True)
        if store.database.settings().get("merged_from") != state:
            store.close()
            raise StoreError(f"{staging} is the beginning of a merge of other parts; delete it, or merge those parts")
    else:
        settings = {key: first.settings[key] for key in SETTINGS if key in first.settings}
        similarity = first.storage.chosen
        store = Store.create(
            staging,
            {**settings, "merged_from": state},
            dim=first.storage.plan.dim,
            similarity=None if similarity is None else replace(similarity, offset=0.0, scale=0.0),
        )
    with store:
        store.database.erase_what_is_replaced()
        take_over(store, first.store)
        store.merge_small_segments()  # where an earlier call was stopped before it: segments are cut as in one call
        lexical = LexicalSync(store, first.settings["language"])
        snapshot = store.snapshot()
        sources = _Sources(engines)
        done = snapshot.documents
        for batch in _batches(engines, plan.chosen(store.documents.last_id())):
            sources.commit(store, batch)
            lexical.catch_up(lexical.index_of(snapshot), store)
            store.merge_small_segments()
            done += len(batch)
            if on_progress:
                on_progress(done + plan.repeated + plan.replaced, total)
        # Also where there was nothing to copy, or an earlier call was stopped after its last commit.
        lexical.catch_up(lexical.index_of(store.snapshot()), store)
        lexical.close()
        if store.storage.plan.recipe != "flat":
            consolidate(store)
        store.lexical.name_by_content()
        store.sweep()
        documents, passages = store.documents.counts()
        return MergeReport(documents, passages, documents - snapshot.documents, plan.repeated, plan.replaced)


def _batches(engines: Sequence[SearchEngine], chosen: Iterable[_Found]) -> Iterator[list[_Copied]]:
    """What one commit takes, never cut by time: a merge makes the same files however fast it is."""
    batch: list[_Copied] = []
    passages = 0
    for found in chosen:
        row, document = engines[found.part].store.documents.document(found.doc)
        batch.append(_Copied(found.part, row, document))
        passages += len(document.spans)
        if passages >= _COMMIT:
            yield batch
            batch, passages = [], 0
    if batch:
        yield batch


class _Sources:
    """The vectors of all parts, as they are stored.

    Args:
        engines: The parts.
    """

    def __init__(self, engines: Sequence[SearchEngine]) -> None:
        self._engines = engines
        self._exact = engines[0].storage.plan.recipe == "flat"
        self._segments = [engine.snapshot.segments for engine in engines]
        self._all = [part for parts in self._segments for part in parts]
        self._firsts = np.cumsum([0, *map(len, self._segments)])

    def commit(self, store: Store, batch: Sequence[_Copied]) -> None:
        """Commit documents with their vectors, in the order of the batch."""
        documents = [copied.document for copied in batch]
        owners = np.concatenate([[each.part] * each.vectors for each in batch]).astype(np.int64)
        rows = np.concatenate([np.arange(each.row, each.row + each.vectors) for each in batch]).astype(np.int64)
        if not self._exact:
            store.commit(documents, self._gathered(owners, rows))
            return
        # Rows as wide as their users made them: for distances, each part was fitted to its own first documents.
        vectors = np.empty((len(rows), self._engines[0].dim), np.float32)
        for part in np.unique(owners).tolist():
            vectors[owners == part] = self._engines[part].vectors_of(rows[owners == part])
        before = store.storage.similarity
        fitted = before.fitted(vectors)
        store.commit(documents, fitted.rows(vectors), similarity=None if fitted is before else fitted)

    def _gathered(self, owners: np.ndarray, rows: np.ndarray) -> Gathered:
        segments = np.empty(len(rows), np.int64)
        positions = np.empty(len(rows), np.int64)
        for part in np.unique(owners).tolist():
            mine = np.flatnonzero(owners == part)
            segments[mine] = self._firsts[part] + owning(self._segments[part], rows[mine])
        for segment in np.unique(segments).tolist():
            mine = np.flatnonzero(segments == segment)
            positions[mine] = self._all[segment].positions(rows[mine])
        return Gathered(self._all, segments, positions)
