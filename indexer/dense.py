"""Exact inner-product search over float32 rows with FAISS, one immutable file a segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise ImportError(
            "vector search needs faiss: pip install 'searchkit[cpu]' or 'searchkit[gpu]'", name="faiss"
        ) from error
    return faiss


def build(vectors: np.ndarray) -> Any:
    """A FAISS index that holds `vectors` (n, dim) float32 as they are."""
    faiss = _faiss()
    # index_factory() and most constructors default to L2, whose distances are not similarities.
    index = faiss.IndexFlat(vectors.shape[1], faiss.METRIC_INNER_PRODUCT)
    index.add(np.ascontiguousarray(vectors, dtype=np.float32))
    return index


def join(files: Sequence[Path]) -> Any:
    """One index with the rows of several files, in their order."""
    parts = [read(file) for file in files]
    # Filled in place: an index that grows by adding takes up to three times its size meanwhile.
    vectors = np.empty((sum(part.ntotal for part in parts), parts[0].d), dtype=np.float32)
    first = 0
    while parts:
        part = parts.pop(0)
        vectors[first : first + part.ntotal] = vectors_of(part)
        first += part.ntotal
    return build(vectors)


def write(index: Any, file: Path) -> None:
    """Write to a new file. FAISS truncates its target in place, so never give it a file that is still needed."""
    if file.exists():
        raise FileExistsError(f"{file} exists; a segment is written once")
    _faiss().write_index(index, str(file))


def read(file: Path) -> Any:
    """Open a file written by `write`, memory-mapped; check its checksum first, since FAISS trusts what it reads."""
    faiss = _faiss()
    return faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)


def vectors_of(index: Any) -> np.ndarray:
    """The rows of an index made by `build`, (n, dim) float32."""
    return np.asarray(index.reconstruct_n(0, index.ntotal)) if index.ntotal else np.empty((0, index.d), np.float32)


@dataclass(frozen=True, slots=True)
class Segment:
    """The rows ``first_row .. first_row + index.ntotal - 1`` of the whole."""

    first_row: int
    index: Any


def search(segments: Sequence[Segment], queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows over all segments.

    Args:
        segments: What to search; together they hold n rows.
        queries: (n_queries, dim) float32, unit length where rows are.
        k: Rows a query.

    Returns:
        (rows, scores): int64 and float32, each (n_queries, min(k, n)), best first; equal scores by row.
    """
    total = sum(segment.index.ntotal for segment in segments)
    k = min(k, total)
    if k == 0 or len(queries) == 0:
        return np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if queries.shape[1] != segments[0].index.d:
        raise ValueError(
            f"queries are {queries.shape[1]} wide but the index holds rows of {segments[0].index.d}; "
            "embed them with the model that the index was built with"
        )
    depth = k + 1
    rows, scores, unsure = _search_to(depth, segments, queries, k)
    # Of rows that tie at its cut FAISS keeps any: look deeper until the tie ends.
    while len(tied := np.flatnonzero(unsure)):
        depth *= 8
        rows[tied], scores[tied], unsure[tied] = _search_to(depth, segments, queries[tied], k)
    return rows, scores


def _search_to(
    depth: int, segments: Sequence[Segment], queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k best of `depth` rows a segment; and for each query whether an equal of the last one may be left out."""
    rows, scores, lowest = [], [], np.full(len(queries), -np.inf, dtype=np.float32)
    for segment in segments:
        # Asked for more than it holds, FAISS returns row -1.
        found_scores, found = segment.index.search(queries, min(depth, segment.index.ntotal))
        rows.append(found + segment.first_row)
        scores.append(found_scores)
        if depth < segment.index.ntotal:
            lowest = np.maximum(lowest, found_scores[:, -1])
    all_rows, all_scores = np.concatenate(rows, axis=1), np.concatenate(scores, axis=1)
    order = np.lexsort((all_rows, -all_scores), axis=1)[:, :k]
    best = np.take_along_axis(all_scores, order, 1)
    return np.take_along_axis(all_rows, order, 1), best, lowest >= best[:, -1]


def score(segments: Sequence[Segment], query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The inner product of one query (dim,) with some rows (n,), as (n,) float32."""
    scores = np.empty(len(rows), dtype=np.float32)
    for segment in segments:
        inside = (rows >= segment.first_row) & (rows < segment.first_row + segment.index.ntotal)
        if inside.any():
            scores[inside] = segment.index.reconstruct_batch(rows[inside] - segment.first_row) @ query
    return scores
