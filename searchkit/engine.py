"""Build an index from documents, and search it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from searchkit.chunking import chunk
from searchkit.conventions import Conventions
from searchkit.embedder import DEFAULT_MODEL, Embedder
from searchkit.indexer import dense, fusion
from searchkit.indexer.lexical import LexicalIndex, make_analyzer
from searchkit.indexer.store import NewDocument, Store, StoreError
from searchkit.prompts import get_task
from searchkit.records import Document, Hit, Query, join_title

logger = logging.getLogger(__name__)

Mode = Literal["dense", "lexical", "hybrid"]
MODES: tuple[Mode, ...] = ("dense", "lexical", "hybrid")


def as_mode(name: str) -> Mode:
    """A mode by its name; ValueError when there is none."""
    for mode in MODES:
        if mode == name:
            return mode
    raise ValueError(f"mode is {name!r}; expected one of {', '.join(MODES)}")


COMMIT_EVERY = 1024
"""Passages a commit. Fixed, so that a resumed run forms the same batches, and the same vectors, as an unbroken one."""

LONGEST_PASSAGE = 512
"""Tokens of a passage for models that could take more: a longer one blurs its vector and its display."""


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How a ranking is made.

    Args:
        mode: "dense" (vectors), "lexical" (BM25) or "hybrid" (both).
        fusion: "weighted" or "rrf" (reciprocal rank); for hybrid only.
        dense_weight: Share of the vectors in a weighted fusion, 0 to 1.
        rrf_k: Constant of reciprocal rank fusion.
        depth: Documents that either side puts up for fusion, at least.
    """

    mode: Mode = "hybrid"
    fusion: str = "weighted"
    dense_weight: float = 0.5
    rrf_k: int = 60
    depth: int = 100

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; expected one of {', '.join(MODES)}")
        if self.fusion not in fusion.FUSIONS:
            raise ValueError(f"fusion is {self.fusion!r}; expected one of {', '.join(fusion.FUSIONS)}")
        if not 0 <= self.dense_weight <= 1:
            raise ValueError(f"dense_weight is {self.dense_weight}; expected 0 to 1")


@dataclass
class AddReport:
    """What one call of `SearchEngine.add` did."""

    documents: int = 0
    passages: int = 0
    unchanged: int = 0
    refused: int = 0
    truncated: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Ranked:
    """One document in a ranking: its position in the store, its score and the row of its best passage."""

    doc: int
    score: float
    row: int


@dataclass(frozen=True, slots=True)
class _ModelChoice:
    """A model that is not loaded yet: what the user said of it, the index says the rest."""

    model: str | Path | None
    adapter: str | Path | None
    device: str | None
    dtype: str

    def load(self, identity: dict[str, Any]) -> Embedder:
        try:
            return Embedder(
                self.model or identity["model"],
                adapter=self.adapter or (None if self.model else identity["adapter"]),
                device=self.device,
                dtype=self.dtype,
                dim=identity["dim"],
                force_dim=True,
                # As the index was built, whatever the model's folder is called by now.
                conventions=Conventions(**{field.name: identity[field.name] for field in fields(Conventions)}),
            )
        except ValueError as error:
            raise StoreError(
                f"the index was built with {identity['model']}, which cannot be loaded: {error}. "
                "If the model has moved, name its place with --model"
            ) from error


