"""A second implementation of the port: exact search in numpy, whatever the recipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from searchkit.indexer.allowed import AllowedRows
from searchkit.indexer.errors import InputError
from searchkit.indexer.files import NewFile, Stamp
from searchkit.indexer.vectors.arrays import best
from searchkit.indexer.vectors.backend import VectorBackend, VectorIndex
from searchkit.indexer.vectors.recipes import Plan, Tuning


class NumpyIndex(VectorIndex):
    def __init__(self, plan: Plan, rows: np.ndarray) -> None:
        self._plan, self._rows = plan, rows

    @property
    def plan(self) -> Plan:
        return self._plan

    @property
    def dim(self) -> int:
        return int(self._rows.shape[1])

    @property
    def nbytes(self) -> int:
        return int(self._rows.nbytes)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, vectors: np.ndarray) -> None:
        self._rows = np.concatenate([self._rows, vectors.astype(np.float32)])

    def search(
        self, queries: np.ndarray, k: int, *, tuning: Tuning, allowed: AllowedRows | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        scores = queries @ self._rows.T
        if allowed is not None:
            scores = np.where(allowed.mask, scores, -np.inf)
        positions, scores = best(np.broadcast_to(np.arange(len(self)), scores.shape), scores, k)
        return np.where(np.isneginf(scores), -1, positions), scores

    def vectors(self, positions: np.ndarray | slice) -> np.ndarray:
        return np.asarray(self._rows[positions])

    def score(self, query: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return np.asarray(self._rows[positions] @ query)

    def empty(self) -> NumpyIndex:
        return NumpyIndex(self._plan, self._rows[:0])

    def save(self, file: Path) -> Stamp:
        with NewFile(file) as new:
            new.write(np.ascontiguousarray(self._rows, dtype="<f4").data)
        return new.stamp


class NumpyBackend(VectorBackend):
    def train(self, plan: Plan, sample: np.ndarray) -> NumpyIndex:
        if len(sample) < plan.needed:
            raise InputError(f"{plan.spelling} needs {plan.needed} vectors")
        return NumpyIndex(plan, np.empty((0, plan.dim), np.float32))

    def build(self, template: VectorIndex, batches: Iterable[np.ndarray], count: int) -> VectorIndex:
        index = template.empty()
        for batch in batches:
            index.add(batch)
        return index

    def write(self, template: VectorIndex, batches: Iterable[np.ndarray], count: int, file: Path) -> Stamp:
        return self.build(template, batches, count).save(file)

    def open(self, file: Path, plan: Plan, *, mapped: bool = True) -> NumpyIndex:
        return NumpyIndex(plan, np.fromfile(file, dtype="<f4").reshape(-1, plan.dim))

    def merge(self, files: Sequence[Path], kept: Sequence[np.ndarray], plan: Plan, file: Path) -> Stamp:
        rows = [self.open(part, plan).vectors(mask.nonzero()[0]) for part, mask in zip(files, kept, strict=True)]
        return NumpyIndex(plan, np.concatenate(rows)).save(file)

    def gather(
        self,
        template: VectorIndex,
        sources: Sequence[VectorIndex],
        owners: np.ndarray,
        positions: np.ndarray,
        file: Path,
    ) -> Stamp:
        rows = [sources[n].vectors(position[None]) for n, position in zip(owners, positions, strict=True)]
        return NumpyIndex(template.plan, np.concatenate(rows)).save(file)

    def accelerates(self, plan: Plan) -> bool:
        return False

    def close(self) -> None:
        pass
