"""Write out the passages of an index with their vectors, as Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.engine import SearchEngine
from searchkit.errors import MissingExtraError

_BATCH = 1000  # documents in memory


def write_vectors(engine: SearchEngine, file: Path) -> int:
    """Write a Parquet file with a row for every passage; returns how many there are.

    Columns: `id`, `title`, `text` (of the passage), `start`, `stop` (characters in the document's text), `metadata` (a
    JSON object) and `vector`, (dim,) float32 of unit length, as exact as the index keeps it.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "writing Parquet needs pyarrow: pip install 'searchkit[files]'", name="pyarrow"
        ) from error
    schema = pyarrow.schema(
        [
            *((name, pyarrow.string()) for name in ("id", "title", "text")),
            *((name, pyarrow.int64()) for name in ("start", "stop")),
            ("metadata", pyarrow.string()),
            ("vector", pyarrow.list_(pyarrow.float32(), engine.dim)),
        ]
    )
    count = 0
    with parquet.ParquetWriter(file, schema) as writer:
        for passages, vectors in _passages(engine):
            columns = list(zip(*passages, strict=True))
            rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), engine.dim)
            writer.write_batch(pyarrow.record_batch([*columns, rows], schema=schema))
            count += len(passages)
    return count


def _passages(engine: SearchEngine) -> Iterator[tuple[list[tuple[Any, ...]], np.ndarray]]:
    """The passages of some documents at a time, as the columns before the vector, with their vectors."""
    documents, remaining = engine.store.documents, engine.documents()
    while batch := list(islice(remaining, _BATCH)):
        passages: list[tuple[Any, ...]] = []
        rows: list[int] = []
        for position in sorted(documents.positions_of([document.id for document in batch])):
            first, stored = documents.document(position)
            rows += range(first, first + len(stored.spans))
            passages += (
                (stored.id, stored.title, stored.text[start:stop], start, stop, stored.metadata)
                for start, stop in stored.spans
            )
        yield passages, engine.vectors_of(np.array(rows, dtype=np.int64))
