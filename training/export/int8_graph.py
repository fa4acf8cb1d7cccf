"""The same graph in int8: weights with a scale for each output, activations with a scale for each token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from searchkit.training.export.graph import Graph

# Kernels for uint8 by int8 are three times as fast as those of any other pair, so activations are uint8: 255 codes
# around 128. After GELU, which is never below -.17, more of them are left for what is above zero.
ZERO, LEVELS = 128, 127
ZERO_POSITIVE, LEVELS_POSITIVE = 24, 231


@dataclass
class Int8Layers:
    """Linear layers that read the same input, in int8.

    Attributes:
        smoothing: (inputs,) float32 that the input is divided by before it is rounded, and the weights multiplied.
        codes: The weights of each layer, (inputs, outputs) int8.
        scales: What one step of a code stands for, (outputs,) float32 for each layer.
    """

    smoothing: np.ndarray
    codes: list[np.ndarray]
    scales: list[np.ndarray]


class Int8Graph(Graph):
    """Writes linear layers and embeddings in int8, and all else in float32.

    Args:
        weights: As for :class:`Graph`.
        layers: The linear layers' weights, by the names of those that read the same input.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], layers: Mapping[tuple[str, ...], Int8Layers]) -> None:
        super().__init__(weights)
        self._layers = layers
        self._is_exact: str | None = None
        self._picked: dict[tuple[float, Any], str] = {}
        self._zeros: dict[str, str] = {}

    def embedding(self, table: str, ids: str) -> str:
        """Rows of an embedding table, which has a scale for each row."""
        codes, scales = round_rows(self.weights[table])
        parts = {"values": self.store(f"{table}_int8", codes), "scales": self.store(f"{table}_scales", scales[:, None])}
        self.describe(table, **parts)
        rows = self.op("Cast", self.op("Gather", parts["values"], ids), to=1)
        return self.op("Mul", rows, self.op("Gather", parts["scales"], ids))

    def _products(self, x: str, layers: tuple[str, ...], least: float | None) -> list[str]:
        rounded = self._layers[layers]
        smoothing = None
        if np.any(rounded.smoothing != 1):
            smoothing = self.constant(1 / rounded.smoothing)
            x = self.op("Mul", x, smoothing)
        x, step, zero = self._round(x, least)
        products = []
        for layer, codes, scales in zip(layers, rounded.codes, rounded.scales, strict=True):
            name = f"{layer}.weight"
            parts = {"values": self.store(f"{name}_int8", codes), "scales": self.store(f"{name}_scales", scales)}
            self.describe(name, **parts, transposed=True, **({"smoothing": smoothing} if smoothing else {}))
            one = self.constant(1)  # the operator takes one scale for all tokens, so theirs come after it
            product = self.microsoft("MatMulIntegerToFloat", x, parts["values"], one, parts["scales"], zero)
            products.append(self.op("Mul", product, step))
        return products

    def _round(self, x: str, least: float | None) -> tuple[str, str, str]:
        """x (tokens, width) as uint8, what a step stands for in each token (tokens, 1), and the code of zero."""
        if least is None:
            zero, inverse = self._pick(ZERO, np.uint8), self._pick(1 / LEVELS, np.float32)
            top, floor = self.op("Abs", x), self.constant(1e-12)
        else:
            zero, inverse = self._pick(ZERO_POSITIVE, np.uint8), self._pick(1 / LEVELS_POSITIVE, np.float32)
            top, floor = x, self._pick(-least / ZERO_POSITIVE, np.float32)
        largest = self.op("ReduceMax", top, axes=[1], keepdims=0)
        step = self.op("Max", self.op("Mul", largest, inverse), floor)  # (tokens,)
        if zero not in self._zeros:
            self._zeros[zero] = self.op("Expand", zero, self.op("Shape", step))
        codes = self.op("QuantizeLinear", x, step, self._zeros[zero], axis=0)
        return codes, self.op("Unsqueeze", step, self.integers(1)), zero

    def _pick(self, value: float, dtype: Any) -> str:
        """A constant of the codes, or what it is in codes of 7 bits where the CPU's products of 8 are not exact.

        With AVX2 or AVX-512 but without VNNI, onnxruntime adds pairs of products in 16 bits, which saturate. A product
        of the largest codes shows that; onnxruntime computes it, and what depends on it, once while it loads the graph.
        """
        key = (value, np.dtype(dtype))
        if key not in self._picked:
            if self._is_exact is None:
                largest = self.constant(np.full((4, 64), 255), np.uint8), self.constant(np.full((64, 16), 127), np.int8)
                product = self.op("ReduceMin", self.op("MatMulInteger", *largest), axes=[0, 1], keepdims=0)
                self._is_exact = self.op("Equal", product, self.constant(64 * 255 * 127, np.int32))
            narrow = value // 2 if dtype == np.uint8 else value * 2
            choices = self.constant(value, dtype), self.constant(narrow, dtype)
            self._picked[key] = self.op("Where", self._is_exact, *choices)
        return self._picked[key]


def round_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round each row to int8: codes (rows, width), and what a step stands for in each row, (rows,) float32."""
    scales = np.maximum(np.abs(table).max(axis=1) / 127, 1e-12).astype(np.float32)
    return np.rint(table / scales[:, None]).astype(np.int8), scales
