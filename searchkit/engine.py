"""Build an index from documents, and search it."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.conventions import Conventions
from searchkit.embedder import DEFAULT_MODEL, Embedder
from searchkit.indexer import dense
from searchkit.indexer.lexical import LexicalIndex, make_analyzer
from searchkit.indexer.store import NewDocument, Store, StoreError
from searchkit.ingest import AddReport, chunk_settings, new_documents, to_passages
from searchkit.prompts import get_task
from searchkit.ranking import Ranked, Ranker, SearchOptions
from searchkit.records import Document, Hit, Query, join_title

logger = logging.getLogger(__name__)

COMMIT_EVERY = 1024
"""Passages a commit. Fixed, so that a resumed run forms the same batches, and the same vectors, as an unbroken one."""


@dataclass(frozen=True, slots=True)
class _ModelChoice:
    """A model that is not loaded yet: what the user said of it, the index says the rest."""

    model: str | Path | None
    adapter: str | Path | None
    device: str | None
    dtype: str
    threads: int | None

    def load(self, identity: dict[str, Any]) -> Embedder:
        try:
            return Embedder(
                self.model or identity["model"],
                adapter=self.adapter or (None if self.model else identity["adapter"]),
                device=self.device,
                dtype=self.dtype,
                threads=self.threads,
                dim=identity["dim"],
                force_dim=True,
                # As the index was built, whatever the model's folder is called by now.
                conventions=Conventions(
                    **{f.name: identity[f.name] for f in fields(Conventions) if f.name in identity}
                ),
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
        self._ranker = self._load()

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
        settings = {
            "model": embedder.identity(),
            "language": language,
            **chunk_settings(embedder, chunk_tokens, overlap),
        }
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
        threads: int | None = None,
        writable: bool = False,
    ) -> SearchEngine:
        """Open an index. Its model is loaded when it is first needed.

        Args:
            path: The index folder.
            model: Needed only when the model has moved since the index was built; its files must be the same.
            adapter: Likewise.
            device: Where the model runs; None takes the best there is.
            dtype: What the model computes in.
            threads: Processor threads it computes on; None takes what its runtime does by itself.
            writable: Take the writer's lock, to `add`.

        Raises:
            StoreError: There is no sound index at `path`, or it was built with another model.
        """
        store = Store(Path(path), writable=writable)
        try:
            chosen = model if isinstance(model, Embedder) else _ModelChoice(model, adapter, device, dtype, threads)
            return cls(store, chosen)
        except BaseException:
            store.close()
            raise

    def close(self) -> None:
        """Close the files; the engine is of no use afterwards."""
        self._ranker = Ranker(self._store, [], self._lexical, 0, 0)
        self._store.close()
        if self._copy is not None:
            self._copy.cleanup()

    def __enter__(self) -> SearchEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Documents in the index."""
        return self._ranker.documents

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
            self._ranker = self._load()
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
        tokens, overlap = self.settings["chunk_tokens"], self.settings["overlap"]
        for document, checksum in new_documents(documents, self._store, report, on_refused):
            window.append(to_passages(document, checksum, self.embedder, tokens, overlap))
            waiting += len(window[-1][1])
            if waiting >= commit_every:
                self._commit(window, report, progress)
                window, waiting = [], 0
        if window:
            self._commit(window, report, progress)

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
        if not asked or self._ranker.passages == 0:
            return [[] for _ in asked]
        vectors = None if options.mode == "lexical" else self.embed(asked, instruction)
        return self._ranker.rank([query.text for query in asked], vectors, k, options)

    def embed(self, queries: Sequence[Query], instruction: str | None = None) -> np.ndarray:
        """The queries, each with its own instruction or else the one given, as (n, dim) float32 unit rows."""
        rows = np.empty((len(queries), self.embedder.dim), dtype=np.float32)
        groups: dict[str | None, list[int]] = {}
        for position, query in enumerate(queries):
            own = query.instruction if query.instruction is not None else instruction
            groups.setdefault(own, []).append(position)
        for own, positions in groups.items():
            rows[positions] = self.embedder.encode_queries([queries[i].text for i in positions], own)
        return rows

    def similarities(self, vector: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The inner product of one query (dim,) with the passages of some rows (n,), as (n,) float32."""
        return dense.score(self._ranker.segments, vector, rows)

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
                with nullcontext() if self._store.writable else self._writer():
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

    def _load(self) -> Ranker:
        """The last commit; when a writer has merged a segment away meanwhile, the one after it."""
        for attempt in range(3):
            try:
                with self._store.snapshot():
                    documents, passages = self._store.counts()
                    segments = self._store.segments()
                break
            except StoreError:
                if attempt == 2:
                    raise
        if len(self._lexical) < passages:
            # A writer was killed between its commit and the lexical one. Whoever can write makes it good.
            with suppress(StoreError, OSError), nullcontext() if self._store.writable else self._writer():
                self._catch_up_lexical()
        return Ranker(self._store, segments, self._lexical, documents, passages)

    def _writer(self) -> Store:
        return Store(self._store.folder, writable=True)

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
