"""Write out the passages of an index with their vectors, as Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.engine import SearchEngine
from searchkit.errors import MissingExtraError
from searchkit.new_folder import PART

_BATCH = 1000  # documents in memory


def write_vectors(engine: SearchEngine, file: Path) -> int:
    """Write a Parquet file with a row for every passage, whole or not at all; returns how many there are.

    Columns: `id`, `title`, `text` (of the passage), `start`, `stop` (characters in the document's text), `metadata` (a
    JSON object) and `vector`, (dim,) float32, as exact as the index keeps it; of unit length for the cosine. Where
    users made the vectors, documents are whole and some vectors null: without `start` and `stop`, the file can be
    indexed again.

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
            *((name, pyarrow.int64()) for name in (("start", "stop") if engine.has_model else ())),
            ("metadata", pyarrow.string()),
            ("vector", pyarrow.list_(pyarrow.float32(), engine.dim)),
        ]
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + PART)  # an earlier file stays until the new one is complete
    count = 0
    try:
        with parquet.ParquetWriter(part, schema) as writer:
            for passages, vectors, present in _passages(engine):
                columns = list(zip(*passages, strict=True))
                flat = pyarrow.array(vectors.ravel())
                rows = pyarrow.FixedSizeListArray.from_arrays(flat, engine.dim, mask=pyarrow.array(~present))
                writer.write_batch(pyarrow.record_batch([*columns, rows], schema=schema))
                count += len(passages)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    part.replace(file)
    return count


def _passages(engine: SearchEngine) -> Iterator[tuple[list[tuple[Any, ...]], np.ndarray, np.ndarray]]:
    """The passages of some documents at a time: the columns before the vector, vectors, and which there are."""
    documents, remaining = engine.store.documents, engine.documents()
    while batch := list(islice(remaining, _BATCH)):
        passages: list[tuple[Any, ...]] = []
        rows: list[int] = []
        present: list[bool] = []
        for position in sorted(documents.positions_of([document.id for document in batch])):
            first, stored = documents.document(position)
            rows += range(first, first + len(stored.spans))
            present += [stored.has_vectors] * len(stored.spans)
            for start, stop in stored.spans:
                place = (start, stop) if engine.has_model else ()
                passages.append((stored.id, stored.title, stored.text[start:stop], *place, stored.metadata))
        mask = np.array(present, dtype=bool)
        vectors = np.zeros((len(rows), engine.dim), np.float32)
        vectors[mask] = engine.vectors_of(np.array(rows, dtype=np.int64)[mask])
        yield passages, vectors, mask
