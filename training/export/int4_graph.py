"""The same graph with the weights of linear layers in 4 bits, in blocks of 32 with a scale and a zero of their own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from searchkit.training.export.int8_graph import Int8Graph

BLOCK = 32


class Int4Graph(Int8Graph):
    """Writes linear layers in 4 bits, embeddings in int8 with a scale for each row, and all else in float32.

    onnxruntime rounds activations to int8, each token in blocks with scales of their own, so that a text's vector does
    not depend on the rest of its batch.

    Args:
        weights: As for :class:`Graph`.
    """

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        super().__init__(weights, {})

    def _products(self, x: str, layers: tuple[str, ...], least: float | None) -> list[str]:
        products = []
        for layer in layers:
            weights = self.weights[f"{layer}.weight"]
            codes, scales, zeros = round_blocks(weights)
            parts = {"codes": packed(codes), "scales": scales, "zeros": packed(zeros)}
            names = [self.store(f"{layer}.weight_{name}", array) for name, array in parts.items()]
            outputs, inputs = weights.shape
            sizes = {"K": inputs, "N": outputs, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
            products.append(self.microsoft("MatMulNBits", x, *names, **sizes))
        return products


def round_blocks(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round weights (outputs, inputs) to 4 bits.

    Returns:
        Codes (outputs, blocks, 32) uint8 from 0 to 15, with zero for inputs that fill up the last block; what a step
        stands for in each block, (outputs, blocks) float32; and the code of zero there, (outputs, blocks) uint8.
    """
    outputs, inputs = weights.shape
    blocks = np.pad(weights, [(0, 0), (0, -inputs % BLOCK)]).reshape(outputs, -1, BLOCK)
    low, high = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
    scales = np.maximum((high - low) / 15, 1e-12).astype(np.float32)
    zeros = np.rint(-low / scales)
    codes = np.clip(np.rint(blocks / scales[:, :, None]) + zeros[:, :, None], 0, 15)
    return codes.astype(np.uint8), scales, zeros.astype(np.uint8)


def packed(codes: np.ndarray) -> np.ndarray:
    """Two codes in each byte of the last axis, the first one in the lower bits."""
    if codes.shape[-1] % 2:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    return np.asarray(codes[..., ::2] | codes[..., 1::2] << 4, dtype=np.uint8)
