"""Exported models on onnxruntime: quick to start, small, no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.errors import InputError, MissingExtraError
from searchkit.models.conventions import Conventions
from searchkit.models.dense import linear_map
from searchkit.models.instruction_shift import load_shift

MODEL_FILE = "model.onnx"


def load_onnxruntime() -> Any:
    """The module onnxruntime, kept from reporting to its makers.

    Its builds send events (the machine, the interpreter's path, how models are used) to Microsoft and write a device id
    to the user's cache folder, from the moment of their import (seen in 1.31). ORT_DISABLE_TELEMETRY=0 allows that.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "running an exported model needs onnxruntime: pip install onnxruntime", name="onnxruntime"
        ) from error
    return onnxruntime


class OnnxRuntime:
    """Token ids in, pooled float32 vectors out, from a folder that `searchkit export` wrote.

    The graph pools by itself, with the pooling named in its metadata; a shift of queries by their instruction, and a
    linear map after it, may stand beside it in the folder. A forward pass runs on the thread that calls it, and several
    threads may call at once: two threads with a batch each are faster than two threads in every product.

    Args:
        folder: Holds model.onnx, config.json, tokenizer.json and tokenizer_config.json.
        threads: How many threads should call `forward` at once; None is all CPUs.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        from tokenizers import Tokenizer

        onnxruntime = load_onnxruntime()
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = _read(folder / "config.json")
        special = _read(folder / "tokenizer_config.json")
        self.eos_id = self._token(special.get("eos_token"))
        self.bos_id = self._token(special.get("bos_token")) if special.get("add_bos_token") else None
        self.token_budget = 512  # its activations stay in the CPU's caches
        self.most_texts = 1 << 30
        self.workers = _cpus() if threads is None else threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_mem_reuse = False  # planning it takes longer than all else at load, and gains nothing
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"]
        )
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.pooling, self.dtype = metadata["pooling"], metadata["dtype"]
        # Exports before this was written have it in config.json, where architectures call it differently.
        names = (name for name in ("hidden_size", "dim", "d_model", "n_embd") if config.get(name))
        self.hidden_size = int(metadata.get("width") or config[next(names, "hidden_size")])
        self.shift = load_shift(folder, self.hidden_size)
        self._map = linear_map(folder, self.hidden_size)
        if self._map is not None:
            self.hidden_size = self._map.shape[1]
        self.decoder = metadata["decoder"] == "true"
        # Version 0.1 did not write it.
        longest = metadata.get("longest", config.get("max_position_embeddings"))
        self.longest: int | None = None if longest is None else int(longest)

    def _token(self, name: Any) -> int | None:
        name = name.get("content") if isinstance(name, dict) else name
        return self.tokenizer.token_to_id(name) if name else None

    def forward(self, batch: list[list[int]], conventions: Conventions) -> np.ndarray:
        """Vectors, (len(batch), hidden_size) float32, not normalised; raises as `pooled` does."""
        return self.mapped(self.pooled(batch, conventions))

    def pooled(self, batch: list[list[int]], conventions: Conventions) -> np.ndarray:
        """What the graph gives, (len(batch), its width) float32, not normalised.

        Raises:
            MemoryError: There was not enough memory; a smaller batch may fit.
            ValueError: Another pooling is asked for than the graph was exported with.
        """
        if conventions.pooling != self.pooling:
            raise InputError(
                f"the model was exported with {self.pooling} pooling, not {conventions.pooling}; export it again"
            )
        ids = np.zeros((len(batch), max(map(len, batch))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        try:
            (pooled,) = self._session.run(None, {"input_ids": ids, "attention_mask": mask})
        except Exception as error:
            # onnxruntime has one exception type for every fault; only the message tells.
            if "bad_alloc" in str(error) or "Failed to allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise
        return np.asarray(pooled, dtype=np.float32)

    def mapped(self, pooled: np.ndarray) -> np.ndarray:
        """Pooled states, shifted or not, after the linear map beside the graph if there is one."""
        return pooled if self._map is None else pooled @ self._map


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
