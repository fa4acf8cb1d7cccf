"""Build an index from documents, change it, and search it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

from searchkit.binding import ModelChoice, chosen_model
from searchkit.codebook import take_over
from searchkit.errors import FilterError, InputError, StoreError
from searchkit.indexer.analysis import Analyzer
from searchkit.indexer.conditions import Condition
from searchkit.indexer.database import OWN_VECTORS
from searchkit.indexer.filters import compile_filter
from searchkit.indexer.rewriting import rewrite
from searchkit.indexer.store import Store
from searchkit.indexer.vectors.devices import make_backend
from searchkit.indexer.vectors.recipes import Plan, Tuning, default_tuning, plan
from searchkit.indexer.vectors.similarity import Similarity
from searchkit.ingest import COMMIT_EVERY, AddReport, Commits, Known, OnProgress, chunk_settings
from searchkit.models.embedder import DEFAULT_MODEL, Embedder
from searchkit.open_index import OpenIndex
from searchkit.own_vectors import chosen_similarity
from searchkit.validation import check_optional_text, check_text, checked_ids, checked_path, described
from searchkit.writer import Writer

__all__ = ["COMMIT_EVERY", "AddReport", "SearchEngine"]


class SearchEngine(Writer, OpenIndex):
    """An index folder with the model that belongs to it. Make one with `create` or `open`.

    Threads may share an engine: they search at the same time and write in turn.
    """

    def __init__(self, store: Store, model: Embedder | ModelChoice) -> None:
        super().__init__(store, model)
        self._writing = RLock()

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        model: Embedder | str | Path | None = None,
        dim: int | None = None,
        similarity: str | None = None,
        vectors_from: str | None = None,
        chunk_tokens: int | None = None,
        overlap: int | None = None,
        language: str | None = None,
        device: str | None = None,
        exist_ok: bool = False,
    ) -> SearchEngine:
        """Make an empty index and open it for writing.

        Args:
            path: Folder to make.
            model: What embeds passages and queries; the index is bound to it. None for the default model.
            dim: Width of vectors that you make yourself, instead of a model: `add` and `search` take them, and every
                document is one passage.
            similarity: How your vectors are compared: "cosine" (they are stored at unit length), "inner-product" or
                "euclidean" (scores are the negative distance). None for the cosine.
            vectors_from: A name for what makes your vectors; others are refused.
            chunk_tokens: Longest passage in tokens; None for what the model takes, at most 512; 0 keeps documents
                whole, so that only lexical search sees what exceeds the model's length.
            overlap: Tokens shared by neighbouring passages; None for an eighth of a passage.
            language: Language of stemming and stop words, "none" for neither; None for English. With "+fold" after it,
                accents are ignored: "french+fold".
            device: See `open`.
            exist_ok: Open the index if it exists; other arguments must then be what it was made with.

        Raises:
            StoreError: Something else exists at `path`, or an index with other settings.
            InputError: An argument cannot be used.
        """
        folder = checked_path("path", path)
        check_optional_text("device", device)
        check_optional_text("vectors_from", vectors_from)
        own = _own_similarity(model, dim, similarity, vectors_from, chunk_tokens, overlap)
        if (folder / "index.db").is_file():
            if not exist_ok:
                raise StoreError(f"{folder} is an index already; open it, or choose another path")
            engine = cls.open(folder, model=model, vectors_from=vectors_from, device=device, writable=True)
            try:
                engine.check_settings(chunk_tokens=chunk_tokens, overlap=overlap, language=language)
                engine.check_vectors(dim=dim, similarity=similarity)
            except BaseException:
                engine.close()
                raise
            return engine
        chosen: Embedder | ModelChoice = ModelChoice(None, None, device, "auto", None)
        settings: dict[str, Any] = {"language": language or "english"}
        Analyzer(settings["language"])  # an unknown language is reported before anything is made
        if own is None:
            chosen = model if isinstance(model, Embedder) else Embedder(model or DEFAULT_MODEL, device=device)
            settings |= {"model": chosen.identity(), **chunk_settings(chosen, chunk_tokens, overlap)}
            width = chosen.dim
        else:
            settings |= {"format": OWN_VECTORS, "model": None, "vectors_from": vectors_from}
            settings |= {"chunk_tokens": 0, "overlap": 0}
            width = own.width
        store = Store.create(folder, settings, dim=width, similarity=own, backend=make_backend(device))
        return cls(store, chosen)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: Embedder | str | Path | None = None,
        adapter: str | Path | None = None,
        vectors_from: str | None = None,
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
            vectors_from: What makes the vectors that will be given; it must be the name that the index was made with.
            device: Where the model runs, None for the best available; with "cuda" or "cuda:1", vectors are also
                trained on, encoded and searched there, as far as the installed FAISS can.
            dtype: What the model computes in.
            threads: CPU threads it computes on; None for its runtime's default.
            replicate: Give each of several GPUs all vectors instead of a share of them.
            writable: Take the writer's lock, to add, delete or compact.

        Raises:
            StoreError: There is no sound index at `path`, or it was built with another model.
        """
        folder = checked_path("path", path)
        check_optional_text("vectors_from", vectors_from)
        chosen = chosen_model(model, adapter, device, dtype, threads)
        store = Store(folder, writable=writable, backend=make_backend(device, replicate=replicate))
        try:
            engine = cls(store, chosen)
            engine.check_vectors(vectors_from=vectors_from)
            return engine
        except BaseException:
            store.close()
            raise

    @property
    def _known(self) -> Known:
        return self._store.documents

    def _commits(self, report: AddReport, every: int, on_progress: OnProgress | None) -> Commits:
        return Commits(self._store, self._lexical, self._ranker.snapshot, report, every, on_progress)

    def delete(
        self, ids: Iterable[str] = (), *, where: Mapping[str, Any] | None = None, dry_run: bool = False
    ) -> tuple[int, list[str]]:
        """Delete documents by id, by a filter on their metadata, or both; see `Writer.delete`."""
        ids = checked_ids(ids)
        condition = None if where is None else compile_filter(where)
        self._check_open()
        if where is not None and (faults := [fault for fault in self.filter_faults(where) if fault.always]):
            raise FilterError(faults[0].message)
        known = self._store.documents.known_ids(ids)
        if dry_run:
            deleted = len(self._selected(ids, condition))
        else:
            with self._changing():
                docs = self._selected(ids, condition)
                deleted = self._store.delete(docs) if docs else 0
        return deleted, [id for id in ids if id not in known]

    def _selected(self, ids: list[str], condition: Condition | None) -> list[int]:
        """Positions of the documents with these ids and of those that match a filter."""
        docs = set(self._store.documents.positions_of(ids))
        if condition is not None:
            docs.update(self._store.matching(condition, self._store.snapshot())[0].tolist())
        return sorted(docs)

    def compact(self, *, erase: bool = False) -> int:
        """Free the space of deleted documents and merge segments, in one commit.

        Where nothing has been deleted, segments are all that is written.

        Args:
            erase: Leave nothing of deleted documents in any file. The lexical index, which otherwise keeps their words
                until they are more than a tenth of all, is built anew, and so is the database.

        Returns:
            How many passages were removed.
        """
        with self._changing():
            snapshot = self._store.snapshot()
            left = erase and self._lexical.index_of(snapshot).deleted
            purge = bool(len(snapshot.dead_docs) or left) or not self._lexical.current(snapshot)
            if purge or len(snapshot.segments) > 1:
                rewrite(
                    self._store,
                    self._store.template(),
                    keep_vectors=snapshot.storage.keep_vectors,
                    purge=purge,
                    make_lexical=partial(self._lexical.write_living, snapshot, anew=erase) if purge else None,
                )
            if erase:
                self._store.database.rewrite()
        return len(snapshot.dead)

    def store_as(self, recipe: str, *, keep_vectors: bool = True, tuning: Tuning | None = None, seed: int = 0) -> Plan:
        """Store all vectors by another recipe, without embedding anything again, in one commit.

        Args:
            recipe: A name of :data:`searchkit.indexer.vectors.recipes.RECIPES`, with bytes where it has codes: "pq:48".
            keep_vectors: Keep half-precision vectors too, for exact scores and later recipes; False takes least space.
            tuning: How hard to search from now on; None for what suits the recipe.
            seed: Of the sample that the recipe is trained on.

        Raises:
            InputError: There is no such recipe, too few vectors to train it, or the vectors were dropped before.
        """
        check_text("recipe", recipe)
        if tuning is not None and not isinstance(tuning, Tuning):
            raise InputError(f"tuning is {described(tuning)}; expected a Tuning, or None for what suits the recipe")
        with self._changing():
            snapshot = self._store.snapshot()
            chosen = plan(recipe, snapshot.storage.plan.dim, max(1, sum(part.count for part in snapshot.segments)))
            if not all(segment.keeps_vectors for segment in snapshot.segments):
                raise InputError(
                    f"{self._store.folder} keeps no vectors beside its {self._ranker.plan.spelling} codes, and codes "
                    "made of codes would silently be worse; index the corpus again"
                )
            template = self._store.backend.train(chosen, self.sample(chosen.wanted, seed=seed))
            tuning = tuning or default_tuning(chosen, keep_vectors=keep_vectors)
            rewrite(self._store, template, keep_vectors=bool(keep_vectors), tuning=tuning)
        return chosen

    def store_like(self, other: str | Path) -> Plan:
        """Store all vectors as another index does, by its codebook, in one commit; nothing where they are already.

        Args:
            other: An index of the same model, such as `searchkit train-recipe` makes, or another part of the corpus.

        Raises:
            InputError: It has another model, or the vectors were dropped before.
        """
        with Store(checked_path("other", other)) as source, self._changing():
            take_over(self._store, source)
        return self.storage.plan

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time; what was committed can be searched, however the change ends."""
        self._check_open()
        self._store.database.check_writable()
        with self._writing:
            try:
                yield
            finally:
                self.reload()


def _own_similarity(
    model: object,
    dim: int | None,
    similarity: str | None,
    vectors_from: str | None,
    chunk_tokens: int | None,
    overlap: int | None,
) -> Similarity | None:
    """How vectors are compared that an index is to hold; None where a model makes them."""
    if dim is None:
        if similarity is None and vectors_from is None:
            return None
        raise InputError("similarity and vectors_from are for vectors of your own: give their width too, dim=768")
    if model is not None:
        raise InputError(
            "both model and dim came: dim is the width of vectors that you make yourself, without a model; to shorten "
            "those of a model: model=Embedder(name, dim=...)"
        )
    if chunk_tokens or overlap:
        raise InputError("documents with vectors of their own are not split; omit chunk_tokens and overlap")
    return chosen_similarity(dim, similarity)
