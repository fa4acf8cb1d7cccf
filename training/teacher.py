"""The models whose vectors a student learns, and their part of the loss."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from searchkit.models.embedder import Embedder
from searchkit.models.location import find_model
from searchkit.models.onnx_runtime import MODEL_FILE
from searchkit.training.batches import Batch
from searchkit.training.dataset import Example
from searchkit.training.ensemble import Projection, summed_similarities
from searchkit.training.gradcache import gather_list
from searchkit.training.loss import distillation
from searchkit.training.vector_cache import VectorCache, key_of

_CACHE = 2**28  # bytes of vectors
_SAMPLE = 1500  # examples that a projection is fitted on


class Teacher:
    """A frozen model; the vectors of texts are kept in a folder, or in memory while there is room.

    Args:
        model: A folder, a hub id or a packaged name.
        device: Where it runs; exported models run on the CPU.
        max_length: Tokens of a text that the student sees; the teacher sees no more.
        follows: It was trained with instructions, and its vectors of instructed queries are taught as they are.
        vectors: Folder for its vectors, float16, in a folder of their own by the model's fingerprint; None keeps them
            in memory.
    """

    def __init__(self, model: str, *, device: str, max_length: int, follows: bool, vectors: Path | None = None) -> None:
        exported = (find_model(model)[0] / MODEL_FILE).is_file()
        self._embedder = Embedder(model) if exported else Embedder(model, dtype="float32", device=device)
        if max_length < self._embedder.max_length:
            self._embedder.set_max_length(max_length)
        self._follows = follows
        self._rows: dict[tuple[str | None, str], np.ndarray] = {}
        self._cache: VectorCache | None = None
        if vectors is not None:
            identity = {**self._embedder.identity(), "model": None, "adapter": None}  # a folder may move
            self._cache = VectorCache(vectors / key_of(json.dumps(identity, sort_keys=True)).hex(), self.dim)

    @property
    def dim(self) -> int:
        """Width of its rows."""
        return self._embedder.dim

    def rows(self, batch: Batch, instructed: Sequence[bool]) -> Tensor:
        """The teacher's rows for the queries, positives and negatives of all processes.

        A teacher that was not trained with instructions half follows them and is half confused by them. Unless it
        follows, an instructed query gets the mean of its vectors with and without the instruction; in a kept source,
        where instructions change nothing, the one without (see docs/built-in-model.md).

        Args:
            batch: This process's part.
            instructed: Which of its queries get their instruction.
        """
        plain = self.queries([example.query for example in batch.examples])
        by_instruction: dict[str, list[int]] = {}
        for i, (example, use) in enumerate(zip(batch.examples, instructed, strict=True)):
            if use and example.instruction and (self._follows or not batch.kept):
                by_instruction.setdefault(example.instruction, []).append(i)
        for instruction, positions in by_instruction.items():
            rows = self.queries([batch.examples[i].query for i in positions], instruction)
            plain[positions] = rows if self._follows else plain[positions] + rows
        passages = self.passages(batch.passages())
        groups = (F.normalize(plain, dim=-1), passages[: len(batch)], passages[len(batch) :])
        return torch.cat([part for group in groups for part in gather_list([group])])

    def queries(self, queries: list[str], instruction: str = "") -> Tensor:
        """(len(queries), dim) unit rows."""
        return self._cached(instruction, queries, lambda texts: self._embedder.encode_queries(texts, instruction))

    def passages(self, passages: list[str]) -> Tensor:
        """(len(passages), dim) unit rows."""
        return self._cached(None, passages, self._embedder.encode_passages)

    def _cached(self, kind: str | None, texts: list[str], encode: Callable[[list[str]], np.ndarray]) -> Tensor:
        if self._cache is not None:
            keys = [key_of(kind, text) for text in texts]
            missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._cache}
            if missing:
                self._cache.add(list(missing), encode(list(missing.values())))
            return F.normalize(torch.from_numpy(self._cache.rows(keys)), dim=-1)
        new = list(dict.fromkeys(text for text in texts if (kind, text) not in self._rows))
        if new:
            if len(self._rows) * self._embedder.dim * 4 > _CACHE:
                self._rows.clear()
                new = list(dict.fromkeys(texts))
            for text, row in zip(new, encode(new), strict=True):
                self._rows[kind, text] = row.copy()
        rows = [self._rows[kind, text] for text in texts]
        return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, self._embedder.dim)


@dataclass(frozen=True, slots=True)
class Taught:
    """What the texts of a batch are taught: queries, positives and negatives of all processes.

    Args:
        rows: (texts, dim) unit rows to come near to; of one teacher, they may be of another width than the student's.
        teachers: (texts, width) each, whose summed similarities are learnt; empty if they are those of `rows`.
    """

    rows: Tensor
    teachers: tuple[Tensor, ...] = ()

    def to(self, device: torch.device) -> Taught:
        """The same on a device."""
        return Taught(self.rows.to(device), tuple(rows.to(device) for rows in self.teachers))


class Teachers:
    """One teacher or several, as a step asks them.

    Args:
        teachers: At least one.
        projection: From the vectors of several to the student's space; None with one.
    """

    def __init__(self, teachers: Sequence[Teacher], projection: Projection | None = None) -> None:
        self._teachers, self._projection = teachers, projection

    def teach(self, batch: Batch, instructed: Sequence[bool]) -> Taught:
        """What the texts of a batch are taught; see :meth:`Teacher.rows`."""
        rows = tuple(teacher.rows(batch, instructed) for teacher in self._teachers)
        return Taught(rows[0]) if self._projection is None else Taught(self._projection(rows), rows)

    def query_rows(self, queries: Sequence[str]) -> np.ndarray:
        """(len(queries), dim) float32, where neighbours of the queries are near; with several teachers."""
        assert self._projection is not None
        rows = [teacher.queries(list(queries)) for teacher in self._teachers]
        return self._projection(rows).numpy()


def fit_teachers(teachers: Sequence[Teacher], student: Embedder, examples: Sequence[Example], seed: int) -> Teachers:
    """Several teachers with a projection to the space of a student that has not been trained yet.

    It is fitted on the queries and positives of a sample, so that a resumed run fits the same.

    Args:
        teachers: Two or more.
        student: The base.
        examples: Of all sources.
        seed: Draws the sample.
    """
    sample = random.Random(f"{seed}/projection").sample(examples, min(_SAMPLE, len(examples)))
    queries = list(dict.fromkeys(example.query for example in sample))
    passages = list(dict.fromkeys(example.positive for example in sample))
    rows = [torch.cat([teacher.queries(queries), teacher.passages(passages)]) for teacher in teachers]
    start = np.concatenate([student.encode_queries(queries, ""), student.encode_passages(passages)])
    return Teachers(teachers, Projection(rows, torch.from_numpy(start)))


def teaching_loss(
    rows: Tensor,
    taught: Tensor,
    apart: Tensor,
    *,
    weight: float,
    neighbours: float,
    teachers: Sequence[Tensor] = (),
) -> Tensor:
    """The teacher's part of the loss.

    Args:
        rows: (n, dim) queries, then passages.
        taught: (n, dim) the teacher's; the width may differ only if ``weight`` is 0.
        apart: (queries,) bool, queries that learn by contrast what their instruction asks for. They are kept near the
            teacher's vectors (at two thirds of the weight), but excluded from its similarities between texts.
        weight: Weight of the cosine.
        neighbours: Weight of the similarities between texts.
        teachers: (n, width) each, the rows of several teachers, whose summed similarities are learnt instead of those
            of ``taught`` (see :func:`summed_similarities`).
    """
    excluded = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    excluded[: len(apart)] = apart
    similarities = summed_similarities([each[~excluded] for each in teachers]) if teachers else None
    loss = distillation(
        rows[~excluded], taught[~excluded], weight=weight, neighbours=neighbours, similarities=similarities
    )
    if not weight:
        return loss
    near = (1 - (rows[excluded] * taught[excluded]).sum(1)).sum() / len(rows)
    return loss + 2 / 3 * weight * near
