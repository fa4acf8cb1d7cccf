"""What filters, facets and look-ups read of all documents at once: ids, titles and metadata, and their checksum."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from searchkit.indexer.checksums import row_checksum
from searchkit.indexer.columns.cache import NOT_STRICT, Columns
from searchkit.indexer.conditions import Condition
from searchkit.indexer.database import Database
from searchkit.indexer.errors import REPAIR, DamagedError
from searchkit.indexer.filters import first_part, top_key
from searchkit.indexer.unicode import filterable, is_filterable, is_normalised, normalised

logger = logging.getLogger(__name__)

# Documents that filters cannot compare as they are stored, normalised once per connection; -1 notes up to where.
_TO_NORMALISE = """
    CREATE TEMP TABLE IF NOT EXISTS normalised (doc INTEGER PRIMARY KEY, title TEXT, metadata TEXT)
"""
_NORMALISE = """
    INSERT INTO temp.normalised SELECT doc, normalised(title), filterable(metadata) FROM documents
    WHERE doc >= ? AND (length(title) <> length(CAST(title AS BLOB)) OR NOT json_valid(metadata)
                        OR length(metadata) <> length(CAST(metadata AS BLOB)))
    AND (normalised(title) <> title OR filterable(metadata) <> metadata)
"""
# The limit keeps SQLite from joining again for every mention of a column.
_NORMALISED = """
    SELECT d.doc, d.id, d.first_row, d.passages, d.deleted, coalesce(n.title, d.title) AS title,
    coalesce(n.metadata, d.metadata) AS metadata
    FROM main.documents AS d LEFT JOIN temp.normalised AS n ON n.doc = d.doc ORDER BY d.doc LIMIT -1
