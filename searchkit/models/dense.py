"""Dense modules of sentence-transformers folders: linear layers between pooling and normalisation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from searchkit.errors import InputError
from searchkit.models.conventions import dense_folders

if TYPE_CHECKING:
    from torch import Tensor

_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")
_SENTENCE = "sentence_embedding"


class DenseLayers:
    """The Dense modules of a folder, in their order.

    Args:
        folder: A model folder; one without Dense modules has no layers.
        width: Of the pooled states.
        device: Where the weights go, in float32.

    Raises:
        InputError: A module does something that is not supported, or does not fit the one before it.
    """

    def __init__(self, folder: Path, width: int, device: Any) -> None:
        self.width = width
        self._layers: list[Callable[[Tensor], Tensor]] = []
        for path in dense_folders(folder):
            self._layers.append(self._layer(path, device))

    def __len__(self) -> int:
        return len(self._layers)

    def __call__(self, pooled: Tensor) -> Tensor:
        """(batch, width of the model) to (batch, width)."""
        for layer in self._layers:
            pooled = layer(pooled)
        return pooled

    def _layer(self, path: Path, device: Any) -> Callable[[Tensor], Tensor]:
        import torch

        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        reads, writes = config.get("module_input_name") or _SENTENCE, config.get("module_output_name") or _SENTENCE
        if (reads, writes) != (_SENTENCE, _SENTENCE):
            raise InputError(f"{path} maps {reads} to {writes}; expected a Dense module on the pooled {_SENTENCE}")
        named, kind = _activation(config), activation_name(config)
        if not named.startswith("torch.nn.") or kind not in _ACTIVATIONS:
            raise InputError(f"{path} has the activation {named}; expected one of torch.nn's {', '.join(_ACTIVATIONS)}")
        activation = getattr(torch.nn, kind)()
        weights = {name: tensor.to(device, torch.float32) for name, tensor in load_weights(path).items()}
        weight, bias = weights["linear.weight"], weights.get("linear.bias")
        if weight.shape[1] != self.width:
            raise InputError(f"{path} takes vectors of {weight.shape[1]} dimensions, but gets {self.width}")
        self.width = int(weight.shape[0])
        residual = bool(config.get("use_residual"))
        projection = weights.get("residual.weight")

        def layer(x: Tensor) -> Tensor:
            out: Tensor = activation(torch.nn.functional.linear(x, weight, bias))
            if residual:
                out = out + (x if projection is None else torch.nn.functional.linear(x, projection))
            return out

        return layer


def linear_map(folder: Path, width: int) -> np.ndarray | None:
    """The Dense modules beside an exported model as one map, (width, outputs) float32; None where there are none.

    Those of the model that was exported are part of its graph; `searchkit adapt` puts plain linear ones beside it.

    Raises:
        InputError: A module is more than a linear map, or does not fit what comes before it.
    """
    result: np.ndarray | None = None
    for path in dense_folders(folder):
        matrix = read_linear(path)
        given = width if result is None else result.shape[1]
        if matrix.shape[0] != given:
            raise InputError(f"{path} takes vectors of {matrix.shape[0]} dimensions, but gets {given}")
        result = matrix if result is None else result @ matrix
    return result


def read_linear(path: Path) -> np.ndarray:
    """The Dense module in a folder as the linear map that it is, (inputs, outputs) float32.

    Raises:
        InputError: It has a bias, a residual or an activation.
    """
    from safetensors.numpy import load_file

    config, weights = json.loads((path / "config.json").read_text("utf-8")), load_file(path / "model.safetensors")
    if weights.keys() != {"linear.weight"} or config.get("use_residual") or activation_name(config) != "Identity":
        raise InputError(f"{path} is more than a linear map; beside an exported model only a linear map can stand")
    return np.asarray(weights["linear.weight"].T, dtype=np.float32)  # torch has (outputs, inputs)


def activation_name(config: dict[str, Any]) -> str:
    """The class of a module's activation, by its config.json."""
    return _activation(config).rpartition(".")[2]


def _activation(config: dict[str, Any]) -> str:
    return str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights of the Dense module in a folder."""
    if (path / "model.safetensors").is_file():
        from safetensors.torch import load_file

        return load_file(path / "model.safetensors")
    import torch

    loaded: dict[str, Tensor] = torch.load(path / "pytorch_model.bin", map_location="cpu", weights_only=True)
    return loaded
