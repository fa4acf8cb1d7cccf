"""Weights of linear layers to int8, by what their inputs look like on calibration texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from searchkit.training.export.int8_graph import LEVELS, Int8Layers, round_rows

_DAMPING = 0.01
_BLOCK = 128


class Inputs:
    """What is kept of an input of linear layers over many tokens.

    Attributes:
        largest: The largest absolute value of each dimension, (width,).
        products: Of all pairs of dimensions, summed over tokens, (width, width).
    """

    def __init__(self, width: int) -> None:
        self.largest = np.zeros(width, np.float32)
        self.products = np.zeros((width, width), np.float64)

    def add(self, rows: np.ndarray) -> None:
        """Take in some tokens, (tokens, width) float32."""
        self.largest = np.maximum(self.largest, np.abs(rows).max(axis=0))
        self.products += rows.T @ rows


def round_layers(weights: Sequence[np.ndarray], inputs: Inputs, smoothing: float) -> Int8Layers:
    """Round the weights of layers that read the same input.

    Args:
        weights: (outputs, inputs) float32 each.
        inputs: What they read.
        smoothing: Exponent of the largest values that the input is divided by. A token has one scale, so a dimension
            that reaches far leaves few codes to the others, until a part of its reach is moved into the weights.
    """
    reach = np.maximum(inputs.largest, 1e-6 * inputs.largest.max() + 1e-12)
    divisors = (reach**smoothing).astype(np.float32)
    products = inputs.products / np.outer(divisors, divisors)
    rounded = [_round_by_error(weight * divisors, products) for weight in weights]
    return Int8Layers(divisors, [codes.T for codes, _ in rounded], [scales for _, scales in rounded])


def _round_by_error(weight: np.ndarray, products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """GPTQ (arXiv 2210.17323): each column's rounding error is made up for by the columns after it.

    Args:
        weight: (outputs, inputs) float32.
        products: (inputs, inputs), the inputs' products summed over tokens.

    Returns:
        Codes (outputs, inputs) int8, and what a step stands for, (outputs,) float32.
    """
    _, scales = round_rows(weight)
    order = np.argsort(-np.diag(products))  # those that matter most while most others can still make up for them
    damped = products[np.ix_(order, order)]
    damped = damped + np.eye(len(damped)) * (_DAMPING * np.diag(damped).mean() + 1e-12)
    # Row i of this upper triangle says how the columns after i make up for an error in i.
    makes_up = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    left = weight[:, order].copy()
    codes = np.empty(left.shape, np.int8)
    for start in range(0, left.shape[1], _BLOCK):
        stop = min(start + _BLOCK, left.shape[1])
        errors = np.empty((len(left), stop - start), np.float32)
        for column in range(start, stop):
            codes[:, column] = np.clip(np.rint(left[:, column] / scales), -LEVELS, LEVELS)
            error = (left[:, column] - codes[:, column] * scales) / makes_up[column, column]
            left[:, column:stop] -= np.outer(error, makes_up[column, column:stop])
            errors[:, column - start] = error
        left[:, stop:] -= errors @ makes_up[start:stop, stop:]
    return codes[:, np.argsort(order)], scales
