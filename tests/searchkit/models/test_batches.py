"""Batches: what they hold, how they are halved, and that threads change nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from texts import TEXTS

from searchkit.cli.main import main
from searchkit.models.batches import Batches, unit_rows
from searchkit.models.embedder import Embedder

LONG = "a long passage about nothing much " * 12


def test_out_of_memory_halves_the_budget_and_loses_nothing(
    mistral: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = Embedder(mistral, device="cpu", dtype="float32", token_budget=4096)
    whole = small.runtime.model.forward

    def limited(input_ids: torch.Tensor, **inputs: Any) -> Any:
        if input_ids.numel() > 600:  # as torch says it; a real one would take this machine's memory
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return whole(input_ids, **inputs)

    limited.__signature__ = __import__("inspect").signature(whole)  # type: ignore[attr-defined]
    monkeypatch.setattr(small.runtime.model, "forward", limited)
    with caplog.at_level(logging.WARNING):
        found = small.encode_passages(TEXTS)
    assert small.token_budget < 4096
    assert "out of memory" in caplog.text
    np.testing.assert_allclose(found, embedder.encode_passages(TEXTS), atol=1e-5)


def test_another_runtime_error_is_not_taken_for_out_of_memory(mistral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Embedder(mistral, device="cpu")

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    broken.__signature__ = __import__("inspect").signature(model.runtime.model.forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(model.runtime.model, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model.encode_passages(TEXTS)


def test_vectors_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 vectors that are zero or not finite"):
        unit_rows(np.array([[1.0, 0.0], [np.nan, 0.0]], dtype=np.float32))
    with pytest.raises(ValueError, match="zero or not finite"):
        unit_rows(np.zeros((1, 2), dtype=np.float32))


def test_batches_hold_every_text_once_within_the_budget(mistral: Path) -> None:
    lengths = [5, 90, 40, 41, 200, 1, 33]
    batches = list(Batches(Embedder(mistral, device="cpu").runtime, 100).cut(lengths))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 100 for batch in batches)


@pytest.fixture
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize("exported", [False, True])
def test_threads_do_not_change_vectors(mistral: Path, exported: bool) -> None:
    one, three = (Embedder("builtin" if exported else mistral, threads=threads) for threads in (1, 3))
    np.testing.assert_allclose(one.encode_passages([*TEXTS, LONG]), three.encode_passages([*TEXTS, LONG]), atol=1e-6)


@pytest.mark.usefixtures("torch_threads")
def test_threads_reach_both_runtimes(mistral: Path) -> None:
    Embedder(mistral, device="cpu", threads=3)
    assert torch.get_num_threads() == 3
    assert Embedder("builtin", threads=3).runtime.workers == 3


@pytest.mark.parametrize("texts", [1, 7, 60])
def test_an_exported_model_gives_the_same_rows_on_any_number_of_threads(texts: int) -> None:
    corpus = [f"{TEXTS[n % 30]} {n} " * (1 + n % 9) for n in range(texts)]
    rows = [Embedder("builtin", threads=threads).encode_passages(corpus) for threads in (1, 3)]
    np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize("threads", [0, -1])
def test_less_than_one_thread_is_refused(threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads is {threads}; expected 1 or more"):
        Embedder(threads=threads)


@pytest.mark.usefixtures("torch_threads")
def test_the_command_line_passes_threads_on(mistral: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps({"id": text, "text": text}) + "\n" for text in TEXTS))
    index = str(tmp_path / "x.index")
    built = ["index", str(tmp_path / "notes.jsonl"), "--index", index, "--model", str(mistral)]
    again = built[:4]  # the index is there, and its model is opened by name
    for threads, command in ((2, built), (3, ["search", index, "yeast"]), (2, again)):
        result = CliRunner().invoke(main, [*command, "--device", "cpu", "--threads", str(threads)])
        assert result.exit_code == 0, result.output
        assert torch.get_num_threads() == threads
