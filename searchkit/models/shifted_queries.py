"""Queries of a model with an instruction shift: each moved between the graph and the map after it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from searchkit.models.batches import Batches, unit_rows
from searchkit.models.conventions import Conventions
from searchkit.models.instruction_shift import InstructionShift
from searchkit.models.onnx_runtime import OnnxRuntime

_MOST_KEPT = 1024


class ShiftedQueries:
    """Computes shifts, and remembers those of the instructions that came so far.

    Args:
        shift: The network beside the model.
        runtime: The model.
        batches: In which instructions are read.
    """

    def __init__(self, shift: InstructionShift, runtime: OnnxRuntime, batches: Batches) -> None:
        self.shift, self._runtime, self._batches = shift, runtime, batches
        self._kept: dict[tuple[int, ...], np.ndarray] = {}

    def shifts(
        self, instructions: Collection[tuple[int, ...]], conventions: Conventions
    ) -> dict[tuple[int, ...], np.ndarray]:
        """What is added to the unit rows that the graph gives for queries under each instruction, by its tokens."""
        known = {ids: self._kept[ids] for ids in instructions if ids in self._kept}
        new = list(dict.fromkeys(ids for ids in instructions if ids not in known))
        rows = self._batches.rows(
            [len(ids) for ids in new],
            self.shift.width,
            lambda batch: self._runtime.pooled([list(new[i]) for i in batch], conventions),
        )
        for ids, shift in zip(new, self.shift(rows), strict=True):
            if len(self._kept) >= _MOST_KEPT:
                self._kept = {}
            self._kept[ids] = known[ids] = shift
        return known

    def forward(
        self, batch: Sequence[list[int]], shifts: Sequence[np.ndarray | None], conventions: Conventions
    ) -> np.ndarray:
        """As the runtime's `forward`, with the texts that have a shift moved by it.

        A query under several instructions is computed once.
        """
        places = {ids: place for place, ids in enumerate(dict.fromkeys(map(tuple, batch)))}
        pooled = self._runtime.pooled([list(ids) for ids in places], conventions)
        pooled = pooled[[places[tuple(ids)] for ids in batch]]
        for row, shift in enumerate(shifts):
            if shift is not None:
                pooled[row] = unit_rows(pooled[row : row + 1])[0] + shift
        return self._runtime.mapped(pooled)
