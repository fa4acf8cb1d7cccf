"""The interface between the embedder and what computes hidden states, and the choice of an implementation."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from searchkit.errors import InputError, MissingExtraError, SearchkitError
from searchkit.models.conventions import Conventions

logger = logging.getLogger(__name__)


class Runtime(Protocol):
    """Computes pooled vectors from token ids.

    Args:
        tokenizer: A `tokenizers.Tokenizer`, or what stands in for it (see :mod:`searchkit.models.remote.pieces`).
        hidden_size: Width of a vector.
        decoder: Attention is causal.
        longest: Most tokens the model can take, None for any number.
        bos_id: Token that must begin every text, None for none.
        eos_id: The tokenizer's end-of-sequence token, None for none.
        dtype: What the model computes in.
        token_budget: Padded tokens in a batch that suit the device.
        most_texts: Texts in a batch at most, whatever their length.
        workers: How many threads should call `forward` at once.
    """

    tokenizer: Any
    hidden_size: int
    decoder: bool
    longest: int | None
    bos_id: int | None
    eos_id: int | None
    dtype: str
    token_budget: int
    workers: int

    @property
    def most_texts(self) -> int: ...

    def forward(self, batch: list[list[int]], conventions: Conventions) -> np.ndarray:
        """Pooled states, (len(batch), hidden_size) float32, not normalised; MemoryError when the batch is too large."""
        ...


def load_runtime(
    folder: Path, name: str, adapter: Path | None, device: str | None, dtype: str, threads: int | None
) -> Runtime:
    """Load a model folder: on onnxruntime if it holds an exported model, else on torch.

    Args:
        folder: The model's files.
        name: The model as the user knows it, for messages.
        adapter: Folder of a PEFT adapter, or None.
        device: As for :class:`searchkit.models.embedder.Embedder`.
        dtype: Likewise.
        threads: Likewise.

    Raises:
        InputError: An exported model was asked to run as only the original can, or a model needs code of its own
            that the user does not trust.
        MissingExtraError: The library that runs the model is not installed.
    """
    from searchkit.models.onnx_runtime import MODEL_FILE, OnnxRuntime

    if (folder / MODEL_FILE).is_file():
        device_type = (device or "cpu").partition(":")[0]
        if adapter or device_type not in ("cpu", "cuda") or dtype != "auto":
            raise InputError(
                f"{name} is an exported model: it runs on the CPU, in its own precision and without adapters; "
                "omit --device, --dtype and --adapter, or use the model that it was exported from"
            )
        if device_type == "cuda":
            logger.info("%s is an exported model and runs on the CPU; %s is for the vectors", name, device)
        with load_errors(name):
            return OnnxRuntime(folder, threads)
    try:
        from searchkit.models.own_code import runs_own_code
        from searchkit.models.torch_runtime import TorchRuntime

        with load_errors(name):
            own_code = runs_own_code(folder, name)
            return TorchRuntime(folder, adapter, device, dtype, threads, own_code)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"running {name} needs {error.name}: pip install 'searchkit[torch]'", name=error.name
        ) from error


@contextmanager
def load_errors(name: str) -> Iterator[None]:
    """Say in one message that a folder is not a model, whatever type of exception the libraries raise for it."""
    try:
        yield
    except (SearchkitError, ModuleNotFoundError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{name} cannot be loaded as a model ({type(error).__name__}: {reason}); expected a folder with "
            "config.json, tokenizer.json and weights (*.safetensors or model.onnx)"
        ) from error
