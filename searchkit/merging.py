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
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from searchkit.engine import SearchEngine
from searchkit.errors import InputError, StoreError
from searchkit.indexer.documents import NewDocument
from searchkit.indexer.files import sync_folder
from searchkit.indexer.store import Store
from searchkit.ingest import AddReport, Commits
from searchkit.lexical_sync import LexicalSync
from searchkit.records import Document

ON_CLASH = ("refuse", "newest")

_BATCH = 1024  # documents that are copied at a time
_SETTINGS = ("format", "model", "vectors_from", "chunk_tokens", "overlap", "language")
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
            raise InputError(f"the part is {text!r}; expected a number of how many, such as 3/8")
        return cls(int(match[1]), int(match[2]))

    def holds(self, document: Document) -> bool:
        """Whether a document belongs to it: by its title and text, so that it does not depend on files or order."""
        content = json.dumps([document.title, document.text]).encode()
        return int.from_bytes(blake2b(content, digest_size=8).digest()) % self.count == self.number - 1


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
        InputError: The parts differ in their model or settings, an id clashes, or vectors are stored in a lossy form.
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
    """Raise InputError unless all parts belong to one model, are split alike, and keep whole vectors."""
    first = engines[0]
    for folder, engine in zip(folders, engines, strict=True):
        if engine.storage.plan.recipe != "flat":
            raise InputError(
                f"{folder} stores its vectors as {engine.storage.plan.spelling}, which is not what was embedded; merge "
                "parts as they were indexed, and compress the whole: searchkit compress INDEX --recipe "
                f"{engine.storage.plan.spelling} --apply"
            )
        for key in _SETTINGS:
            if (mine := _bound(engine, key)) != (other := _bound(first, key)):
                raise InputError(
                    f"{folder} and {folders[0]} differ in {key}: {_shown(mine)} and {_shown(other)}; index parts with "
                    "the same model and options"
                )
        mine, other = engine.storage.similarity, first.storage.similarity
        if (mine.name, mine.dim) != (other.name, other.dim):
            raise InputError(
                f"{folder} holds vectors of {mine.dim} numbers compared by {mine.name}, {folders[0]} of {other.dim} by "
                f"{other.name}; they have no common order"
            )


def _bound(engine: SearchEngine, key: str) -> Any:
    """A setting, without where its model lies: what makes vectors is the same wherever it is installed."""
    value = engine.settings.get(key)
    if key == "model" and isinstance(value, dict):
        return {name: each for name, each in value.items() if name not in ("model", "adapter")}
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 200 else f"{text[:200]}..."


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
            raise InputError(
                f"{clashes} ids have different contents in different parts, such as {'; '.join(examples)}; keep those "
                "of the part that was changed last with --on-clash newest, or index the corpus with ids of its own"
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
        settings = {key: first.settings[key] for key in _SETTINGS if key in first.settings}
        similarity = first.storage.chosen
        store = Store.create(
            staging,
            {**settings, "merged_from": state},
            dim=first.storage.plan.dim,
            similarity=None if similarity is None else replace(similarity, offset=0.0, scale=0.0),
        )
    with store:
        lexical = LexicalSync(store, first.settings["language"])
        report = AddReport()
        done, _ = store.documents.counts()
        commits = Commits(store, lexical, store.snapshot(), report, every=8 * _BATCH, on_progress=None)
        chosen = plan.chosen(store.documents.last_id())
        while batch := list(islice(chosen, _BATCH)):
            commits.add(*_fetched(engines, batch))
            if on_progress:
                on_progress(done + report.documents + plan.repeated + plan.replaced, total)
        commits.commit()
        lexical.close()
        documents, passages = store.documents.counts()
        return MergeReport(documents, passages, report.documents, plan.repeated, plan.replaced)


def _fetched(engines: Sequence[SearchEngine], batch: Sequence[_Found]) -> tuple[list[NewDocument], np.ndarray]:
    """Documents with their vectors, in the order of the batch, each read from its part."""
    documents: list[NewDocument] = []
    rows: dict[int, list[int]] = {}
    places: dict[int, list[int]] = {}
    total = 0
    for found in batch:
        start, document = engines[found.part].store.documents.document(found.doc)
        documents.append(document)
        if document.has_vectors:
            count = len(document.spans)
            rows.setdefault(found.part, []).extend(range(start, start + count))
            places.setdefault(found.part, []).extend(range(total, total + count))
            total += count
    vectors = np.empty((total, engines[0].dim), np.float32)
    for part, wanted in rows.items():
        vectors[places[part]] = engines[part].vectors_of(np.array(wanted, dtype=np.int64))
    return documents, vectors
