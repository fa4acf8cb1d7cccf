"""The weights of an exported model, back as a transformers folder in float32."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.errors import InputError
from searchkit.models.conventions import SETTINGS, dense_folders
from searchkit.models.onnx_runtime import MODEL_FILE
from searchkit.new_folder import new_folder
from searchkit.training.export.dense import DENSE, unpack_dense
from searchkit.training.export.graph import PARAMETERS

_SETTINGS = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", SETTINGS,
    "sentence_bert_config.json", "README.md", "training.json",
)  # fmt: skip


def unpack(folder: Path, out: Path) -> None:
    """Write the weights of an exported model as a float32 transformers folder, to train or to run with torch.

    Args:
        folder: What `export` wrote; int8 weights come back as what they stand for.
        out: A new folder, which gets its name when it is complete.

    Raises:
        InputError: There is something at `out` already, or the model has weights of 4 bits, which are too coarse to
            start from.
    """
    import onnx
    from onnx import numpy_helper
    from safetensors.numpy import save_file

    model = onnx.load(str(folder / MODEL_FILE))
    arrays = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    metadata = {item.key: item.value for item in model.metadata_props}
    if metadata.get("dtype") == "int4":
        raise InputError(f"{folder} has weights of 4 bits, which do not come back; use the model it was exported from")
    if PARAMETERS in metadata:
        weights = {name: _rebuild(arrays, parts) for name, parts in json.loads(metadata[PARAMETERS]).items()}
    else:
        from searchkit.training.export.traced import unpack_traced

        weights = unpack_traced(model.graph, arrays, json.loads(metadata["aliases"]))
    beside = dense_folders(folder)
    with new_folder(out) as new:
        copy_settings(folder, new)
        if DENSE in metadata or beside:
            unpack_dense(json.loads(metadata.get(DENSE, "[]")), arrays, beside, new)
        save_file(weights, str(new / "model.safetensors"), metadata={"format": "pt"})


def copy_settings(folder: Path, out: Path) -> None:
    """Copy the tokenizer, the config and the settings of a model folder, all but its weights."""
    out.mkdir(parents=True, exist_ok=True)
    for name in _SETTINGS:
        if (folder / name).is_file():
            shutil.copy2(folder / name, out / name)
    for pooling in folder.glob("*_Pooling"):
        shutil.copytree(pooling, out / pooling.name, dirs_exist_ok=True)


def _rebuild(arrays: dict[str, np.ndarray], parts: dict[str, Any]) -> np.ndarray:
    """A parameter from its stored parts, as :meth:`Graph.describe` notes them."""
    if "zeros" in parts:
        return np.zeros(parts["zeros"], np.float32)
    values = arrays[parts["values"]].astype(np.float32)
    if "scales" in parts:
        values = values * arrays[parts["scales"]]
    if "smoothing" in parts:
        values = values * arrays[parts["smoothing"]][:, None]
    return np.ascontiguousarray(values.T if parts.get("transposed") else values)
