"""Queries that follow an instruction by a shift: the instruction's own vector decides what is added to the query's.

An encoder that reads "Instruct: ... Query: ..." as one text loses part of the query in the words around it. Here the
query is read alone; the instruction is read alone as well, and a small network turns its vector into something
added to the vectors of its queries. An instruction that only says "search" adds next to nothing, and what is next to
nothing is left out.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from searchkit.errors import InputError

SHIFT_FILE = "instruction_shift.safetensors"
LEAST = 0.03
"""Length of a shift below which it is none, as for the tasks of BEIR that only search."""

_NAMES = ("centre", "inner.weight", "inner.bias", "outer.weight")


class InstructionShift:
    """The network beside an exported model.

    Args:
        arrays: float32 "centre" (dim,), "inner.weight" (hidden, dim), "inner.bias" (hidden,), "outer.weight" (dim,
            hidden), where dim is the width of the model's pooled vectors.
        digest: SHA-256 of the file, as hex.
    """

    def __init__(self, arrays: dict[str, np.ndarray], digest: str) -> None:
        self._centre, self._inner, self._bias, self._outer = (arrays[name] for name in _NAMES)
        self.width, self.digest = len(self._centre), digest

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """What queries get added, (n, dim) float32, from the (n, dim) unit rows of their instructions.

        A row of zeros stands for an instruction that changes nothing.
        """
        hidden = np.maximum((rows - self._centre) @ self._inner.T + self._bias, 0)
        shifts = hidden @ self._outer.T
        shifts[np.linalg.norm(shifts, axis=1) < LEAST] = 0
        return np.asarray(shifts)


def load_shift(folder: Path, width: int) -> InstructionShift | None:
    """The shift beside an exported model; None where there is none.

    Args:
        folder: The model's.
        width: Of its pooled vectors.

    Raises:
        InputError: The file is of something else, or of a model of another width.
    """
    file = folder / SHIFT_FILE
    if not file.is_file():
        return None
    from safetensors.numpy import load

    content = file.read_bytes()
    arrays = load(content)
    shapes = {name: array.shape for name, array in arrays.items()}
    hidden = len(arrays["inner.bias"]) if "inner.bias" in arrays else 0
    expected = dict(zip(_NAMES, [(width,), (hidden, width), (hidden,), (width, hidden)], strict=True))
    if shapes != expected or any(array.dtype != np.float32 for array in arrays.values()):
        raise InputError(f"{file} holds {shapes}; expected float32 arrays {expected}. Copy the model's folder again")
    return InstructionShift(arrays, hashlib.sha256(content).hexdigest())


def save_shift(arrays: dict[str, np.ndarray], folder: Path) -> None:
    """Put a shift beside an exported model.

    Args:
        arrays: As for :class:`InstructionShift`.
        folder: The model's.
    """
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(arrays[name], np.float32) for name in _NAMES}, str(folder / SHIFT_FILE))
