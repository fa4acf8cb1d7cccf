"""The index folder: documents, passages and segments behind one SQLite commit point.

A commit writes and syncs a segment's files under a temporary name, renames the folder, syncs, and only then names it in
the transaction that also holds its documents. A reader sees the last commit whole or the one before it; files that no
commit names are swept by the next writer.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from searchkit.indexer.database import NAME, make_database
from searchkit.indexer.documents import Documents, NewDocument, tombstones
from searchkit.indexer.errors import InputError, StoreError
from searchkit.indexer.files import Stamp, folder_size, next_number, stamp, verify
from searchkit.indexer.filters import Condition
from searchkit.indexer.vectors import faiss_index as dense
from searchkit.indexer.vectors import segments
from searchkit.indexer.vectors.recipes import Plan, Tuning
from searchkit.indexer.vectors.segments import DiskSegment, Entry
from searchkit.indexer.vectors.storage import Codebook, Storage

WORDS = "meta.json"
"""The one file of tantivy's that changes: the list of the others."""

KEPT = ".meta.json.named"


class Snapshot(NamedTuple):
    """What one commit holds.

    Args:
        generation: Number of the commit.
        documents: Living documents.
        passages: Living passages.
        next_row: Above all rows, of the dead too.
        next_doc: Above all document positions.
        segments: The vectors.
        dead: (n,) int64, the rows of deleted documents, ascending.
        dead_docs: (n,) int64, the positions of deleted documents, ascending.
        storage: How vectors are stored.
        lexical: Name of the lexical index's folder.
    """

    generation: int
    documents: int
    passages: int
    next_row: int
    next_doc: int
    segments: list[DiskSegment]
    dead: np.ndarray
    dead_docs: np.ndarray
    storage: Storage
    lexical: str


