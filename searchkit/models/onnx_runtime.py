"""Exported models on onnxruntime: quick to start, small, no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.errors import InputError, MissingExtraError
from searchkit.models.conventions import Conventions

MODEL_FILE = "model.onnx"


class OnnxRuntime:
    """Token ids in, pooled float32 vectors out, from a folder that `searchkit export` wrote.

    The graph pools by itself, with the pooling named in its metadata.

    Args:
        folder: Holds model.onnx, config.json, tokenizer.json and tokenizer_config.json.
        threads: Processor threads; None takes all there are.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "running an exported model needs onnxruntime: pip install onnxruntime", name="onnxruntime"
            ) from error
        from tokenizers import Tokenizer

        self.tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = _read(folder / "config.json")
        words = _read(folder / "tokenizer_config.json")
        self.hidden_size = int(config["hidden_size"])
        self.longest: int | None = config.get("max_position_embeddings")
        self.eos_id = self._token(words.get("eos_token"))
        self.bos_id = self._token(words.get("bos_token")) if words.get("add_bos_token") else None
        self.token_budget = 4096
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _processors() if threads is None else threads
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"]
        )
        about = self._session.get_modelmeta().custom_metadata_map
        self.pooling, self.dtype = about["pooling"], about["dtype"]
        self.decoder = about["decoder"] == "true"

    def _token(self, name: Any) -> int | None:
        name = name.get("content") if isinstance(name, dict) else name
        return self.tokenizer.token_to_id(name) if name else None

    def forward(self, batch: list[list[int]], conventions: Conventions) -> np.ndarray:
        """Pooled states, (len(batch), hidden_size) float32, not normalised.

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


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
