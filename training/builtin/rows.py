"""Texts of examples, which occur several times and are embedded once, and their vectors in a file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

from searchkit.training.dataset import Example

NEGATIVES = 3
"""Of an example with an instruction; fewer are repeated."""


class Rows:
    """Different texts, or pairs of them, and the row of each."""

    def __init__(self, keys: Iterable[Any]) -> None:
        self.keys = list(dict.fromkeys(keys))
        self._rows = {key: row for row, key in enumerate(self.keys)}

    def __getitem__(self, key: Any) -> int:
        return self._rows[key]


def answers(example: Example, passages: Rows) -> list[int]:
    """The rows of an example's positive and of NEGATIVES negatives, of which it has at least one."""
    negatives = (example.negatives[n % len(example.negatives)] for n in range(NEGATIVES))
    return [passages[text] for text in (example.positive, *negatives)]


class Tensors:
    """Base of dataclasses whose fields are all tensors."""

    __slots__ = ()

    def sizes(self) -> str:
        """How many rows each has."""
        return ", ".join(f"{len(getattr(self, field.name))} {field.name}" for field in fields(self))  # type: ignore[arg-type]

    def save(self, file: Path) -> None:
        """Write it all."""
        from safetensors.torch import save_file

        save_file({field.name: getattr(self, field.name) for field in fields(self)}, str(file))  # type: ignore[arg-type]

    @classmethod
    def load(cls, file: Path) -> Self:
        """What `save` wrote."""
        from safetensors.torch import load_file

        return cls(**load_file(str(file)))
