"""Adds documents to a place that can be searched."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from searchkit.errors import InputError, StoreError
from searchkit.ingest import (
    COMMIT_EVERY,
    AddReport,
    Committer,
    Known,
    OnProgress,
    OnRefused,
    add_texts,
    add_vectors,
    new_documents,
)
from searchkit.own_vectors import MAKE, OwnVectors, attached, check_source
from searchkit.records import Document
from searchkit.searcher import Searcher
from searchkit.validation import check_optional_text, whole_number


class Writer(Searcher):
    """A searcher that adds documents, too: validated, split, embedded and committed alike wherever they go."""

    @abstractmethod
    def delete(
        self, ids: Iterable[str] = (), *, where: Mapping[str, Any] | None = None, dry_run: bool = False
    ) -> tuple[int, list[str]]:
        """Delete documents by id, by a filter on their metadata, or both; they disappear from results immediately.

        Args:
            ids: Ids of documents; unknown ones are returned.
            where: A filter (see :mod:`searchkit.indexer.filters`).
            dry_run: Only count.

        Returns:
            (documents deleted, ids that the index does not hold).

        Raises:
            FilterError: The filter cannot be understood, or a negated condition holds for every document because its
                key is unknown or its value of another type than what is stored.
        """

    @abstractmethod
    def _changing(self) -> AbstractContextManager[None]:
        """One change at a time; what was committed can be searched, however the change ends.

        Raises:
            StoreError: It was opened for reading only, or somebody else is writing.
        """

    @property
    @abstractmethod
    def _known(self) -> Known:
        """The documents that there are."""

    def _ahead(self, documents: Iterable[Document]) -> Iterable[Document]:
        """The same documents; a place that is far away looks several up at a time."""
        return documents

    @abstractmethod
    def _commits(self, report: AddReport, every: int, on_progress: OnProgress | None) -> Committer:
        """What commits documents."""

    def check_settings(
        self, *, chunk_tokens: int | None = None, overlap: int | None = None, language: str | None = None
    ) -> None:
        """Raise StoreError when the index was made with other settings than these; None is not compared."""
        for name, value in {"chunk_tokens": chunk_tokens, "overlap": overlap, "language": language}.items():
            if value is not None and value != self.settings[name]:
                raise StoreError(
                    f"{self.name} was built with {name} {self.settings[name]}, now it is {value}; "
                    "omit it, or build another index"
                )

    def check_vectors(
        self, *, dim: int | None = None, similarity: str | None = None, vectors_from: str | None = None
    ) -> None:
        """Raise StoreError when the index holds other vectors than these; None is not compared."""
        name, stored = self.name, self.similarity
        if self.has_model:
            if any(value is not None for value in (dim, similarity, vectors_from)):
                raise StoreError(f"{name} embeds texts with its model and takes no vectors; {MAKE}")
            return
        check_source(name, self.settings["vectors_from"], vectors_from)
        for argument, value, held in (("dim", dim, stored.dim), ("similarity", similarity, stored.name)):
            if value is not None and value != held:
                raise StoreError(
                    f"{name} was built with {argument} {held}, now it is {value}; omit it, or build another"
                )

    def add(
        self,
        documents: Iterable[Document],
        *,
        vectors: Any = None,
        vectors_from: str | None = None,
        update: bool = False,
        on_refused: OnRefused | None = None,
        on_progress: OnProgress | None = None,
        commit_every: int = COMMIT_EVERY,
    ) -> AddReport:
        """Add documents; those that the index already holds with equal content are left as they are.

        Memory is bounded by `commit_every` passages, whatever the number of documents. If this is interrupted at any
        moment, call it again with the same documents: what was committed is neither lost nor embedded again.

        Args:
            documents: Read once, in order.
            vectors: Their vectors, where no model makes them: (n, dim) numbers, or as many rows one after another, with
                None for a document that is only to be found lexically. None takes `Document.vector` of each.
            vectors_from: What made them; it must be the name that the index was made with.
            update: Replace a document that has the same id and other content; otherwise it is refused.
            on_refused: Called with a document that cannot be added, and the reason; None raises instead.
            on_progress: Called now and then with (documents, passages) done so far.
            commit_every: Passages a commit; one also falls after some seconds.

        Raises:
            InputError: A document or its vector cannot be stored, its id came twice, or the index holds it with other
                content and `update` is False.
            StoreError: The index is open for reading only, or holds vectors that something else made.
        """
        began = time.monotonic()
        commit_every = whole_number("commit_every", commit_every, 1)
        check_optional_text("vectors_from", vectors_from)
        self._check_open()
        self.check_vectors(vectors_from=vectors_from)
        report = AddReport()
        own = None if self.has_model else OwnVectors(self.similarity, optional=vectors is not None)
        if vectors is not None:
            if own is None:
                raise InputError(f"{self.name} embeds texts with its model and takes no vectors; {MAKE}")
            documents = attached(documents, vectors, self.dim)
        with self._changing():
            new = new_documents(self._ahead(documents), self._known, report, on_refused, update=update, own=own)
            commits = self._commits(report, commit_every, on_progress)
            if own is not None:
                add_vectors(commits, new, self.dim)
                report.seconds = time.monotonic() - began
                return report
            before = replace(self.embedder.stats)
            add_texts(commits, new, self.embedder, self.settings["chunk_tokens"], self.settings["overlap"])
            report.truncated = self.embedder.stats.truncated - before.truncated
            report.unreadable = self.embedder.stats.unreadable - before.unreadable
        report.seconds = time.monotonic() - began
        return report
