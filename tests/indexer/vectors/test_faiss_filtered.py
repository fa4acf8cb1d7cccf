"""Filtered searches of inverted files, where a sample tells what each list holds."""

from __future__ import annotations

import numpy as np
import pytest

from searchkit.indexer.allowed import AllowedRows
from searchkit.indexer.vectors import faiss_filtered
from searchkit.indexer.vectors.faiss_index import FaissBackend
from searchkit.indexer.vectors.recipes import Tuning, plan


def test_a_sample_of_the_lists_finds_what_all_of_them_do(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    topics = rng.standard_normal((40, 16), dtype=np.float32)
    topic = rng.integers(40, size=20_000)
    rows = topics[topic] + 0.5 * rng.standard_normal((20_000, 16), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    mask = (topic < 12) & (rng.random(20_000) < 0.7)  # no list of the other topics holds many
    queries = rows[rng.choice(20_000, 50)]
    truth = np.argsort(-np.where(mask, queries @ rows.T, -2), axis=1)[:, :10]

    index = FaissBackend().train(plan("ivf-int8", 16, 20_000), rows)
    index.add(rows)
    lists = index._lists
    assert lists.every == 1
    assert lists.counted(mask).sum() == mask.sum()
    found = {}
    for sample in (faiss_filtered.SAMPLE, 10_000):
        monkeypatch.setattr(faiss_filtered, "SAMPLE", sample)
        index.__dict__.pop("_lists")
        positions, _ = index.search(queries, 10, tuning=Tuning(probes=8), allowed=AllowedRows(mask))
        assert mask[positions].all()
        found[index._lists.every] = np.mean([len({*a} & {*b}) / 10 for a, b in zip(positions, truth, strict=True)])
    assert set(found) == {1, 2}
    assert found[2] >= found[1] - 0.02
    assert found[1] > 0.8
    sampled = index._lists.counted(mask)
    assert abs(sampled.sum() - mask.sum()) < 0.1 * mask.sum()
