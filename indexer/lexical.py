"""BM25 over passages by tantivy."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tantivy

from searchkit.indexer.allowed import AllowedRows
from searchkit.indexer.analysis import LETTERS, PAIRS, RAW, Analyzer

META = "meta.json"
"""The only file of tantivy's that changes: the list of the others."""

_TOKENIZERS = {LETTERS: "searchkit-3", PAIRS: "searchkit-2", RAW: "searchkit"}
"""Names of the tokenizer in tantivy's schema, by the generation of terms."""
_K1 = 1.2  # tantivy's, which has no setting for it
_FEW = 1000
"""Allowed rows up to which only those rows are searched, instead of all with the others dropped afterwards."""
_NO_SPACE = 1 << 20
"""Bytes that are free on a disk that is full: tantivy has removed by then what it could not finish."""
_CHEAPER = 16
"""How many hits can be dropped in the time of searching one row more."""


class LexicalIndex:
    """A BM25 index over passages with rows 0..n-1, in a folder that can always be rebuilt from the passages.

    Args:
        folder: Where tantivy keeps its files; created when missing.
        language: As :class:`searchkit.indexer.analysis.Analyzer` takes it; must be the same at every opening.
    """

    def __init__(self, folder: Path, language: str = "english") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        terms = _terms_of(folder)
        self._analyzer = Analyzer(language, terms=terms)
        schema = tantivy.SchemaBuilder()
        schema.add_text_field("text", tokenizer_name=_TOKENIZERS[terms], index_option="freq")
        schema.add_unsigned_field("row", fast=True, indexed=True)
        self._schema = schema.build()
        self._index = tantivy.Index(self._schema, path=str(folder))
        self._index.register_tokenizer(_TOKENIZERS[terms], self._analyzer.tokenizer)
        self._deleted = self._count_deleted()

    def __len__(self) -> int:
        return int(self._index.searcher().num_docs)

    def reload(self) -> None:
        """See what has been committed since."""
        self._index.reload()
        self._deleted = self._count_deleted()

    def add(self, passages: Iterable[tuple[int, str]]) -> None:
        """Add (row, text) pairs and commit; a crash keeps all of a call or nothing of it."""
        with self._committing() as writer:
            for row, text in passages:
                document = tantivy.Document()
                document.add_text("text", self._analyzer.prepare(text))
                document.add_unsigned("row", row)
                writer.add_document(document)

    def delete(self, rows: Sequence[int]) -> None:
        """Take passages out by their rows and commit; scores count them until tantivy merges their segments."""
        with self._committing() as writer:
            # A query, since its deletion by term takes numbers for signed ones, which match nothing.
            writer.delete_documents_by_query(tantivy.Query.term_set_query(self._schema, "row", rows))

    @contextmanager
    def _committing(self) -> Iterator[tantivy.IndexWriter]:
        """A writer whose work is committed at the end; OSError where its files cannot be written."""
        try:
            # One thread keeps the order of rows, and with it the order of equal scores, the same in every build.
            writer = self._index.writer(heap_size=20_000_000, num_threads=1)
            try:
                yield writer
                writer.commit()
            finally:
                writer.wait_merging_threads()
        except ValueError as error:
            if type(error) is not ValueError:  # of the passages: tantivy knows only this one
                raise
            raise self._disk_error(error) from error
        self.reload()

    def _disk_error(self, error: ValueError) -> OSError:
        """What tantivy says as a ValueError, and of a thread that failed only that it did."""
        if named := re.search(r"(?:os error|code:) (\d+)", str(error)):
            number, reason = int(named[1]), os.strerror(int(named[1]))
        elif shutil.disk_usage(self._folder).free < _NO_SPACE:
            number, reason = errno.ENOSPC, os.strerror(errno.ENOSPC)
        else:
            number, reason = errno.EIO, f"the lexical index cannot be written: {error}"
        return OSError(number, reason, str(self._folder))

    @property
    def deleted(self) -> int:
        """Passages that were taken out and still take space and count in scores."""
        return self._deleted

    def _count_deleted(self) -> int:
        # Once for all searches: a compaction may take the folder away while they go on.
        listed = json.loads((self._folder / META).read_text("utf-8"))["segments"]
        return sum(segment["deletes"]["num_deleted_docs"] for segment in listed if segment["deletes"])

    def ceiling(self, query: str) -> tuple[float, int]:
        """The highest BM25 score that a passage of usual length could have for a query, and its distinct terms.

        Every term of the query saturated would score (k1 + 1) times the sum of their inverse document frequencies; no
        passage reaches that, and four fifths of it is as much as a real one does.
        """
        terms = self._analyzer.analyze_query(query)
        searcher = self._index.searcher()
        count = searcher.num_docs + self._deleted
        frequencies = {term: searcher.doc_freq("text", term) for term in set(terms)}
        idf = {term: math.log1p((count - n + 0.5) / (n + 0.5)) for term, n in frequencies.items()}
        return 0.8 * (_K1 + 1) * sum(idf[term] for term in terms), len(idf)

    def matching(self, query: str, rows_below: int) -> np.ndarray:
        """(n,) int64, the rows below one whose passages share a term with the query, in no order."""
        searcher, terms = self._index.searcher(), self._analyzer.analyze_query(query)
        if not terms or searcher.num_docs == 0:
            return np.empty(0, np.int64)
        wanted = tantivy.Query.const_score_query(self._any_of(terms), 1.0)
        hits = searcher.search(wanted, limit=searcher.num_docs, count=False).hits
        rows = np.array(searcher.fast_field_values("row", [address for _, address in hits]), dtype=np.int64)
        return np.asarray(rows[rows < rows_below])

    def search(
        self, query: str, k: int, rows_below: int, allowed: AllowedRows | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The passages that share a term with the query.

        Args:
            query: Plain text; it has no operators.
            k: Passages to return.
            rows_below: Passages from this row on are left out: they are not committed for this reader.
            allowed: The rows that may be returned; None allows all below `rows_below`.

        Returns:
            (rows, scores): int64 and float32, at most k each, best first; equal scores by row.
        """
        terms = self._analyzer.analyze_query(query)
        searcher = self._index.searcher()
        empty = np.empty(0, np.int64), np.empty(0, np.float32)
        if not terms or k < 1 or searcher.num_docs == 0:
            return empty
        wanted = self._any_of(terms)
        share = 1.0
        if allowed is not None:
            if not allowed.count:
                return empty
            share = allowed.count / len(allowed)
        if allowed is not None and allowed.count <= max(_FEW, math.sqrt(k * searcher.num_docs / _CHEAPER)):
            share = 1.0
            # Not term_set_query, which takes three times as long.
            one_of = [
                (tantivy.Occur.Should, tantivy.Query.term_query(self._schema, "row", row))
                for row in allowed.positions.tolist()
            ]
            rows_only = tantivy.Query.boolean_query(one_of)
            wanted = tantivy.Query.boolean_query(
                [
                    (tantivy.Occur.Must, wanted),
                    (tantivy.Occur.Must, tantivy.Query.const_score_query(rows_only, 0.0)),
                ]
            )
        # Hits that are not allowed are dropped afterwards: fetch as many more as expected, plus two deviations.
        depth = 1 + math.ceil((k + 2 * math.sqrt(k * (1 - share))) / share) + max(0, searcher.num_docs - rows_below)
        while True:
            hits: list[Any] = searcher.search(wanted, limit=depth, count=False).hits
            if not hits:
                return empty
            rows = np.array(searcher.fast_field_values("row", [address for _, address in hits]), dtype=np.int64)
            scores = np.array([score for score, _ in hits], dtype=np.float32)
            kept = rows < rows_below
            if allowed is not None:
                kept[kept] = allowed.mask[rows[kept]]
            order = np.lexsort((rows[kept], -scores[kept]))[:k]
            # Of hits that tie at the cut tantivy returns any: look deeper until the tie ends.
            if len(hits) < depth or (len(order) == k and scores[-1] < scores[kept][order[-1]]):
                return rows[kept][order], scores[kept][order]
            depth *= 8

    def _any_of(self, terms: Sequence[str]) -> tantivy.Query:
        # A repeated term counts each time, as BM25 defines it.
        parts = [
            (tantivy.Occur.Should, tantivy.Query.term_query(self._schema, "text", term, index_option="freq"))
            for term in terms
        ]
        return tantivy.Query.boolean_query(parts)


def has_current_terms(folder: Path) -> bool:
    """Whether the index in a folder, if there is one, takes terms as a new one would."""
    return _terms_of(folder) == LETTERS


def _terms_of(folder: Path) -> int:
    """The generation of an index's terms, by its schema; the latest where there is no index yet."""
    try:
        schema = (folder / META).read_text("utf-8")
    except (OSError, ValueError):  # missing, or damaged: tantivy says so
        return LETTERS
    return next((terms for terms, name in _TOKENIZERS.items() if f'"{name}"' in schema), LETTERS)
