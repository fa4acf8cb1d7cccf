"""Dense modules after pooling, in an exported graph: written, taken out, and back as the folders they came from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.models.dense import activation_name, load_weights
from searchkit.models.onnx_runtime import MODEL_FILE
from searchkit.new_folder import new_folder
from searchkit.training.export.graph import MICROSOFT
from searchkit.training.files import read_json, write_json
from searchkit.training.layout import write_modules

DENSE = "dense"
"""Metadata key: the modules' config.json in their order, as JSON. Nodes and arrays of theirs begin with it."""
_OPERATORS = {"Tanh": "Tanh", "ReLU": "Relu", "Sigmoid": "Sigmoid", "GELU": "Gelu"}


def append_dense(model: Any, folders: Sequence[Path]) -> None:
    """Write Dense modules behind the pooled vectors of an ONNX model, in float32.

    Args:
        model: Has one output, (batch, width).
        folders: The modules' own, in their order.
    """
    from onnx import helper, numpy_helper

    if not folders:
        return
    graph, configs = model.graph, []
    x, count = graph.output[0].name, 0

    def op(kind: str, *inputs: str, domain: str = "") -> str:
        nonlocal count
        name = f"{DENSE}_{count}"
        graph.node.append(helper.make_node(kind, list(inputs), [name], name=name, domain=domain))
        count += 1
        return name

    for number, folder in enumerate(folders):
        config, prefix = read_json(folder / "config.json"), f"{DENSE}.{number}."
        configs.append(config)
        weights = {name: tensor.float().numpy() for name, tensor in load_weights(folder).items()}
        for name, array in weights.items():
            stored = np.ascontiguousarray(array.T if array.ndim == 2 else array)  # torch has (outputs, inputs)
            graph.initializer.append(numpy_helper.from_array(stored, prefix + name))
        y = op("MatMul", x, f"{prefix}linear.weight")
        if "linear.bias" in weights:
            y = op("Add", y, f"{prefix}linear.bias")
        kind = activation_name(config)
        if kind == "SiLU":
            y = op("Mul", y, op("Sigmoid", y))
        elif kind != "Identity":
            y = op(_OPERATORS[kind], y, domain=MICROSOFT if kind == "GELU" else "")
        if config.get("use_residual"):
            projected = op("MatMul", x, f"{prefix}residual.weight") if "residual.weight" in weights else x
            y = op("Add", y, projected)
        x = y
    if all(each.domain != MICROSOFT for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    graph.output[0].name = x
    model.metadata_props.add(key=DENSE, value=json.dumps(configs))


def remove_dense(model: Any) -> None:
    """Take the Dense modules out of an ONNX model again, if it has any."""
    graph = model.graph
    nodes = [node for node in graph.node if node.name.startswith(f"{DENSE}_")]
    if not nodes:
        return
    graph.output[0].name = nodes[0].input[0]
    for items, unwanted in (
        (graph.node, nodes),
        (graph.initializer, [each for each in graph.initializer if each.name.startswith(f"{DENSE}.")]),
        (model.metadata_props, [each for each in model.metadata_props if each.key == DENSE]),
    ):
        for item in unwanted:
            items.remove(item)


def replace_dense(folder: Path, out: Path, dense: Sequence[Path]) -> None:
    """Copy an exported folder with other Dense modules than it has; all other weights stay as they were rounded.

    Args:
        folder: An exported model.
        out: A new folder.
        dense: Folders of the modules, none of which changes the width; empty takes out those that are there.
    """
    import onnx

    with new_folder(out) as new:
        shutil.copytree(folder, new, dirs_exist_ok=True)
        model = onnx.load(str(folder / MODEL_FILE))
        remove_dense(model)
        append_dense(model, dense)
        onnx.save(model, str(new / MODEL_FILE))


def unpack_dense(
    configs: Sequence[dict[str, Any]], arrays: dict[str, np.ndarray], beside: Sequence[Path], out: Path
) -> None:
    """Write the Dense modules of an exported model as folders, and name them in modules.json.

    Args:
        configs: What the metadata hold under :data:`DENSE`.
        arrays: The graph's initializers.
        beside: Folders of those that follow the graph.
        out: A model folder with its settings.
    """
    from safetensors.numpy import save_file

    for number, config in enumerate(configs):
        prefix, folder = f"{DENSE}.{number}.", out / f"{number + 2}_Dense"
        folder.mkdir()
        write_json(folder / "config.json", config)
        weights = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        weights = {name: np.ascontiguousarray(array.T) for name, array in weights.items()}
        save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    for number, folder in enumerate(beside, 2 + len(configs)):
        shutil.copytree(folder, out / f"{number}_Dense")
    write_modules(out, len(configs) + len(beside))
