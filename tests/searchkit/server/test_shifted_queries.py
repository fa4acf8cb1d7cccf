"""The service with a model that shifts queries by their instruction."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import numpy as np

from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.models.instruction_shift import SHIFT_FILE
from searchkit.records import Document

INSTRUCTION = "Given a claim, find documents that refute the claim"


def test_queries_are_shifted_and_an_index_from_before_shares_the_model(serve, tmp_path: Path) -> None:
    model = Embedder()
    shutil.copytree(model.folder, tmp_path / "model")
    (tmp_path / "model" / SHIFT_FILE).unlink()
    indexes = [tmp_path / "new.index", tmp_path / "old.index"]
    for folder, name in zip(indexes, ("builtin", tmp_path / "model"), strict=True):
        with SearchEngine.create(folder, model=name) as engine:
            engine.add([Document("1", "Tea keeps you awake."), Document("2", "Tea never kept anybody awake.")])
    server = serve(*indexes)
    models = httpx.get(f"{server.address}/v1/models").json()["data"]
    assert [row["id"] for row in models] == ["builtin", "builtin-query"], "one model and its alias"
    assert all(row["shifts_queries"] for row in models)
    told = {"model": "builtin", "input": ["tea", "a nap"], "instruction": INSTRUCTION}
    answer = httpx.post(f"{server.address}/v1/embeddings", json=told, timeout=60).json()
    rows = np.array([each["embedding"] for each in answer["data"]])
    np.testing.assert_allclose(rows, model.encode_queries(["tea", "a nap"], INSTRUCTION), atol=1e-5)
    assert np.abs(rows - model.encode_queries(["tea", "a nap"], "")).max() > 1e-3
