"""Arrays of vectors that users made, as numpy writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from searchkit.errors import CorpusError
from searchkit.readers.lines import existing
from searchkit.readers.rejects import Rejects
from searchkit.readers.rows import ReadReport
from searchkit.records import Document


def read_array(path: Path | str) -> np.ndarray:
    """The rows of an .npy file, (n, dim), memory-mapped; a single vector is one row.

    Raises:
        CorpusError: It is no such file, or holds something else than rows of numbers.
    """
    path = existing(path)
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise CorpusError(f"{path}: no array of numbers as numpy.save() writes it ({error})") from None
    if not isinstance(rows, np.ndarray):
        raise CorpusError(f"{path}: an archive of arrays; save one of them with numpy.save()")
    if rows.dtype.kind not in "fiu" or rows.ndim not in (1, 2):
        raise CorpusError(f"{path}: an array of {rows.dtype} in the shape {rows.shape}; expected (n, dim) numbers")
    return rows if rows.ndim == 2 else rows[None]


def parse_vectors(text: str) -> np.ndarray:
    """Vectors (n, dim) from a JSON list, or from an .npy file.

    Raises:
        CorpusError: It is neither.
    """
    if not text.lstrip().startswith("["):
        return read_array(text)
    try:
        rows = np.array(json.loads(text), dtype=np.float64)
    except (TypeError, ValueError, RecursionError) as error:
        raise CorpusError(f"the vector is no JSON list of numbers ({error})") from None
    if rows.ndim not in (1, 2):
        raise CorpusError(f"the vector is a list in the shape {rows.shape}; expected numbers, or lists of them")
    return rows if rows.ndim == 2 else rows[None]


def check_count(documents: Iterable[Document], rejects: Rejects, report: ReadReport, rows: np.ndarray) -> None:
    """Raise CorpusError unless a corpus, which is read to its end, has as many rows as an array, all of them good."""
    count = sum(1 for _ in documents)
    if rejects.count:
        raise CorpusError(
            f"{rejects.summary(report.rows)}; vectors are matched with rows by their order, so every row must be "
            "readable: correct it, or put the vectors into the rows"
        )
    if count != len(rows):
        raise CorpusError(f"{len(rows)} vectors for {count} documents; expected one each, in the same order")
