"""The service with a model that shifts queries by their instruction."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest

from searchkit.binding import differences
from searchkit.engine import SearchEngine
from searchkit.models.embedder import Embedder
from searchkit.models.instruction_shift import SHIFT_FILE
from searchkit.models.remote import runtime
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
    assert {row["instruction_shift"] for row in models} == {model.identity()["instruction_shift"]}
    told = {"model": "builtin", "input": ["tea", "a nap"], "instruction": INSTRUCTION}
    answer = httpx.post(f"{server.address}/v1/embeddings", json=told, timeout=60).json()
    rows = np.array([each["embedding"] for each in answer["data"]])
    np.testing.assert_allclose(rows, model.encode_queries(["tea", "a nap"], INSTRUCTION), atol=1e-5)
    assert np.abs(rows - model.encode_queries(["tea", "a nap"], "")).max() > 1e-3


def test_a_client_knows_by_what_its_server_shifts(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Embedder()
    with SearchEngine.create(tmp_path / "one.index", model=model) as engine:
        engine.add([Document("1", "Tea keeps you awake.")])
    address = f"openai:builtin@{serve(tmp_path / 'one.index').address}/v1"
    remote = Embedder(address)
    assert remote.shifts_queries
    assert remote.identity()["instruction_shift"] == model.identity()["instruction_shift"]
    np.testing.assert_allclose(
        remote.encode_queries(["tea"], INSTRUCTION), model.encode_queries(["tea"], INSTRUCTION), atol=2e-3
    )
    # Instruction and query are read apart, so that each may be as long as the model takes.
    assert remote.query_tokens(["tea"], INSTRUCTION) == remote.query_tokens(["tea"], "")
    assert model.query_tokens(["tea"], INSTRUCTION) == model.query_tokens(["tea"], "")
    # Texts that the client puts together itself are not shifted.
    own = Embedder(f"{address}#query=Query: ")
    assert not own.shifts_queries
    assert "instruction_shift" not in own.identity()
    assert own.query_tokens(["tea"], INSTRUCTION) > own.query_tokens(["tea"], "")
    # A server that does not tell its checksum, and one that shifts nothing.
    rows = runtime.EmbeddingsClient.models
    for told, found in (({"instruction_shift": None}, "unknown"), ({"shifts_queries": False}, None)):
        with monkeypatch.context() as patch:
            patch.setattr(
                runtime.EmbeddingsClient, "models", lambda self, told=told: [row | told for row in rows(self)]
            )
            other = Embedder(address)
        assert other.identity().get("instruction_shift") == found
        assert differences(remote.identity(), other.identity()) == "", "vectors of passages are the same"
