"""On real GPUs; skipped where FAISS sees none."""

from __future__ import annotations

import logging
from pathlib import Path

import faiss
import numpy as np
import pytest
from gpus import many, on_device, on_gpu
from stored import InMemory, built

from searchkit.indexer.vectors import faiss_copies as copies
from searchkit.indexer.vectors import faiss_gpu as gpu
from searchkit.indexer.vectors.faiss_index import FaissBackend
from searchkit.indexer.vectors.recipes import Tuning, plan
from searchkit.indexer.vectors.search import search

__all__ = ["many"]  # a fixture

pytestmark = pytest.mark.skipif(not getattr(faiss, "get_num_gpus", int)(), reason="faiss sees no GPU here")
CUVS = ["cagra"] if hasattr(faiss, "GpuIndexCagra") else []
BY_GPUS = ["ivf-pq:8", "ivf-int8", "opq:8"]
ON_GPUS = ["flat", "fp16", "int8", "pq:8", *BY_GPUS, "binary", *CUVS]


@pytest.mark.parametrize("recipe", ON_GPUS)
def test_gpus_answer_as_the_cpu_does(recipe: str, many: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    index = built(recipe, many)
    tuning = Tuning(probes=max(1, index.plan.lists))
    expected, scores = search([InMemory(index)], many[:50], 10, tuning=tuning)
    there = on_gpu(index)
    with caplog.at_level(logging.WARNING):
        rows, found = search([InMemory(there)], many[:50], 10, tuning=tuning)
    assert not caplog.records
    assert there.copy is not None
    np.testing.assert_allclose(found, scores, atol=5e-3)
    same = np.mean([len({*mine} & {*theirs}) / 10 for mine, theirs in zip(rows, expected, strict=True)])
    assert same > {"binary": 0.5, "cagra": 0.9}.get(recipe, 0.97)  # ties; another graph; float16 tables


@pytest.mark.parametrize("recipe", [*BY_GPUS, *CUVS])
def test_what_a_gpu_trained_and_encoded_is_read_by_the_cpu(
    recipe: str, many: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "ENCODED_FROM", 1)
    chosen = plan(recipe, 32, len(many))
    on_device(chosen, [many]).save(tmp_path / "dense.faiss")
    again = FaissBackend().open(tmp_path / "dense.faiss", chosen)
    assert len(again) == len(many)
    rows, _ = search([InMemory(again)], many[:50], 10, tuning=Tuning(probes=max(1, chosen.lists)))
    assert np.mean([n in row for n, row in enumerate(rows)]) > 0.8


def test_brute_force_on_a_gpu_returns_what_the_cpu_returns(many: np.ndarray) -> None:
    _, rows = copies.exact(many.astype(np.float16), many[:50], 1, copies.gpu_knn(), 700)
    np.testing.assert_array_equal(rows[:, 0], np.arange(50))
