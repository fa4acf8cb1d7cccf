"""Six hundred clustered vectors, and every recipe trained on them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest

from searchkit.indexer.vectors import faiss_index
from searchkit.indexer.vectors.faiss_index import FaissIndex
from searchkit.indexer.vectors.recipes import Tuning, default_tuning, plan

COUNT, DIM = 600, 32


NAMES = [
    "flat", "fp16", "int8", "pq:8", "opq:4", "ivf-pq:8", "ivf-int8", "rabitq", "binary", "hnsw", "cagra", "pca16-pq:8",
]  # fmt: skip


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


@cache
def data() -> tuple[np.ndarray, np.ndarray]:
    """(600, 32) vectors in forty clouds and (30, 32) queries near some of them, all of unit length."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, DIM))
    rows = unit(centres[rng.integers(0, 40, COUNT)] + 0.7 * rng.standard_normal((COUNT, DIM)))
    return rows, unit(rows[rng.integers(0, COUNT, 30)] + 0.1 * rng.standard_normal((30, DIM)))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """FAISS's threads cost more than they gain with so few vectors."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@cache
def trained(name: str) -> FaissIndex:
    return faiss_index.train(plan(name, DIM, COUNT), data()[0])


def tuned(name: str, keep: bool) -> Tuning:
    return default_tuning(trained(name).plan, keep_vectors=keep)
