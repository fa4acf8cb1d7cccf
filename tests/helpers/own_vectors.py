"""Indexes of vectors that users made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from searching import ids

from searchkit.engine import SearchEngine
from searchkit.records import Document, Hit

DIM = 16


def documents(count: int) -> list[Document]:
    """Notes on five topics."""
    return [Document(str(n), f"note {n} on topic{n % 5}", metadata={"n": n}) for n in range(count)]


def drawn(count: int, seed: int = 0) -> np.ndarray:
    """(count, DIM) float32, of any length."""
    return np.random.default_rng(seed).normal(0.1, 1, (count, DIM)).astype(np.float32)


def scores(similarity: str, vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The oracle, in double precision."""
    vectors, query = vectors.astype(float), query.astype(float)
    if similarity == "euclidean":
        return np.asarray(-np.linalg.norm(vectors - query, axis=1))
    products = vectors @ query
    if similarity == "cosine":
        products = products / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    return np.asarray(products)


def made(folder: Path, similarity: str = "cosine", **settings: Any) -> SearchEngine:
    """An empty index."""
    return SearchEngine.create(folder / "own.index", dim=DIM, similarity=similarity, **settings)


def check_ranking(hits: list[Hit], rows: np.ndarray, expected: np.ndarray, k: int) -> None:
    """The hits are those of the best scores, with these scores; ids are numbers."""
    order = np.argsort(-expected, kind="stable")[:k]
    assert ids(hits) == [str(rows[n]) for n in order]
    np.testing.assert_allclose([hit.score for hit in hits], expected[order], rtol=2e-6, atol=2e-6)
