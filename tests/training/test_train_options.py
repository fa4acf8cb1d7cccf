"""Options of a run that are held against the plain formula, or against a run without them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from searchkit.models.batches import unit_rows
from searchkit.models.embedder import Embedder
from searchkit.training import log
from searchkit.training import train as loop
from searchkit.training.config import TrainConfig
from searchkit.training.dataset import read_examples
from searchkit.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def test_checkpointed_activations_train_the_same_weights(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, on = loop.make_trainable, []

    def watched(model: Any, config: TrainConfig) -> Any:
        made = make(model, config)
        on.append(made.is_gradient_checkpointing)
        return made

    monkeypatch.setattr(loop, "make_trainable", watched)
    config = replace(config, chunk=7, max_steps=3)
    reports = [
        train(replace(config, out=str(tmp_path / str(kept)), gradient_checkpointing=not kept)) for kept in (True, False)
    ]
    assert on == [False, True]
    np.testing.assert_allclose(reports[0].losses, reports[1].losses, rtol=1e-5)
    kept, again = (load_file(tmp_path / name / "model.safetensors") for name in ("True", "False"))
    for name, weights in kept.items():
        np.testing.assert_allclose(again[name], weights, atol=1e-5)


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """accelerate has one precision a process, but for this."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("fresh_accelerate")
def test_bfloat16_is_for_the_computing_and_not_for_the_weights(config: TrainConfig, tmp_path: Path) -> None:
    from accelerate.state import AcceleratorState

    config = replace(config, chunk=7, max_steps=2, learning_rate=1e-3)
    full = np.array(train(replace(config, out=str(tmp_path / "float32"))).losses)[:, 1]
    AcceleratorState._reset_state()
    half = np.array(train(replace(config, out=str(tmp_path / "bfloat16"), precision="bfloat16")).losses)[:, 1]
    np.testing.assert_allclose(half, full, rtol=0.05)
    assert not np.allclose(half, full, rtol=1e-5)
    kinds = {str(weights.dtype) for weights in load_file(tmp_path / "bfloat16" / "model.safetensors").values()}
    assert kinds == {"float32"}


def test_widths_and_margin_change_the_loss_as_the_formula_says(
    config: TrainConfig, mistral: Path, pairs: Path, tmp_path: Path
) -> None:
    pairs_only = tmp_path / "good.jsonl"
    pairs_only.write_text("".join(line + "\n" for line in pairs.read_text().splitlines()[:-1]))
    rows = list(read_examples(pairs_only))
    base = Embedder(mistral, device="cpu", dtype="float32", max_length=64)
    queries = base.encode_queries([row.query for row in rows], "Find it").astype(np.float64)
    passages = [row.positive for row in rows] + [row.negatives[0] for row in rows]
    answers = base.encode_passages(passages).astype(np.float64)

    def expected(margin: float) -> float:
        total = 0.0
        for width in (64, 32, 16):
            cosines = unit_rows(queries[:, :width]) @ unit_rows(answers[:, :width]).T
            for n, row in enumerate(cosines):
                left = np.array([m == n or cosine <= row[n] + margin for m, cosine in enumerate(row)])
                total += np.log(np.exp(row[left] / config.temperature).sum()) - row[n] / config.temperature
        return total / len(queries)

    assert expected(0.05) < 0.99 * expected(9.0)  # some are left out
    config = replace(
        config, sources=(str(pairs_only),), batch_size=10, chunk=7, matryoshka=(32, 16), margin=0.05, max_steps=1
    )  # fmt: skip
    assert train(config).losses[0][1] == pytest.approx(expected(0.05), rel=1e-4)
    assert Embedder(config.out, device="cpu").conventions.smallest_dim == 16


def test_the_peak_of_memory_is_in_mebibytes_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    if loop.torch.cuda.is_available():
        pytest.skip("of a GPU it is that one's memory")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(sys, "platform", "linux")
    assert log.peak_memory_mib() == pytest.approx(peak / 2**10, rel=0.01)
    monkeypatch.setattr(sys, "platform", "darwin")  # which counts bytes
    assert log.peak_memory_mib() == pytest.approx(peak / 2**20, rel=0.01)