"""


class KeyValues(NamedTuple):
    """What documents have under the first part of a metadata key.

    Args:
        name: The key as normalised metadata have it.
        top: Its first part likewise.
        docs: (n,) int64, positions of documents.
        numbers: (n,) int64, for each of them which of the values it has.
        values: Different JSON values.
    """

    name: str
    top: str
    docs: np.ndarray
    numbers: np.ndarray
    values: list[Any]


class Metadata:
    """The metadata of an index's documents, read from columns where these can tell, or else from the documents.

    Args:
        database: Where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._verified = (0, 0, 0)
        """The last purge, the position below which all documents have been read since, and their checksum."""
        self._normalised = True
        """Whether all of those have titles and metadata that filters compare as they are."""
        self.columns = Columns(database)
        self._has_functions = False  # whether SQLite has been given those that normalise

    def metadata(self) -> Iterator[str]:
        """The metadata of every living document in order, as filters read them, without comparing checksums."""
        query = "SELECT metadata FROM documents WHERE deleted = 0 ORDER BY doc"
        with self._database.snapshot() as db:
            for (metadata,) in db.execute(query):
                yield filterable(metadata)

    def any_matches(self, condition: Condition) -> bool:
        """Whether a living document passes a filter."""
        with self._database.access(), self._database.reading():
            if condition.where is not None:
                found = self.columns.matching(condition.where, 1 << 62)
                if found is not None:
                    return not np.isin(found[0], self._deleted()).all()
        return bool(self._filtered("SELECT 1", f"deleted = 0 AND ({condition.sql}) LIMIT 1", condition.parameters))

    def matching(self, condition: Condition, below: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(docs, first rows, passages), each int64, of every document below a position that passes a filter.

        Deleted ones are included.
        """
        with self._database.access(), self._database.reading():
            if condition.where is not None and (found := self.columns.matching(condition.where, below)) is not None:
                return found
            where = f"doc < ? AND ({condition.sql}) ORDER BY doc"
            rows = self._filtered("SELECT doc, first_row, passages", where, (below, *condition.parameters))
        try:
            docs, first_rows, passages = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        except (TypeError, ValueError, OverflowError) as error:
            raise self._database.damaged(f"its documents have rows that are no numbers ({error})") from error
        return docs, first_rows, passages

    def values(self, key: str, below: int) -> KeyValues:
        """What documents below a position have under the first part of a metadata key, deleted ones included.

        Args:
            key: As filters write it.
            below: The position.

        Raises:
            FilterError: No filter could name the key.
        """
        name, top, path = top_key(key)
        first = first_part(key)
        with self._database.access(), self._database.reading():
            if (found := self.columns.values(first, below)) is not None:
                docs, numbers, texts = found
                return KeyValues(name, top, docs, numbers, [json.loads(text)[first] for text in texts])
            # Of two paths, SQLite makes an array, in which true is not 1; the second one leads nowhere.
            select = "SELECT doc, json_extract(metadata, ?, '$[0]')"
            rows = self._filtered(select, "doc < ?", (path, below))
        known: dict[str, int] = {}  # most documents share their JSON with many others
        each = [known.setdefault(text, len(known)) for _, text in rows]
        docs = np.array([doc for doc, _ in rows], np.int64)
        return KeyValues(name, top, docs, np.array(each, np.int64), [json.loads(text)[0] for text in known])

    def counted_values(self, *, all_keys: bool) -> list[tuple[str, int]] | None:
        """JSON objects with one metadata key and a value each, and how many living documents have them.

        None where this takes as long as reading all metadata. Without `all_keys`, keys with very many values are left
        out.
        """
        with self._database.access(), self._database.reading():
            return self.columns.counted(self._deleted(), all_keys=all_keys)

    def _deleted(self) -> np.ndarray:
        """Positions of deleted documents, int64."""
        rows = self._database.db.execute("SELECT doc FROM documents WHERE deleted > 0").fetchall()
        return np.array(rows, dtype=np.int64).reshape(-1)

    def _filtered(self, select: str, where: str, parameters: tuple[str | int | float, ...]) -> list[Any]:
        """The rows of a query with a filter in it."""
        db = self._database.db
        with self._database.access():
            self.check_contents()
            if self._normalised:
                return db.execute(f"{select} FROM documents WHERE {where}", parameters).fetchall()
            if not self._has_functions:
                for function in (filterable, normalised):
                    db.create_function(function.__name__, 1, function, deterministic=True)
                self._has_functions = True
                # Earlier versions stored them; older SQLite refuses to read them and newer reads them as numbers.
                if db.execute("SELECT 1 FROM documents WHERE NOT json_valid(metadata) LIMIT 1").fetchone():
                    folder = self._database.folder
                    logger.warning(NOT_STRICT, folder, REPAIR)
            self._normalise()
            return db.execute(f"{select} FROM ({_NORMALISED}) WHERE {where}", parameters).fetchall()

    def _normalise(self) -> None:
        """Bring the table of normalised documents up to date; a rolled back transaction takes its note back, too."""
        db, number = self._database.db, self._database.number
        db.execute(_TO_NORMALISE)
        compacted, next_doc = number("compacted"), number("next_doc")
        noted = db.execute("SELECT title, metadata FROM temp.normalised WHERE doc = -1").fetchone()
        since, below = map(int, noted or (-1, 0))
        if (since, below) == (compacted, next_doc):
            return
        if since != compacted:
            below = 0
            db.execute("DELETE FROM temp.normalised")
        db.execute("INSERT OR REPLACE INTO temp.normalised VALUES (-1, ?, ?)", (compacted, next_doc))
        db.execute(_NORMALISE, (below,))

    # Checksums

    def check_contents(self) -> None:
        """Compare what queries read of all documents at once, ids, titles and metadata, with its checksum, once.

        A document that damage hides from a filter is not among the hits, whose own checksums are compared.
        """
        database = self._database
        with database.reading():
            compacted, next_doc, contents = (database.number(key) for key in ("compacted", "next_doc", "contents"))
            since, below, checksum = self._verified
            if since != compacted:
                below, checksum, self._normalised = 0, 0, True
            more, plain = self._read("doc >= ?", (below,))
            checksum ^= more
        if checksum != contents:
            raise self._differing()
        self._verified = (compacted, next_doc, checksum)
        self._normalised = self._normalised and plain

    def contents(self, condition: str = "1") -> int:
        """The checksum of what some documents have besides their texts, independent of their order."""
        return self._read(condition)[0]

    def _read(self, condition: str, parameters: tuple[int, ...] = ()) -> tuple[int, bool]:
        """The checksum of some documents' ids, titles and metadata, and whether filters can read these as they are."""
        query = f"SELECT doc, first_row, passages, id, title, metadata FROM documents WHERE {condition}"
        checksum, plain = 0, True
        for row in self._database.db.execute(query, parameters):
            checksum ^= row_checksum(row)
            *_, title, metadata = row
            if plain:  # str: damage may have made bytes of a text
                plain = is_normalised(str(title)) and is_filterable(str(metadata))
        return checksum, plain

    def _differing(self) -> DamagedError:
        return DamagedError(
            self._database.file,
            "is damaged: its documents differ from their checksum",
            "see what is intact with: searchkit check INDEX",
        )
