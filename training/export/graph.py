"""A graph for onnxruntime, written operator by operator, and the notes that `unpack` reads its weights back by."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

MICROSOFT = "com.microsoft"
PARAMETERS = "parameters"
"""Metadata key: how `unpack` rebuilds each parameter of the torch model, as :meth:`Graph.describe` notes it."""
_OPSET, _IR = 17, 8  # onnxruntime has read these since 1.14


@dataclass(frozen=True)
class LinearInput:
    """A tensor (tokens, width) that linear layers read.

    Attributes:
        tensor: Its name.
        least: The smallest value it can hold, if that is just below zero.
        smoothing: How far outlying dimensions are evened out before it is rounded: an exponent from 0, not at all, to
            1, whole.
    """

    tensor: str
    least: float | None = None
    smoothing: float = 0


class Graph:
    """Nodes and constants in the order they are computed, in float32.

    Tensors are (tokens, width) everywhere but in attention. Tokens are ordered by position first: with a batch of n
    texts, the first n tokens are the texts' first ones.

    Args:
        weights: Parameters of the torch model by name, float32; those of linear layers are (outputs, inputs).
    """

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.weights = weights
        self.linear_inputs: dict[tuple[str, ...], LinearInput] = {}  # by the layers that read it
        self.parameters: dict[str, dict[str, Any]] = {}
        self._nodes: list[Any] = []
        self._arrays: dict[str, np.ndarray] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    # Operators

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output; returns the output's name."""
        from onnx import helper

        name = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def microsoft(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append an operator that is onnxruntime's own."""
        return self.op(kind, *inputs, domain=MICROSOFT, **attributes)

    def layer_norm(self, x: str, name: str, epsilon: float) -> str:
        """LayerNorm over the last axis."""
        weight, bias = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        return self.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=epsilon)

    def rms_norm(self, x: str, name: str, epsilon: float) -> str:
        """RMSNorm over the last axis; one operator for it exists only since opset 23."""
        square = self.op("ReduceMean", self.op("Mul", x, x), axes=[-1], keepdims=1)
        root = self.op("Sqrt", self.op("Add", square, self.constant(epsilon)))
        return self.op("Mul", self.op("Div", x, root), self.parameter(f"{name}.weight"))

    def linear(
        self, x: str, *layers: str, bias: bool = True, least: float | None = None, smoothing: float = 0
    ) -> list[str]:
        """Apply some linear layers to one input.

        Args:
            x: (tokens, inputs).
            layers: Their names: each has a parameter NAME.weight and may have NAME.bias.
            bias: False omits the biases.
            least: See :class:`LinearInput`; `smoothing` too.

        Returns:
            For each layer a tensor (tokens, outputs).
        """
        self.linear_inputs[layers] = LinearInput(x, least, smoothing)
        outputs = self._products(x, layers, least)
        for position, layer in enumerate(layers):
            if bias and f"{layer}.bias" in self.weights:
                outputs[position] = self.op("Add", outputs[position], self.parameter(f"{layer}.bias"))
        return outputs

    def embedding(self, table: str, ids: str) -> str:
        """Rows of an embedding table."""
        return self.op("Gather", self.parameter(table), ids)

    def _products(self, x: str, layers: tuple[str, ...], least: float | None) -> list[str]:
        products = []
        for layer in layers:
            name = f"{layer}.weight"
            self.store(name, self.weights[name].T)
            self.describe(name, values=name, transposed=True)
            products.append(self.op("MatMul", x, name))
        return products

    # Constants

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """The name of a constant; equal ones are stored once."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.store(f"constant_{len(self._constants)}", array)
        return self._constants[key]

    def integers(self, *values: int) -> str:
        """A vector of int64, the type of shapes and axes."""
        return self.constant(values, np.int64)

    def parameter(self, name: str) -> str:
        """A parameter in float32."""
        if name not in self.parameters:
            self.store(name, self.weights[name])
            self.describe(name, values=name)
        return name

    def store(self, name: str, array: np.ndarray) -> str:
        """Add an array under a name of its own."""
        self._arrays[name] = np.asarray(array, order="C")
        return name

    def describe(self, parameter: str, **parts: Any) -> None:
        """Note how to rebuild a parameter of the torch model.

        Args:
            parameter: Its name.
            parts: `values` names a stored array; `scales` and `smoothing` name arrays to multiply it by; `transposed`
                says that torch stores it the other way round. Or `zeros`: the shape of one that was folded into others.
        """
        self.parameters[parameter] = parts

    # The file

    def model(self, outputs: Iterable[str]) -> Any:
        """The ONNX model from input_ids and attention_mask, (batch, length) int64, to some tensors, two axes each."""
        from onnx import TensorProto, helper, numpy_helper

        ids = ("input_ids", "attention_mask")
        graph = helper.make_graph(
            self._nodes,
            "searchkit",
            [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in ids],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self._arrays.items()],
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR, producer_name="searchkit")
        helper.set_model_props(model, {PARAMETERS: json.dumps(self.parameters)})
        return model
