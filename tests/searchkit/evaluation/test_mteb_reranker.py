"""A reranker as mteb scores it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rerankers import build_reranker
from texts import SENTENCES, TEXTS

from searchkit.evaluation.mteb_reranker import MtebReranker
from searchkit.models.reranker import Reranker


def test_mteb_reranks_by_our_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))
    mteb = pytest.importorskip("mteb", reason="mteb's tasks need mteb")
    from datasets import Dataset
    from mteb.models.models_protocols import CrossEncoderProtocol
    from mteb.models.search_wrappers import SearchCrossEncoderWrapper

    folder = build_reranker(tmp_path / "yes-or-no", "qwen3-lm")
    model: Any = MtebReranker(Reranker(folder, device="cpu", dtype="float32"))
    assert isinstance(model, CrossEncoderProtocol)
    task = mteb.get_task("SciFact")
    wrapper = SearchCrossEncoderWrapper(model)
    common = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default", "encode_kwargs": {}}
    corpus = [{"id": str(n), "title": "", "text": text} for n, text in enumerate(TEXTS)]
    wrapper.index(Dataset.from_list(corpus), **common)
    queries = [{"id": f"q{n}", "text": text} for n, text in enumerate(SENTENCES[:2])]
    ranked = {"q0": ["3", "4", "11"], "q1": ["5", "0"]}
    run = wrapper.search(Dataset.from_list(queries), top_k=3, top_ranked=ranked, **common)
    instruction = "Given a scientific claim, retrieve documents that support or refute the claim"
    for query in queries:
        ids = ranked[query["id"]]
        expected = model.reranker.scores(query["text"], [TEXTS[int(id)].strip() for id in ids], instruction)
        assert np.ptp(expected) > 0
        assert list(run[query["id"]]) == ids
        assert list(run[query["id"]].values()) == pytest.approx(expected.tolist(), abs=1e-5)
