"""How near two vectors are, and how that becomes an inner product, which is all that indexes compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

SIMILARITIES = {
    "cosine": "cosine, rows of unit length",
    "inner-product": "inner product",
    "euclidean": "Euclidean distance; scores are its negative",
}
"""The similarities, by name, with what users are told about the scores."""

_UNIT = 2.0**-23
"""Lengths that differ from 1 by no more are left as they are, so that a vector is normalised once and for all."""


@dataclass(frozen=True, slots=True)
class Similarity:
    """How vectors of one width are compared, and how they are stored for it.

    The Euclidean distance is reduced to an inner product, exactly: |q - x|² = |q|² + offset - 2 (q, scale) · (x, extra)
    with extra = (offset - |x|²) / (2 scale). Offset and scale, fitted to the first vectors, keep that coordinate as
    large as the others, for recipes that round. Zeros follow it up to a multiple of eight, for codes to divide.

    Args:
        name: One of :data:`SIMILARITIES`.
        dim: Width of the vectors as users have them.
        offset: Of squared lengths, for the Euclidean distance.
        scale: The coordinate that is appended to queries for it; 0 before there are any vectors.
    """

    name: str
    dim: int
    offset: float = 0.0
    scale: float = 0.0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Similarity:
        """Read what `to_json` wrote; TypeError or KeyError where it is something else."""
        if values["name"] not in SIMILARITIES:
            raise KeyError(values["name"])
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """A part of the setting "storage"."""
        return asdict(self)

    @property
    def euclidean(self) -> bool:
        """Whether vectors are compared by their distance."""
        return self.name == "euclidean"

    @property
    def width(self) -> int:
        """Width of the rows as they are stored."""
        return 8 * (self.dim // 8 + 1) if self.euclidean else self.dim

    def fitted(self, vectors: np.ndarray) -> Similarity:
        """The same with offset and scale that suit some vectors, (n, dim); itself where it has them."""
        if not self.euclidean or self.scale or not len(vectors):
            return self
        squares = np.square(vectors, dtype=np.float64)
        lengths = squares.sum(axis=1)
        coordinate = float(np.sqrt(squares.mean())) or 1.0
        return replace(self, offset=float(lengths.mean()), scale=max(float(lengths.std()) / 2 / coordinate, coordinate))

    def normalized(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors (n, dim) as float32, of unit length where the cosine compares them."""
        return unit_rows(vectors) if self.name == "cosine" else np.asarray(vectors, np.float32)

    @staticmethod
    def normalized_one(vector: np.ndarray, square: float) -> np.ndarray:
        """What `normalized` makes of a single vector (dim,), to the same bits, where the cosine compares them.

        Args:
            vector: float32, finite.
            square: Its squared length, in double precision, not 0.
        """
        length = np.sqrt(np.float64(square))
        return vector.copy() if abs(length - 1) <= _UNIT else np.asarray(vector / length, np.float32)

    def rows(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors (n, dim) that `normalized` returned, as they are stored, (n, width) float32."""
        if not self.euclidean:
            return vectors
        rows = np.zeros((len(vectors), self.width), np.float32)
        rows[:, : self.dim] = vectors
        lengths = np.square(vectors, dtype=np.float64).sum(axis=1)
        rows[:, self.dim] = (self.offset - lengths) / (2 * (self.scale or 1.0))
        return rows

    def queries(self, vectors: np.ndarray) -> np.ndarray:
        """Query vectors (n, dim) that `normalized` returned, (n, width) float32, to multiply stored rows with."""
        if not self.euclidean:
            return vectors
        queries = np.zeros((len(vectors), self.width), np.float32)
        queries[:, : self.dim] = vectors
        queries[:, self.dim] = self.scale or 1.0
        return queries

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Vectors (n, dim) float32 out of stored rows (n, width)."""
        return self.normalized(rows[:, : self.dim])


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, dim) at unit length, float32; rows that have it already, to within rounding, stay as they are."""
    rows = np.asarray(vectors, np.float32)
    lengths = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1, keepdims=True))
    lengths[(np.abs(lengths - 1) <= _UNIT) | (lengths == 0)] = 1
    return np.asarray(rows / lengths, np.float32)