class Store(Documents):
    """One index folder, open for reading or for writing.

    Args:
        folder: The index folder.
        writable: Take the writer's lock, and sweep what a killed writer left.

    Raises:
        StoreError: See there; the message says what to do.
    """

    def __init__(self, folder: Path, *, writable: bool = False) -> None:
        super().__init__(folder, writable=writable)
        self.devices: Sequence[int] = ()
        """GPUs that new vectors are encoded on (see `searchkit.indexer.vectors.faiss_gpu`)."""
        self._template: Any = None
        self._opened: WeakValueDictionary[str, DiskSegment] = WeakValueDictionary()
        with ExitStack() as undo:
            undo.callback(self._release)
            undo.callback(self.db.close)
            # Damaged settings, and those of an earlier commit, may have forgotten what is needed.
            if writable and self.sealed() and not self.lost_commits():
                self.sweep()
                self._take_back_words()
            undo.pop_all()

    @classmethod
    def create(cls, folder: Path, settings: dict[str, Any], *, dim: int) -> Store:
        """Make an empty index folder with these settings, for vectors of one width, and open it for writing."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreError(f"{folder} exists and is not an index; name another place with --index")
        # Made under another name first: a folder with an index.db is always a whole index.
        staging = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(staging, ignore_errors=True)
        for name in ("segments", "codebooks", "lexical"):
            (staging / name).mkdir(parents=True)
        state = {
            "generation": 0, "documents": 0, "passages": 0, "next_row": 0, "next_doc": 0,
            "tombstones": 0, "contents": 0, "compacted": 0, "lexical": "000001", "lexical_files": {},
            "storage": Storage(Plan("flat", dim)).to_json(),
        }  # fmt: skip
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, staging, ignore_errors=True)
            make_database(staging, {**state, **settings})
            if folder.is_dir():
                folder.rmdir()
            staging.rename(folder)
            undo.pop_all()
        return cls(folder, writable=True)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading

    def snapshot(self) -> Snapshot:
        """The last commit, with its segments' files opened only when they are needed."""
        last = self.noted_commit()  # before the database: a writer may be at work
        with self.sound(), self.reading():
            self.check_settings()
            state = self.settings()
            storage = Storage.from_json(state["storage"])
            found = [self._segment(entry, storage.plan) for entry in self.entries()]
            ranges = self.db.execute("SELECT doc, first_row, passages FROM documents WHERE deleted > 0").fetchall()
            if tombstones(0, ranges) != state["tombstones"]:
                raise StoreError(
                    f"{self.folder / NAME} is damaged: its deletions differ from their checksum; "
                    "mend the index with: searchkit check INDEX --repair"
                )
        if state["generation"] < last:
            raise StoreError(
                f"{self.folder / NAME} is at commit {state['generation']}, but commit {last} was made: its log, "
                f"{NAME}-wal, is damaged or missing; put a copy of both in their place, or go on from there with: "
                "searchkit check INDEX --repair"
            )
        dead = [np.arange(first, first + count) for _, first, count in sorted(ranges, key=lambda each: each[1])]
        return Snapshot(
            generation=state["generation"],
            documents=state["documents"],
            passages=state["passages"],
            next_row=state["next_row"],
            next_doc=state["next_doc"],
            segments=found,
            dead=np.concatenate(dead) if dead else np.empty(0, np.int64),
            dead_docs=np.array(sorted(doc for doc, _, _ in ranges), dtype=np.int64),
            storage=storage,
            lexical=state["lexical"],
        )

    def matching(self, condition: Condition, snapshot: Snapshot) -> tuple[np.ndarray, np.ndarray]:
        """(docs, rows), each int64 ascending: what a filter lets through in a commit.

        Raises:
            StoreError: The database is damaged, or what was deleted since that commit is not in it any more.
        """
        # Which are deleted is known by the snapshot: the marks in this table have no checksum of their own.
        query = f"SELECT doc, first_row, passages FROM documents WHERE doc < ? AND ({condition.sql}) ORDER BY doc"
        with self.sound(), self.reading():
            if int(self.setting("compacted")) > snapshot.generation:
                raise StoreError(f"{self.folder} has been compacted since it was opened; open it again")
            self.check_contents()
            found = self.db.execute(query, (snapshot.next_doc, *condition.parameters)).fetchall()
            table = np.array(found, dtype=np.int64).reshape(-1, 3)
            table = table[~np.isin(table[:, 0], snapshot.dead_docs)]
        docs, firsts, counts = table.T
        # Row ranges one after another: the first row of each, repeated, and the position within.
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return docs, np.sort(np.repeat(firsts, counts) + within)

    def sizes(self) -> dict[str, int]:
        """Bytes on disk by part: the database ("index.db"), vectors ("segments") and words ("lexical")."""
        database = sum(file.stat().st_size for file in self.folder.glob(f"{NAME}*"))
        vectors = folder_size(self.folder / "segments") + folder_size(self.folder / "codebooks")
        return {NAME: database, "segments": vectors, "lexical": folder_size(self.folder / "lexical")}

    # Writing

    def commit(self, documents: Sequence[NewDocument], vectors: np.ndarray, *, delete: Sequence[str] = ()) -> None:
        """Delete documents, and add others with one vector for each of their passages, all or nothing.

        Args:
            documents: In order; their spans, one after another, are the passages.
            vectors: (number of spans, dim) float32.
            delete: Ids to delete first; unknown ones are left as they are.
        """
        total = sum(len(document.spans) for document in documents)
        if total != len(vectors):
            raise InputError(f"{len(vectors)} vectors came for {total} passages; expected one each")
        self.check_writable()
        row, doc = int(self.setting("next_row")), int(self.setting("next_doc"))
        entry = None
        if total:
            docs = np.repeat(np.arange(doc, doc + len(documents)), [len(document.spans) for document in documents])
            entry = self._write_segment([vectors], docs, np.arange(row, row + total))
        with self.transaction() as generation:
            self.mark_deleted(self.positions_of(delete), generation)
            self.insert(documents, doc, row)
            if entry:
                self.name(entry)

    def delete(self, docs: Iterable[int]) -> int:
        """Mark living documents as deleted, by position; returns how many there were."""
        self.check_writable()
        with self.transaction() as generation:
            return self.mark_deleted(docs, generation)

    def join_small_segments(self) -> None:
        """Join neighbouring segments where many are of like size; the rows stay what they are."""
        self.check_writable()
        while group := segments.to_join(self.entries()):
            storage = self.storage
            parts = [self._segment(entry, storage.plan) for entry in group]
            entry = segments.join_segments(
                self.folder / "segments",
                parts,
                self.template(),
                keep_vectors=storage.keep_vectors,
                devices=self.devices,
            )
            with self.transaction():
                self.db.executemany("DELETE FROM segments WHERE first_row = ?", [(old.first_row,) for old in group])
                self.name(entry)
            self.sweep()

    def rewrite(
        self,
        plan: Plan,
        template: Any,
        *,
        keep_vectors: bool = True,
        tuning: Tuning | None = None,
        purge: bool = False,
        make_lexical: Callable[[Path], None] | None = None,
    ) -> None:
        """Write all vectors anew, in one commit: by another recipe, or without those of deleted documents.

        Args:
            plan: The recipe from now on.
            template: Its trained, empty index.
            keep_vectors: Keep half-precision vectors beside compressed ones.
            tuning: How hard to search from now on; None leaves it.
            purge: Leave out what is deleted, here and in the database.
            make_lexical: Makes the lexical index of the living passages in a folder; with `purge` only.
        """
        self.check_writable()
        snapshot = self.snapshot()
        if purge:
            with self.sound():
                self.check_contents()
        dead = np.isin(segments.all_rows(snapshot.segments), snapshot.dead) if snapshot.segments else np.empty(0, bool)
        # What was put in by the same training stays as it is: of codes made of codes some differ.
        old = snapshot.storage
        same = (plan, template, keep_vectors) == (old.plan, self.template(), old.keep_vectors)
        codebook = old.codebook if same else self.write_codebook(plan, template)
        place, entries = self.folder / "segments", []
        for group, kept in _groups(snapshot.segments, ~dead if purge else np.ones_like(dead), plan.dim):
            if not kept.any():
                continue
            if same:
                entry = segments.join_segments(
                    place, group, template, keep_vectors=keep_vectors, kept=kept, devices=self.devices
                )
            else:
                vectors = segments.vectors_of(group, kept)
                rows, docs = segments.all_rows(group)[kept], np.concatenate([part.docs for part in group])[kept]
                entry = segments.write_segment(
                    place, plan, template, vectors, docs, rows, keep_vectors=keep_vectors, devices=self.devices
                )
            entries.append(entry)
        lexical = snapshot.lexical
        if purge and make_lexical:
            lexical = next_number(self.folder / "lexical", snapshot.lexical)
            make_lexical(self.folder / "lexical" / lexical)
        with self.transaction() as generation:
            self.db.execute("DELETE FROM segments")
            for entry in entries:
                self.name(entry)
            self.put(storage=Storage(plan, tuning or old.tuning, keep_vectors, codebook).to_json())
            if purge:
                self.purge_deleted(generation)
                self.put(lexical=lexical, lexical_files=stamps(self.folder / "lexical" / lexical))
        self.forget_template()
        self.sweep()
        if purge:
            self.db.executescript("PRAGMA incremental_vacuum")  # execute() would take one step of it, one page

    # Segments and what the recipe has learnt

    def entries(self) -> list[Entry]:
        """The segments as the last commit lists them."""
        query = "SELECT first_row, count, name, files FROM segments ORDER BY first_row"
        with self.sound():
            return [
                Entry(first_row, count, name, {file: Stamp(*value) for file, value in json.loads(files).items()})
                for first_row, count, name, files in self.db.execute(query).fetchall()
            ]

    def name(self, entry: Entry) -> None:
        """List a segment, as part of a transaction."""
        self.db.execute(
            "INSERT INTO segments VALUES (?, ?, ?, ?)",
            (entry.first_row, entry.count, entry.name, json.dumps(entry.files)),
        )

    def _segment(self, entry: Entry, plan: Plan) -> DiskSegment:
        """A segment; as long as anybody holds it, the same one, with its files open and checked."""
        before = self._opened.get(entry.name)
        if before is not None and (before.entry, before.plan) == (entry, plan):
            return before
        self._opened[entry.name] = found = DiskSegment(self.folder / "segments" / entry.name, entry, plan)
        return found

    def _write_segment(self, vectors: Iterable[np.ndarray], docs: np.ndarray, rows: np.ndarray) -> Entry:
        storage = self.storage
        return segments.write_segment(
            self.folder / "segments",
            storage.plan,
            self.template(),
            vectors,
            docs,
            rows,
            keep_vectors=storage.keep_vectors,
            devices=self.devices,
        )

    @property
    def storage(self) -> Storage:
        """How the last commit stores vectors."""
        return Storage.from_json(self.setting("storage"))

    def template(self) -> Any:
        """The trained, empty index that new vectors are added to a copy of."""
        if self._template is None:
            storage = self.storage
            if (codebook := storage.codebook) is not None:
                file = self.folder / "codebooks" / codebook.name
                verify(file, codebook.stamp)
                self._template = dense.read(file, storage.plan, mapped=False)
            elif storage.plan.recipe == "binary":
                self._template = dense.SignIndex(storage.plan.dim)
        return self._template

    def forget_template(self) -> None:
        """Read the codebook again when it is next needed."""
        self._template = None

    def write_codebook(self, plan: Plan, template: Any) -> Codebook | None:
        """Write a trained, empty index; None where the recipe needs no training."""
        if plan.recipe in ("flat", "binary"):
            return None
        place = self.folder / "codebooks"
        place.mkdir(exist_ok=True)
        file = place / next_number(place)
        return Codebook(file.name, dense.write(template, file))

    # Words

    def lexical_folder(self) -> Path:
        """Where the lexical index of the last commit is."""
        return self.folder / "lexical" / str(self.setting("lexical"))

    def name_lexical(self) -> None:
        """Say in a commit what the lexical index's files are now."""
        known = {name: Stamp(*value) for name, value in self.setting("lexical_files").items()}
        files = stamps(self.folder / "lexical" / self.setting("lexical"), known)
        if files != known:
            with self.transaction():
                self.put(lexical_files=files)

    def check_lexical(self) -> None:
        """Raise StoreError unless the lexical index's files are as a commit has named them."""
        folder = self.lexical_folder()
        for name, value in self.setting("lexical_files").items():
            verify(folder / name, Stamp(*value))

    def keep_words(self) -> None:
        """To be called before words are added: keeps the list of those that a commit has named."""
        if (file := self.lexical_folder() / WORDS).is_file():
            shutil.copyfile(file, file.with_name(KEPT))

    def _take_back_words(self) -> None:
        """Undo what a killed writer has added to the words and not named; without, all would have to be made anew."""
        file, named = self.lexical_folder() / WORDS, self.setting("lexical_files").get(WORDS)
        kept = file.with_name(KEPT)
        if named is None or not kept.is_file():
            return
        try:
            verify(file, Stamp(*named))
        except StoreError:
            with suppress(StoreError):  # or they are made anew after all
                verify(kept, Stamp(*named))
                kept.replace(file)

    # What no commit names

    def leftovers(self) -> list[Path]:
        """What no commit names, and the next writer removes."""
        codebook = self.storage.codebook
        named = {self.folder / "segments" / entry.name for entry in self.entries()}
        named |= {self.lexical_folder(), self.folder / "codebooks" / (codebook.name if codebook else "")}
        parts = ("segments", "codebooks", "lexical")
        return sorted(entry for part in parts for entry in self.folder.glob(f"{part}/*") if entry not in named)

    def sweep(self) -> None:
        """Remove what no commit names: a killed writer's files, and those that were replaced."""
        for entry in self.leftovers():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _groups(parts: Sequence[DiskSegment], kept: np.ndarray, dim: int) -> Iterator[tuple[list[DiskSegment], Any]]:
    """Neighbouring segments of about a gigabyte of float32 together, each with its part of a mask over all rows."""
    most = max(1, (1 << 30) // (4 * dim))
    group: list[DiskSegment] = []
    start = 0
    for part in [*parts, None]:
        size = sum(each.count for each in group)
        if group and (part is None or size + part.count > most):
            yield group, kept[start : start + size]
            group, start = [], start + size
        if part is not None:
            group.append(part)


def stamps(folder: Path, known: dict[str, Stamp] | None = None) -> dict[str, Stamp]:
    """What is in the lexical index's files; those that are known, and never change once written, are not read again."""
    files = sorted(file for file in folder.glob("[!.]*") if file.suffix != ".lock")
    known = {name: value for name, value in (known or {}).items() if name != WORDS}
    return {file.name: known.get(file.name) or stamp(file) for file in files}
