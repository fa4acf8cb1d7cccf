"""Vectors that users made themselves: checked, paired with their documents, and refused where they cannot be meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import zip_longest
from typing import Any

import numpy as np

from searchkit.errors import InputError, StoreError
from searchkit.indexer.documents import NO_VECTOR
from searchkit.indexer.vectors.similarity import SIMILARITIES, Similarity
from searchkit.records import Document, Query
from searchkit.validation import described, whole_number

MOST_DIMENSIONS = 65_536
"""Widest vectors: a segment of a thousand is 256 MB."""

MAKE = "to make one for your own vectors: SearchEngine.create(path, dim=...)"

_END = object()


def chosen_similarity(dim: object, name: str | None) -> Similarity:
    """How vectors of a width are compared; None for the cosine.

    Raises:
        InputError: There is no such similarity, or the width is none.
    """
    name = "cosine" if name is None else name
    if name not in SIMILARITIES:
        raise InputError(f"similarity is {described(name)}; expected one of {', '.join(SIMILARITIES)}")
    return Similarity(name, whole_number("dim", dim, 1, MOST_DIMENSIONS))


def check_source(folder: object, bound: str | None, source: str | None) -> None:
    """Raise StoreError where vectors are said to come from something else than those in the index."""
    if source is None or source == bound:
        return
    made = "without a name for what made its vectors" if bound is None else f"for vectors from {bound!r}"
    raise StoreError(
        f"{folder} was made {made}, now they are from {source!r}; vectors of two models cannot be compared: "
        "build another index"
    )


def attached(documents: Iterable[Document], vectors: Any, dim: int) -> Iterator[Document]:
    """Documents with their vectors, one each, in order; the row of each is noted for messages.

    Args:
        documents: In order.
        vectors: (n, dim), or as many rows one after another; None for a document without a vector.
        dim: Width of the vectors.

    Raises:
        InputError: Shapes or counts do not fit; before anything is read where that can be told.
    """
    rows = checked_rows(vectors, dim)
    if isinstance(documents, Sized) and isinstance(rows, Sized) and len(documents) != len(rows):
        raise InputError(f"{len(rows)} vectors came for {len(documents)} documents; expected one each, None for none")
    return _attached(documents, rows)


def _attached(documents: Iterable[Any], rows: Iterable[Any]) -> Iterator[Any]:
    for number, (document, row) in enumerate(zip_longest(documents, rows, fillvalue=_END)):
        if document is _END or row is _END:
            longer, shorter = ("vectors", "documents") if document is _END else ("documents", "vectors")
            raise InputError(f"there are more {longer} than {shorter}, of which {number} came; expected one each")
        if not isinstance(document, Document):
            yield document  # refused where documents are checked
            continue
        if row is not None and row is document.vector:  # it was read with the document
            yield document
            continue
        place = f"{document.place}, row {number}" if document.place else f"row {number}"
        yield replace(document, vector=row, place=place)


def checked_rows(vectors: Any, dim: int) -> Iterable[Any]:
    """Rows of vectors to iterate over; InputError where they are no rows, or an array of another width."""
    if isinstance(vectors, str | bytes | dict) or not isinstance(vectors, Iterable):
        raise InputError(f"vectors is {described(vectors)}; expected an array of (n, {dim}), or a list of rows")
    if isinstance(vectors, np.ma.MaskedArray):
        raise InputError("vectors is a masked array; put None in place of the rows that are missing")
    if hasattr(vectors, "__array__") and not isinstance(vectors, np.ndarray):  # a frame iterates over its columns
        vectors = np.asarray(vectors)
    if isinstance(vectors, np.ndarray) and vectors.dtype != object and vectors.shape[1:] != (dim,):
        raise InputError(f"vectors are {vectors.shape}; expected (n, {dim}), a row a document")
    rows: Iterable[Any] = vectors
    return rows


def as_vector(value: Any, similarity: Similarity) -> np.ndarray:
    """One vector as it is stored and compared with: (dim,) float32, of unit length for the cosine.

    Raises:
        InputError: It is not a row of finite numbers of the right width, or has no direction for the cosine.
    """
    if isinstance(value, np.ndarray) and value.dtype == np.float32 and value.shape == (similarity.dim,):
        square = float(np.square(value, dtype=np.float64).sum())  # finite only if all are
        if similarity.name == "cosine" and 0 < square < np.inf:  # the usual case, in a quarter of the time
            return np.asarray(similarity.normalized_one(value, square))
    try:
        given = np.asarray(value)
    except (TypeError, ValueError):  # rows of rows of different lengths
        raise InputError(f"vector is {described(value)}; expected {similarity.dim} numbers") from None
    if given.dtype.kind not in "fiu":
        raise InputError(f"vector has the dtype {given.dtype}; expected numbers, such as float32")
    if given.shape != (similarity.dim,):
        came = f"dimension {len(given)}" if given.ndim == 1 else f"shape {given.shape}"
        raise InputError(f"vector has {came}; expected dimension {similarity.dim}, as in the index")
    with np.errstate(over="ignore"):  # reported as Infinity
        row = given.astype(np.float32)
    if not np.isfinite(row).all():
        position = int(np.flatnonzero(~np.isfinite(row))[0])
        raise InputError(f"vector holds {given[position]} at position {position}; expected finite 32-bit numbers")
    if similarity.name == "cosine" and not row.any():
        raise InputError("vector is all zeros, which have no cosine; leave the vector out, or use another similarity")
    return np.asarray(similarity.normalized(row[None])[0])


def as_queries(vectors: Any, count: int, similarity: Similarity) -> np.ndarray:
    """Query vectors, (count, dim) float32, of unit length for the cosine.

    Raises:
        InputError: They are not as many rows as there are queries, or one of them cannot be used.
    """
    given = checked_rows(vectors, similarity.dim)
    if isinstance(given, np.ndarray) and given.shape == (count, similarity.dim) and given.dtype == np.float32:
        sound = np.isfinite(given).all() and (similarity.name != "cosine" or given.any(axis=1).all())
        if sound:  # all at once, which takes a tenth of the time
            return np.array(similarity.normalized(given), np.float32)
    rows = list(given)
    if len(rows) != count:
        raise InputError(f"{len(rows)} vectors came for {count} queries; expected one each")
    queries = np.empty((len(rows), similarity.dim), np.float32)
    for number, row in enumerate(rows):
        try:
            queries[number] = as_vector(row, similarity)
        except InputError as error:
            raise InputError(f"query {number + 1}: {error}") from None
    return queries


def brought(queries: Sequence[Query]) -> list[Any] | None:
    """The vectors that queries bring; None where none does.

    Raises:
        InputError: Some bring one and others do not.
    """
    if missing := [query for query in queries if query.vector is None]:
        if len(missing) < len(queries):
            raise InputError(f"query {missing[0].id or missing[0].text!r} has no vector, and others have one")
        return None
    return [query.vector for query in queries]


@dataclass(frozen=True, slots=True)
class OwnVectors:
    """How the vectors that documents bring are taken.

    Args:
        similarity: How they are compared.
        optional: Whether a document may come without one.
    """

    similarity: Similarity
    optional: bool


def identified(document: Document, own: OwnVectors | None) -> tuple[Document, str]:
    """A document with its vector as it is stored, and the checksum of both.

    Raises:
        InputError: Its vector cannot be used, or it has one that the index does not take.
    """
    content = document.checksum()
    if own is None:
        if document.vector is not None:
            raise InputError(f"it has a vector, but the index embeds texts with its model; {MAKE}")
        return document, content
    if document.vector is None:
        if not own.optional:
            raise InputError("it has no vector; give one for every document in vectors, None where there is none")
        return document, content + NO_VECTOR
    vector = as_vector(document.vector, own.similarity)
    digest = blake2b(vector.astype("<f4").tobytes(), digest_size=16).hexdigest()
    return replace(document, vector=vector), f"{content}:{digest}"
