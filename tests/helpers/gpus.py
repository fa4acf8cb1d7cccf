"""Two thousand vectors, and indexes of FAISS with copies on GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from clouds import unit

from searchkit.indexer.vectors.faiss_gpu import GpuBackend, GpuIndex
from searchkit.indexer.vectors.faiss_index import FaissBackend, FaissIndex
from searchkit.indexer.vectors.recipes import Plan


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    """(2000, 32) float32 unit rows."""
    return unit(np.random.default_rng(0).standard_normal((2000, 32)).astype(np.float32))


def on_gpu(index: FaissIndex, copy: Any = None) -> GpuIndex:
    """An index with a copy; None makes one when it is first searched."""
    there = GpuIndex(index.plan, index.raw, [0])
    if copy is not None:
        there._copy, there._tried = copy, True
    return there


def on_device(chosen: Plan, vectors: Sequence[np.ndarray], devices: Sequence[int] = (0,)) -> FaissIndex:
    """Trained and built where an engine with these devices does it."""
    backend = GpuBackend(devices) if devices else FaissBackend()
    every = np.concatenate(vectors)
    index = backend.build(backend.train(chosen, every), vectors, len(every))
    assert isinstance(index, FaissIndex)
    return index
