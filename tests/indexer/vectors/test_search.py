"""How many candidates of compressed vectors are scored again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from searchkit.indexer.documents import NewDocument
from searchkit.indexer.rewriting import rewrite
from searchkit.indexer.store import Store
from searchkit.indexer.vectors.recipes import Tuning, plan
from searchkit.indexer.vectors.search import candidates, search


def test_candidates_grow_with_the_index() -> None:
    counts = [candidates(10, rows, Tuning(rerank=10)) for rows in (1_000, 100_000, 1_000_000, 10_000_000)]
    assert counts == [100, 100, 316, 1_000]
    assert candidates(200, 10_000_000, Tuning(rerank=10)) == 2_000
    assert candidates(10, 10_000_000, Tuning(rerank=0)) == 10


def test_of_rows_with_codes_as_near_the_nearest_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4_000, 16), dtype=np.float32) * 0.1 + 1
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with Store.create(tmp_path / "index", {}, dim=16) as store:
        store.commit([NewDocument(str(n), "", "a", json.dumps({}), "", [(0, 1)]) for n in range(4_000)], rows)
        template = store.backend.train(plan("pq:8", 16, 4_000), rows)
        rewrite(store, template, keep_vectors=True)
        segments, queries = store.snapshot().segments, rows[:100]
        found = {rerank: search(segments, queries, 1, tuning=Tuning(rerank=rerank))[0][:, 0] for rerank in (0, 1)}
    recall = {rerank: float(np.mean(found[rerank] == np.arange(100))) for rerank in found}
    assert recall[1] > max(0.6, 2 * recall[0])