class SearchEngine:
    """An index folder with the model that belongs to it. Make one with `create` or `open`."""

    def __init__(self, store: Store, model: Embedder | _ModelChoice) -> None:
        self._store = store
        self.settings = store.settings()
        self._model = model
        if isinstance(model, Embedder):
            self._check_model(model)
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._lexical = self._open_lexical()
        self._documents = self._passages = 0
        self._segments: list[dense.Segment] = []
        self._load()

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        model: Embedder | str | Path | None = None,
        chunk_tokens: int | None = None,
        overlap: int | None = None,
        language: str | None = None,
        exist_ok: bool = False,
    ) -> SearchEngine:
        """Make an empty index and open it for writing.

        Args:
            path: Folder to make.
            model: What embeds passages and queries; the index is bound to it. None takes the default model.
            chunk_tokens: Longest passage in tokens; None takes what the model takes, 512 at most; 0 keeps documents
                whole, so that what is past the model's length is found by its words only.
            overlap: Tokens shared by neighbouring passages; None takes an eighth of a passage.
            language: Stemming and stop words of the lexical side, "none" for neither; None takes English.
            exist_ok: Open the index if it is there already; what is given here must be what it was made with.

        Raises:
            StoreError: There is something else at `path`, or an index with other settings.
        """
        folder = Path(path)
        if (folder / "index.db").is_file():
            if not exist_ok:
                raise StoreError(f"{folder} is an index already; open it, or name another place")
            engine = cls.open(folder, model=model, writable=True)
            try:
                engine.check_settings(chunk_tokens=chunk_tokens, overlap=overlap, language=language)
            except BaseException:
                engine.close()
                raise
            return engine
        embedder = model if isinstance(model, Embedder) else Embedder(model or DEFAULT_MODEL)
        language = language or "english"
        make_analyzer(language)  # a wrong language is said before anything is made
        settings = {"model": embedder.identity(), "language": language, **_chunking(embedder, chunk_tokens, overlap)}
        return cls(Store.create(folder, settings), embedder)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: Embedder | str | Path | None = None,
        adapter: str | Path | None = None,
        device: str | None = None,
        dtype: str = "auto",
        writable: bool = False,
    ) -> SearchEngine:
        """Open an index. Its model is loaded when it is first needed.

        Args:
            path: The index folder.
            model: Needed only when the model has moved since the index was built; its files must be the same.
            adapter: Likewise.
            device: Where the model runs; None takes the best there is.
            dtype: What the model computes in.
            writable: Take the writer's lock, to `add`.

        Raises:
            StoreError: There is no sound index at `path`, or it was built with another model.
        """
        store = Store(Path(path), writable=writable)
        try:
            return cls(store, model if isinstance(model, Embedder) else _ModelChoice(model, adapter, device, dtype))
        except BaseException:
            store.close()
            raise

    def close(self) -> None:
        """Close the files; the engine is of no use afterwards."""
        self._segments = []
        self._store.close()
        if self._copy is not None:
            self._copy.cleanup()

    def __enter__(self) -> SearchEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Documents in the index."""
        return self._documents

    @property
    def store(self) -> Store:
        """The folder behind the engine, for reading what is in it."""
        return self._store

    @property
    def embedder(self) -> Embedder:
        """The model, loaded when it is first needed: a lexical search never loads it."""
        if isinstance(self._model, _ModelChoice):
            embedder = self._model.load(self.settings["model"])
            self._check_model(embedder)
            self._model = embedder
        return self._model

    # Building

    def add(
        self,
        documents: Iterable[Document],
        *,
        on_refused: Callable[[Document, str], None] | None = None,
        on_progress: Callable[[float, int], None] | None = None,
        commit_every: int = COMMIT_EVERY,
    ) -> AddReport:
        """Add documents; those that are in the index already with equal content are left as they are.

        Memory is bounded by `commit_every` passages, whatever the number of documents. When it is stopped at any
        moment, call it again with the same documents: what was committed is neither lost nor embedded again.

        Args:
            documents: Read once, in order.
            on_refused: Gets a document that cannot be added, and why; None raises instead.
            on_progress: Called now and then with (documents, passages) done so far.
            commit_every: Passages a commit.

        Raises:
            ValueError: A document's id came twice, or is in the index with other content.
        """
        began = time.monotonic()
        report = AddReport()
        truncated_before = self.embedder.stats.truncated
        progress = on_progress or (lambda documents, passages: None)
        try:
            self._add_all(documents, report, on_refused, progress, commit_every)
            self._store.merge_small_segments()
        finally:  # what is committed can be found, however this ends
            self._load()
        report.truncated = self.embedder.stats.truncated - truncated_before
        report.seconds = time.monotonic() - began
        return report

    def _add_all(
        self,
        documents: Iterable[Document],
        report: AddReport,
        on_refused: Callable[[Document, str], None] | None,
        progress: Callable[[float, int], None],
        commit_every: int,
    ) -> None:
        window: list[tuple[NewDocument, list[str]]] = []
        waiting = 0
        for document, checksum in self._new_documents(documents, report, on_refused):
            title, spans = self._spans(document)
            metadata = json.dumps(document.metadata, ensure_ascii=False, sort_keys=True)
            new = NewDocument(document.id, document.title, document.text, metadata, checksum, spans)
            window.append((new, [join_title(title, document.text[start:stop]) for start, stop in spans]))
            waiting += len(spans)
            if waiting >= commit_every:
                self._commit(window, report, progress)
                window, waiting = [], 0
        if window:
            self._commit(window, report, progress)

    def _new_documents(
        self, documents: Iterable[Document], report: AddReport, on_refused: Callable[[Document, str], None] | None
    ) -> Iterator[tuple[Document, str]]:
        # Ids of this call, on disk: a set in memory would grow with the corpus.
        with closing(sqlite3.connect("", isolation_level=None)) as seen:
            yield from self._unseen(seen, documents, report, on_refused)

    def _unseen(
        self,
        seen: sqlite3.Connection,
        documents: Iterable[Document],
        report: AddReport,
        on_refused: Callable[[Document, str], None] | None,
    ) -> Iterator[tuple[Document, str]]:
        seen.executescript("PRAGMA journal_mode=OFF; CREATE TABLE seen (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID")
        seen.execute("BEGIN")
        for document in documents:
            reason = None
            checksum = document.checksum()
            try:
                seen.execute("INSERT INTO seen VALUES (?, ?)", (document.id, document.place))
            except sqlite3.IntegrityError:
                (first,) = seen.execute("SELECT place FROM seen WHERE id = ?", (document.id,)).fetchone()
                reason = f"id {document.id!r} came before{f', at {first}' if first else ''}; ids must be unique"
            else:
                stored = self._store.checksum_of(document.id)
                if stored == checksum:
                    report.unchanged += 1
                    continue
                if stored is not None:
                    reason = f"id {document.id!r} is in the index with other content; build a new index to change it"
            if reason is None:
                yield document, checksum
            elif on_refused is None:
                raise ValueError(f"{document.place}: {reason}" if document.place else reason)
            else:
                report.refused += 1
                on_refused(document, reason)

    def _spans(self, document: Document) -> tuple[str, list[tuple[int, int]]]:
        """The title as it goes with every passage, and the passages' places in the text."""
        tokens = self.settings["chunk_tokens"]
        if tokens == 0 or not document.text.strip():
            return document.title, [(0, len(document.text))]
        tokens -= len(self.embedder.offsets(self.embedder.conventions.document_prefix))
        title, places = document.title, self.embedder.offsets(document.title)
        if len(places) > tokens // 2:  # the title stands first, so too long a one would push the text out
            places = places[: tokens // 2]
            title = title[: places[-1][1]]
        room = tokens - len(places)
        overlap = min(self.settings["overlap"], room // 2)
        return title, chunk(document.text, self.embedder.offsets, tokens=room, overlap=overlap)

    def _commit(
        self,
        window: list[tuple[NewDocument, list[str]]],
        report: AddReport,
        progress: Callable[[float, int], None],
    ) -> None:
        texts = [text for _, passages in window for text in passages]
        share = len(window) / max(1, len(texts))
        done = 0

        def on_batch(count: int) -> None:
            nonlocal done
            done += count
            progress(report.unchanged + report.documents + done * share, report.passages + done)

        vectors = self.embedder.encode_passages(texts, on_batch)
        self._store.commit([document for document, _ in window], vectors)
        self._catch_up_lexical()
        report.documents += len(window)
        report.passages += len(texts)

    def _catch_up_lexical(self) -> None:
        """Bring the lexical index up to the committed passages; the store is right whenever they differ."""
        _, passages = self._store.counts()
        indexed = len(self._lexical)
        if indexed < passages:
            texts = ((row, join_title(title, text)) for row, title, text in self._store.texts(indexed))
            self._lexical.add(texts)

    # Searching

    def search(
        self,
        query: str,
        *,
        instruction: str | None = None,
        task: str | None = None,
        k: int = 10,
        options: SearchOptions | None = None,
    ) -> list[Hit]:
        """The k best documents for one query, each shown by its best passage.

        Args:
            query: The text to search for.
            instruction: One sentence that says what to find; None takes the model's default, "" none.
            task: A named task (:data:`searchkit.prompts.TASKS`) instead of an instruction.
            k: Documents wanted.
            options: How to rank; hybrid by default.

        Raises:
            ValueError: The query is empty, the task unknown, or both task and instruction are given.
        """
        return self.search_many([query], instruction=instruction, task=task, k=k, options=options)[0]

    def search_many(
        self,
        queries: Sequence[str | Query],
        *,
        instruction: str | None = None,
        task: str | None = None,
        k: int = 10,
        options: SearchOptions | None = None,
    ) -> list[list[Hit]]:
        """Like `search` for many queries; a :class:`Query` with an instruction of its own keeps it."""
        rankings = self.rank(queries, instruction=instruction, task=task, k=k, options=options)
        stored = self._store.passages([item.row for ranking in rankings for item in ranking])
        results = []
        for ranking in rankings:
            hits = []
            for rank, item in enumerate(ranking, start=1):
                passage = stored[item.row]
                hits.append(
                    Hit(
                        id=passage.id,
                        score=item.score,
                        rank=rank,
                        title=passage.title,
                        text=passage.text,
                        start=passage.start,
                        stop=passage.stop,
                        metadata=passage.metadata,
                    )
                )
            results.append(hits)
        return results

    def rank(
        self,
        queries: Sequence[str | Query],
        *,
        instruction: str | None = None,
        task: str | None = None,
        k: int = 10,
        options: SearchOptions | None = None,
    ) -> list[list[Ranked]]:
        """The ranking behind `search_many`, without fetching the documents' texts."""
        options = options or SearchOptions()
        if task is not None:
            if instruction is not None:
                raise ValueError("both a task and an instruction came; give one of them")
            instruction = get_task(task).instruction
        if k < 1:
            raise ValueError(f"k is {k}; expected 1 or more")
        asked = [Query("", query) if isinstance(query, str) else query for query in queries]
        for query in asked:
            if not query.text.strip():
                raise ValueError("a query is empty; write what to search for")
        if not asked or self._passages == 0:
            return [[] for _ in asked]
        if options.mode == "dense":
            return self._rank_dense(self._embed(asked, instruction), k)
        if options.mode == "lexical":
            return [self._rank_lexical(query.text, k) for query in asked]
        depth = max(k, options.depth)
        vectors = self._embed(asked, instruction)
        by_vector = self._rank_dense(vectors, depth)
        by_words = [self._rank_lexical(query.text, depth) for query in asked]
        return [self._fuse(*found, options)[:k] for found in zip(vectors, by_vector, by_words, strict=True)]

    def _embed(self, queries: list[Query], instruction: str | None) -> np.ndarray:
        rows = np.empty((len(queries), self.embedder.dim), dtype=np.float32)
        groups: dict[str | None, list[int]] = {}
        for position, query in enumerate(queries):
            own = query.instruction if query.instruction is not None else instruction
            groups.setdefault(own, []).append(position)
        for own, positions in groups.items():
            rows[positions] = self.embedder.encode_queries([queries[i].text for i in positions], own)
        return rows

    def _rank_dense(self, vectors: np.ndarray, k: int) -> list[list[Ranked]]:
        """The k best documents a query by their best passage."""
        wanted = min(k, self._documents)
        depth = k if self._passages == self._documents else 4 * k
        while True:
            rows, scores = dense.search(self._segments, vectors, depth)
            docs = self._store.documents_of(rows)
            rankings = [_best_passages(*query) for query in zip(docs, scores, rows, strict=True)]
            if depth >= self._passages or all(len(ranking) >= wanted for ranking in rankings):
                return [ranking[:k] for ranking in rankings]
            depth *= 4

    def _rank_lexical(self, text: str, k: int) -> list[Ranked]:
        depth = k if self._passages == self._documents else 4 * k
        while True:
            rows, scores = self._lexical.search(text, depth, rows_below=self._passages)
            ranking = _best_passages(self._store.documents_of(rows), scores, rows)
            if len(rows) < depth or len(ranking) >= k:
                return ranking[:k]
            depth *= 4

    def _fuse(
        self, vector: np.ndarray, by_vector: list[Ranked], by_words: list[Ranked], options: SearchOptions
    ) -> list[Ranked]:
        similarity = {item.doc: item.score for item in by_vector}
        words = {item.doc: item.score for item in by_words}
        # Shown is the passage that vectors found best, if they found one: it carries the meaning asked for.
        rows = {item.doc: item.row for item in (*by_words, *by_vector)}
        if options.fusion == "rrf":
            fused = fusion.reciprocal_rank((similarity, words), options.rrf_k)
        else:
            unscored = [doc for doc in words if doc not in similarity]
            scores = dense.score(self._segments, vector, np.array([rows[doc] for doc in unscored], dtype=np.int64))
            fused = fusion.weighted(
                similarity | dict(zip(unscored, scores.tolist(), strict=True)), words, options.dense_weight
            )
        return [Ranked(doc, fused[doc], rows[doc]) for doc in sorted(fused, key=lambda doc: (-fused[doc], doc))]

    def ids_of(self, rankings: Iterable[Iterable[Ranked]]) -> dict[int, str]:
        """The users' ids of every document in some rankings."""
        return self._store.ids_of({item.doc for ranking in rankings for item in ranking})

    # What belongs together

    def _open_lexical(self) -> LexicalIndex:
        """The lexical index; made anew when it is damaged, since all of it can be had from the documents."""
        folder, language = self._store.folder / "lexical", self.settings["language"]
        try:
            return LexicalIndex(folder, language)
        except (ValueError, OSError) as error:
            if all(os.access(place, os.W_OK, effective_ids=True) for place in (self._store.folder, folder)):
                logger.warning("%s cannot be read (%s) and is made anew", folder, error)
                with nullcontext() if self._store.writable else Store(self._store.folder, writable=True):
                    shutil.rmtree(folder)
                return LexicalIndex(folder, language)
        # tantivy needs its lock file even to read: where nothing can be written, read a copy.
        self._copy = tempfile.TemporaryDirectory(prefix="searchkit-")
        copy = Path(self._copy.name) / "lexical"
        copy.mkdir()
        if folder.is_dir():
            for file in folder.iterdir():
                shutil.copyfile(file, copy / file.name)
        return LexicalIndex(copy, language)

    def _load(self) -> None:
        """Read the last commit; when a writer has merged a segment away meanwhile, the one after it."""
        for attempt in range(3):
            try:
                with self._store.snapshot():
                    self._documents, self._passages = self._store.counts()
                    self._segments = self._store.segments()
                break
            except StoreError:
                if attempt == 2:
                    raise
        if len(self._lexical) < self._passages:
            # A writer was killed between its commit and the lexical one. Whoever can write makes it good.
            with suppress(StoreError, OSError):
                if self._store.writable:
                    self._catch_up_lexical()
                else:
                    with Store(self._store.folder, writable=True):
                        self._catch_up_lexical()

    def check_settings(
        self, *, chunk_tokens: int | None = None, overlap: int | None = None, language: str | None = None
    ) -> None:
        """Raise StoreError when the index was made with other settings than these; None is not compared."""
        for name, value in {"chunk_tokens": chunk_tokens, "overlap": overlap, "language": language}.items():
            if value is not None and value != self.settings[name]:
                raise StoreError(
                    f"{self._store.folder} was built with {name} {self.settings[name]}, now it is {value}; "
                    "leave it away, or build another index"
                )

    def _check_model(self, embedder: Embedder) -> None:
        bound, given = self.settings["model"], embedder.identity()
        named = {"model", "adapter"}  # a model may move; its files may not change
        differing = [
            key for key in bound.keys() | given.keys() if key not in named and bound.get(key) != given.get(key)
        ]
        if differing:
            details = "; ".join(
                f"{key}: index {bound.get(key)!r}, model {given.get(key)!r}" for key in sorted(differing)
            )
            raise StoreError(
                f"the index was built with {bound['model']}, which differs from {given['model']} ({details}); "
                "search with the model it was built with, or build another index"
            )


def _best_passages(docs: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> list[Ranked]:
    """Passages, best first, to documents by their first and so best passage."""
    best: dict[int, Ranked] = {}
    for doc, score, row in zip(docs.tolist(), scores.tolist(), rows.tolist(), strict=True):
        if doc not in best:
            best[doc] = Ranked(doc, score, row)
    return list(best.values())


def _chunking(embedder: Embedder, chunk_tokens: int | None, overlap: int | None) -> dict[str, int]:
    room = embedder.max_length - embedder.special_tokens
    tokens = min(room, LONGEST_PASSAGE) if chunk_tokens is None else chunk_tokens
    if tokens != 0 and not 8 <= tokens <= room:
        raise ValueError(f"chunk_tokens is {tokens}; expected 0 (whole documents) or 8 to {room} for this model")
    overlap = tokens // 8 if overlap is None else overlap
    if not 0 <= overlap <= tokens // 2:
        raise ValueError(f"overlap is {overlap}; expected 0 to {tokens // 2}, half of a passage of {tokens} tokens")
    return {"chunk_tokens": tokens, "overlap": overlap}
