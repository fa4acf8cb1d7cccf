"""The model whose vectors a student learns, and the teacher's part of the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from searchkit.models.embedder import Embedder
from searchkit.models.location import find_model
from searchkit.models.onnx_runtime import MODEL_FILE
from searchkit.training.batches import Batch
from searchkit.training.gradcache import gather_list
from searchkit.training.loss import distillation

_CACHE = 2**28  # bytes of vectors


class Teacher:
    """A frozen model; the vectors of texts are cached while there is room.

    Args:
        model: A folder, a hub id or a packaged name.
        device: Where it runs; exported models run on the CPU.
        max_length: Tokens of a text that the student sees; the teacher sees no more.
        follows: It was trained with instructions, and its vectors of instructed queries are taught as they are.
    """

    def __init__(self, model: str, *, device: str, max_length: int, follows: bool) -> None:
        exported = (find_model(model)[0] / MODEL_FILE).is_file()
        self._embedder = Embedder(model) if exported else Embedder(model, dtype="float32", device=device)
        if max_length < self._embedder.max_length:
            self._embedder.set_max_length(max_length)
        self._follows = follows
        self._rows: dict[tuple[str | None, str], np.ndarray] = {}

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
        plain = self._queries([example.query for example in batch.examples], "")
        by_instruction: dict[str, list[int]] = {}
        for i, (example, use) in enumerate(zip(batch.examples, instructed, strict=True)):
            if use and example.instruction and (self._follows or not batch.kept):
                by_instruction.setdefault(example.instruction, []).append(i)
        for instruction, positions in by_instruction.items():
            rows = self._queries([batch.examples[i].query for i in positions], instruction)
            plain[positions] = rows if self._follows else plain[positions] + rows
        passages = self._cached(None, batch.passages(), self._embedder.encode_passages)
        groups = (F.normalize(plain, dim=-1), passages[: len(batch)], passages[len(batch) :])
        return torch.cat([part for group in groups for part in gather_list([group])])

    def _queries(self, queries: list[str], instruction: str) -> Tensor:
        return self._cached(instruction, queries, lambda texts: self._embedder.encode_queries(texts, instruction))

    def _cached(self, kind: str | None, texts: list[str], encode: Callable[[list[str]], np.ndarray]) -> Tensor:
        new = list(dict.fromkeys(text for text in texts if (kind, text) not in self._rows))
        if new:
            if len(self._rows) * self._embedder.dim * 4 > _CACHE:
                self._rows.clear()
                new = list(dict.fromkeys(texts))
            for text, row in zip(new, encode(new), strict=True):
                self._rows[kind, text] = row.copy()
        rows = [self._rows[kind, text] for text in texts]
        return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, self._embedder.dim)


def teaching_loss(rows: Tensor, taught: Tensor, apart: Tensor, *, weight: float, neighbours: float) -> Tensor:
    """The teacher's part of the loss.

    Args:
        rows: (n, dim) queries, then passages.
        taught: (n, dim) the teacher's; the width may differ only if ``weight`` is 0.
        apart: (queries,) bool, queries that learn by contrast what their instruction asks for. They are kept near the
            teacher's vectors (at two thirds of the weight), but excluded from its similarities between texts.
        weight: Weight of the cosine.
        neighbours: Weight of the similarities between texts.
    """
    excluded = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    excluded[: len(apart)] = apart
    loss = distillation(rows[~excluded], taught[~excluded], weight=weight, neighbours=neighbours)
    if not weight:
        return loss
    near = (1 - (rows[excluded] * taught[excluded]).sum(1)).sum() / len(rows)
    return loss + 2 / 3 * weight * near
