"""Build an index from documents, and search it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

import numpy as np

from searchkit.binding import ModelChoice, check_model
from searchkit.errors import InputError, StoreError
from searchkit.indexer.documents import NewDocument, StoredPassage
from searchkit.indexer.filters import compile_filter
from searchkit.indexer.lexical import make_analyzer
from searchkit.indexer.store import Store
from searchkit.indexer.vectors import faiss_gpu as gpu
from searchkit.indexer.vectors import segments
from searchkit.indexer.vectors.recipes import Plan, Tuning, default_tuning, plan
from searchkit.indexer.vectors.storage import Storage
from searchkit.ingest import AddReport, chunk_settings, new_documents, to_passages
from searchkit.lexical_sync import Words
from searchkit.models.embedder import DEFAULT_MODEL, Embedder
from searchkit.ranking import Ranked, Ranker, SearchOptions
from searchkit.records import Document, Hit, Query
from searchkit.tasks import get_task

T = TypeVar("T")

_RETRIES = 8
COMMIT_EVERY = 1024
"""Passages a commit. Fixed, so that a resumed run forms the same batches, and the same vectors, as an unbroken one."""


class SearchEngine:
    """An index folder with the model that belongs to it. Make one with `create` or `open`."""

    def __init__(
        self, store: Store, model: Embedder | ModelChoice, device: str | None = None, replicate: bool = False
    ) -> None:
        self._store = store
        self._gpus = gpu.Gpus(device, replicate=replicate)
        store.devices = self._gpus.devices
        snapshot = store.snapshot()  # first: it compares the settings with their checksum
        self.settings = store.database.settings()
        self._model = model
        if isinstance(model, Embedder):
            check_model(self.settings["model"], model)
        self._mutex = RLock()  # threads may share an engine: they reload in turn
        self._words = Words(store, self.settings["language"])
        self._ranker = Ranker(store, snapshot, partial(self._words.of, snapshot), self._gpus)

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        model: Embedder | str | Path | None = None,
        chunk_tokens: int | None = None,
        overlap: int | None = None,
        language: str | None = None,
        device: str | None = None,
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
            device: See `open`.
            exist_ok: Open the index if it is there already; what is given here must be what it was made with.

        Raises:
            StoreError: There is something else at `path`, or an index with other settings.
        """
        folder = Path(path)
        if (folder / "index.db").is_file():
            if not exist_ok:
                raise StoreError(f"{folder} is an index already; open it, or name another place")
            engine = cls.open(folder, model=model, device=device, writable=True)
            try:
                engine.check_settings(chunk_tokens=chunk_tokens, overlap=overlap, language=language)
            except BaseException:
                engine.close()
                raise
            return engine
        embedder = model if isinstance(model, Embedder) else Embedder(model or DEFAULT_MODEL, device=device)
        language = language or "english"
        make_analyzer(language)  # a wrong language is said before anything is made
        settings = {
            "model": embedder.identity(),
            "language": language,
            **chunk_settings(embedder, chunk_tokens, overlap),
        }
        return cls(Store.create(folder, settings, dim=embedder.dim), embedder, device)

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
        replicate: bool = False,
        writable: bool = False,
    ) -> SearchEngine:
        """Open an index. Its model is loaded when it is first needed.

        Args:
            path: The index folder.
            model: Needed only when the model has moved since the index was built; its files must be the same.
            adapter: Likewise.
            device: Where the model runs, None takes the best there is; with "cuda" or "cuda:1" recipes learn, encode
                and search there too, as far as the FAISS that is installed can do it.
            dtype: What the model computes in.
            threads: Processor threads it computes on; None takes what its runtime does by itself.
            replicate: Give every one of several GPUs all vectors instead of a share of them.
            writable: Take the writer's lock, to `add`.

        Raises:
            StoreError: There is no sound index at `path`, or it was built with another model.
        """
        store = Store(Path(path), writable=writable)
        try:
            chosen = model if isinstance(model, Embedder) else ModelChoice(model, adapter, device, dtype, threads)
            return cls(store, chosen, device, replicate)
        except BaseException:
            store.close()
            raise

    def close(self) -> None:
        """Close the files; the engine is of no use afterwards."""
        self._ranker.snapshot.segments.clear()
        self._gpus.let_go()
        self._words.close()
        self._store.close()

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
    def storage(self) -> Storage:
        """How the vectors are stored."""
        return self._ranker.snapshot.storage

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.storage.plan.dim

    @property
    def passages(self) -> int:
        """Passages in the index."""
        return self._ranker.passages

    @property
    def embedder(self) -> Embedder:
        """The model, loaded when it is first needed: a lexical search never loads it."""
        if isinstance(self._model, ModelChoice):
            self._model = self._model.load(self.settings["model"])
        return self._model

    # Building

    def add(
        self,
        documents: Iterable[Document],
        *,
        update: bool = False,
        on_refused: Callable[[Document, str], None] | None = None,
        on_progress: Callable[[float, int], None] | None = None,
        commit_every: int = COMMIT_EVERY,
    ) -> AddReport:
        """Add documents; those that are in the index already with equal content are left as they are.

        Memory is bounded by `commit_every` passages, whatever the number of documents. When it is stopped at any
        moment, call it again with the same documents: what was committed is neither lost nor embedded again.

        Args:
            documents: Read once, in order.
            update: Let a document take the place of the one with its id and other content; else it is refused.
            on_refused: Gets a document that cannot be added, and why; None raises instead.
            on_progress: Called now and then with (documents, passages) done so far.
            commit_every: Passages a commit.

        Raises:
            ValueError: A document's id came twice, or is in the index with other content and `update` is False.
        """
        began = time.monotonic()
        report = AddReport()
        truncated_before = self.embedder.stats.truncated
        progress = on_progress or (lambda documents, passages: None)
        try:
            self._add_all(documents, report, update, on_refused, progress, commit_every)
        finally:  # what is committed can be found, however this ends
            self.reload()
        report.truncated = self.embedder.stats.truncated - truncated_before
        report.seconds = time.monotonic() - began
        return report

    def delete(
        self, ids: Iterable[str] = (), *, where: Mapping[str, Any] | None = None, dry_run: bool = False
    ) -> tuple[int, list[str]]:
        """Delete documents by id, by a filter on their metadata, or both; what is to be found is gone at once.

        Args:
            ids: Of documents; unknown ones are returned.
            where: A filter (see :mod:`searchkit.indexer.filters`).
            dry_run: Only count.

        Returns:
            (documents deleted, ids that the index does not hold).

        Raises:
            FilterError: The filter cannot be understood.
        """
        wanted = list(dict.fromkeys(ids))
        snapshot = self._store.snapshot()
        docs = set(self._store.documents.positions_of(wanted))
        known = self._store.documents.known_ids(wanted)
        if where is not None:
            docs.update(self._store.matching(compile_filter(where), snapshot)[0].tolist())
        if dry_run:
            return len(docs), [one for one in wanted if one not in known]
        deleted = self._store.delete(sorted(docs)) if docs else 0
        self.reload()
        return deleted, [one for one in wanted if one not in known]

    def compact(self) -> int:
        """Free the space of deleted documents, in one commit; returns how many passages were let go of."""
        snapshot = self._store.snapshot()
        self._store.rewrite(
            snapshot.storage.plan,
            self._store.template(),
            keep_vectors=snapshot.storage.keep_vectors,
            purge=True,
            make_lexical=self._words.make,
        )
        self.reload()
        return len(snapshot.dead)

    def store_as(self, recipe: str, *, keep_vectors: bool = True, tuning: Tuning | None = None, seed: int = 0) -> Plan:
        """Store all vectors by another recipe, without embedding anything again, in one commit.

        Args:
            recipe: A name of :data:`searchkit.indexer.vectors.recipes.RECIPES`, maybe with bytes: "pq:48".
            keep_vectors: Keep half-precision vectors beside, for exact scores and later recipes; False is smallest.
            tuning: How hard to search from now on; None takes what suits the recipe.
            seed: Of the sample that the recipe learns from.

        Raises:
            ValueError: There is no such recipe, too few vectors to learn from, or the vectors were dropped before.
        """
        snapshot = self._store.snapshot()
        chosen = plan(recipe, self.dim, max(1, snapshot.passages))
        if not all(segment.keeps_vectors for segment in snapshot.segments):
            raise InputError(
                f"{self._store.folder} keeps no vectors beside its {self._ranker.plan.spelling} codes, and codes made "
                "of codes would be worse without a word; index the corpus again"
            )
        template = gpu.train(chosen, self.sample(chosen.wanted, seed=seed), self._gpus.devices)
        tuning = tuning or default_tuning(chosen, keep_vectors=keep_vectors)
        self._store.rewrite(chosen, template, keep_vectors=keep_vectors, tuning=tuning)
        self.reload()
        return chosen

    def sample(self, count: int, *, seed: int = 0) -> np.ndarray:
        """Vectors of passages drawn at random, (at most count, dim) float32."""
        snapshot = self._ranker.snapshot
        total = sum(segment.count for segment in snapshot.segments)
        drawn = np.sort(np.random.default_rng(seed).permutation(total)[:count])
        if not len(drawn):
            return np.empty((0, self.dim), np.float32)
        return segments.vectors_at(snapshot.segments, drawn)

    def _add_all(
        self,
        documents: Iterable[Document],
        report: AddReport,
        update: bool,
        on_refused: Callable[[Document, str], None] | None,
        progress: Callable[[float, int], None],
        commit_every: int,
    ) -> None:
        window: list[tuple[NewDocument, list[str]]] = []
        waiting = 0
        tokens, overlap = self.settings["chunk_tokens"], self.settings["overlap"]
        for document, checksum in new_documents(documents, self._store, report, on_refused, update=update):
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
        # Those that take another's place are deleted by the commit that adds them; of the others there is nothing.
        self._store.commit([new for new, _ in window], vectors, delete=[new.id for new, _ in window])
        self._words.catch_up(self._words.of(self._ranker.snapshot), self._store)
        self._store.merge_small_segments()
        report.documents += len(window)
        report.passages += len(texts)

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
            task: A named task (:data:`searchkit.tasks.TASKS`) instead of an instruction.
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
        vectors: np.ndarray | None = None,
    ) -> list[list[Hit]]:
        """Like `search` for many queries; a :class:`Query` with an instruction of its own keeps it.

        `vectors` are the queries' own, as `embed` gives them, so that they are not embedded again.
        """
        rank = self._asked(queries, instruction, task, k, options, vectors)

        def fetched(ranker: Ranker) -> tuple[list[list[Ranked]], dict[int, StoredPassage]]:
            rankings = rank(ranker)
            wanted = [item.row for ranking in rankings for item in ranking]
            stored = self._store.documents.passages(wanted)
            if missing := set(wanted) - stored.keys():
                raise StoreError(f"{self._store.folder / 'index.db'} is damaged: {len(missing)} passages are missing")
            return rankings, stored

        rankings, stored = self._in_one_commit(fetched)
        results = []
        for ranking in rankings:
            hits = []
            for place, item in enumerate(ranking, start=1):
                passage = stored[item.row]
                hits.append(
                    Hit(
                        id=passage.id,
                        score=item.score,
                        rank=place,
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
        ties: bool = False,
    ) -> list[list[Ranked]]:
        """The ranking behind `search_many`, without fetching the documents' texts.

        With `ties` also the documents that score as the k-th does, which a cut leaves out by the order they came in.
        """
        return self._in_one_commit(self._asked(queries, instruction, task, k, options, ties=ties))

    def _asked(
        self,
        queries: Sequence[str | Query],
        instruction: str | None,
        task: str | None,
        k: int,
        options: SearchOptions | None,
        vectors: np.ndarray | None = None,
        ties: bool = False,
    ) -> Callable[[Ranker], list[list[Ranked]]]:
        """What is asked, checked and embedded once: a function that ranks in a commit."""
        chosen = options or SearchOptions()
        if task is not None:
            if instruction is not None:
                raise InputError("both a task and an instruction came; give one of them")
            instruction = get_task(task).instruction
        if k < 1:
            raise InputError(f"k is {k}; expected 1 or more")
        asked = [Query("", query) if isinstance(query, str) else query for query in queries]
        for query in asked:
            if not query.text.strip():
                raise InputError("a query is empty; write what to search for")
        if chosen.where is not None:
            compile_filter(chosen.where)  # what is wrong with it is said even where there is nothing to find
        if not asked or self._ranker.passages == 0:
            return lambda ranker: [[] for _ in asked]
        if vectors is not None and vectors.shape != (len(asked), self.dim):
            raise InputError(f"vectors are {vectors.shape}; expected {(len(asked), self.dim)}, a row a query")
        if chosen.mode != "lexical" and vectors is None:
            vectors = self.embed(asked, instruction)
        texts = [query.text for query in asked]
        return lambda ranker: ranker.rank(texts, vectors, k, chosen, ties=ties)

    def _in_one_commit(self, work: Callable[[Ranker], T]) -> T:
        """Do something in the commit at hand; when a writer took its files away meanwhile, in the one after it."""
        for attempt in range(_RETRIES):
            ranker = self._ranker
            try:
                return work(ranker)
            except StoreError:
                newer = self._store.database.setting("generation") != ranker.snapshot.generation
                if not newer or attempt == _RETRIES - 1:
                    raise
                self.reload()
        raise AssertionError("unreachable")

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
        return segments.score(self._ranker.segments, vector, rows)

    def ids_of(self, rankings: Iterable[Iterable[Ranked]]) -> dict[int, str]:
        """The users' ids of every document in some rankings."""
        return self._store.documents.ids_of({item.doc for ranking in rankings for item in ranking})

    def documents(self) -> Iterator[Document]:
        """Every document, as it was added, in the order they came."""
        for id, title, text, metadata in self._store.documents.living():
            yield Document(id, text, title=title, metadata=json.loads(metadata))

    # What belongs together

    def reload(self) -> None:
        """See what has been committed since the index was opened, or last reloaded."""
        with self._mutex:
            snapshot = self._store.snapshot()
            if snapshot.generation == self._ranker.snapshot.generation:
                return
            self._words.follow(snapshot)
            self._ranker = Ranker(self._store, snapshot, partial(self._words.of, snapshot), self._gpus)

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
