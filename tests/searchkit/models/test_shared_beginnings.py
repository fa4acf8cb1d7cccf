"""The instruction before many queries is computed once, and the vectors stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from texts import SENTENCES, TEXTS
from tiny_models import build_model

from searchkit.models.conventions import Conventions
from searchkit.models.embedder import Embedder
from searchkit.models.torch_runtime import beginning
from searchkit.tasks import WEB_SEARCH

LAST = Conventions(pooling="last", append_eos=True, max_length=200)


def tokens_computed(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the tokens that go through the model."""
    counted: list[int] = []
    model: Any = embedder.runtime.model
    forward = model.forward

    def counting(*arguments: Any, **named: Any) -> Any:
        counted.append(named["input_ids"].numel())
        return forward(*arguments, **named)

    monkeypatch.setattr(model, "forward", counting)
    return counted


@pytest.mark.parametrize("kind", ["mistral", "qwen3", "llama", "causal-gemma3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vectors_are_the_same(tmp_path: Path, kind: str, dtype: str) -> None:
    model = build_model(tmp_path / "model", kind, eos=False)
    embedder = Embedder(model, device="cpu", dtype=dtype, conventions=LAST, token_budget=4096)
    shared = embedder.encode_queries(SENTENCES, WEB_SEARCH)
    embedder.runtime.share_beginnings = False
    apart = embedder.encode_queries(SENTENCES, WEB_SEARCH)
    np.testing.assert_allclose(shared, apart, atol=1e-5 if dtype == "float32" else 0.05)


def test_the_instruction_is_computed_once(mistral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder(mistral, device="cpu", dtype="float32", conventions=LAST, token_budget=4096)
    tokens = embedder.tokenize_queries(SENTENCES, [WEB_SEARCH] * len(SENTENCES))
    counted = tokens_computed(embedder, monkeypatch)
    embedder.encode_tokens(tokens)
    shared = beginning(tokens)
    assert shared > 60
    assert counted == [shared, len(tokens) * (max(map(len, tokens)) - shared)]


@pytest.mark.parametrize(
    ("texts", "conventions"),
    [(SENTENCES[:3], LAST), (SENTENCES, Conventions(pooling="mean", max_length=200)), (TEXTS, None)],
    ids=["few texts", "mean pooling", "nothing in common"],
)  # fmt: skip
def test_otherwise_all_goes_through_the_model_at_once(
    mistral: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], conventions: Conventions | None
) -> None:
    embedder = Embedder(mistral, device="cpu", dtype="float32", conventions=conventions or LAST, token_budget=8192)
    counted = tokens_computed(embedder, monkeypatch)
    embedder.encode_queries(texts, WEB_SEARCH if conventions else "")
    assert len(counted) == 1


@pytest.mark.parametrize(
    ("batch", "expected"),
    [([[1, 2, 3], [1, 2, 4], [1, 2]], 2), ([[5], [5]], 1), ([[1], [2]], 0), ([[3, 1], [3, 1]], 2), ([[1, 2, 9, 9]], 4)],
)  # fmt: skip
def test_the_beginning_is_what_all_texts_share(batch: list[list[int]], expected: int) -> None:
    assert beginning(batch) == expected
