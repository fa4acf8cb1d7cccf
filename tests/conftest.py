"""Small real models, built here from configs, and a corpus of thirty passages."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network fails at once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share the cores

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from forked import Server
from texts import SENTENCES, TEXTS
from tiny_models import build_model

from searchkit.models.embedder import Embedder
from searchkit.models.onnx_runtime import OnnxRuntime
from searchkit.records import Document

if TYPE_CHECKING:
    from searchkit.training.config import TrainConfig


@pytest.fixture(scope="session", autouse=True)
def loaded_once() -> Iterator[None]:
    """The files of the built-in model are read once in a process, and not for each of a thousand engines."""
    built_in, read = Embedder().folder, OnnxRuntime.__init__
    kept: dict[int | None, dict[str, Any]] = {}

    def init(self: OnnxRuntime, folder: Path, threads: int | None = None) -> None:
        if folder != built_in or sys.modules.get("onnxruntime") is None or threads not in kept:
            read(self, folder, threads)
        if folder == built_in:
            vars(self).update(kept.setdefault(threads, dict(vars(self))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxRuntime, "__init__", init)
        yield


@pytest.fixture(scope="session")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("models") / "tiny-mistral", "mistral")


@pytest.fixture(scope="session")
def embedder(mistral: Path) -> Embedder:
    return Embedder(mistral, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def forks(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A process of the test file, whose children do what the tests ask for and may be killed."""
    made = Server(str(request.path))
    yield made
    made.close()


@pytest.fixture
def documents() -> list[Document]:
    return [Document(str(n), text, title=f"Note {n}", metadata={"n": n}) for n, text in enumerate(TEXTS)]


@pytest.fixture
def vectors() -> np.ndarray:
    """(40, 16) float32 unit rows."""
    rows = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training examples, all with one instruction, and a bad row."""
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [
        {"query": " ".join(text.split()[:5]), "positive": text, "negatives": [TEXTS[-1 - n]], "instruction": "Find it"}
        for n, text in enumerate(SENTENCES)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not json\n")
    return file


@pytest.fixture
def config(mistral: Path, pairs: Path, tmp_path: Path) -> TrainConfig:
    """A training run of a second or two, in eight steps."""
    from searchkit.training.config import TrainConfig

    return TrainConfig(
        sources=(str(pairs),), base=str(mistral), out=str(tmp_path / "out"), epochs=4, batch_size=5, chunk=64,
        learning_rate=1e-2, temperature=0.1, lora_rank=4, max_length=64, precision="float32",
    )  # fmt: skip
