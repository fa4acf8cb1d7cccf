"""The model that a student learns vectors of, and the part of the loss that is the teacher's."""

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

_REMEMBERED = 2**28  # bytes of vectors


class Teacher:
    """A model that does not change, so that each text is embedded once as long as there is room to remember it.

    Args:
        model: A folder, a hub id or a packaged name.
        device: Where it runs; exported models run on the processor.
        max_length: Tokens that the student sees of a text; the teacher sees no more.
        follows: It was trained for instructions, and its vectors of instructed queries are taught as they are.
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

    def rows(self, batch: Batch, told: Sequence[bool]) -> Tensor:
        """The teacher's rows for the queries, positives and negatives of all processes.

        A teacher not trained for instructions half follows them and is half confused by them. Unless it follows, an
        instructed query gets the middle between its vectors with and without the instruction; and of a kept source,
        where instructions change nothing, the one without (see docs/built-in-model.md).

        Args:
            batch: This process's part.
            told: Which of its queries get their instruction.
        """
        plain = self._queries([example.query for example in batch.examples], "")
        by_instruction: dict[str, list[int]] = {}
        for i, (example, use) in enumerate(zip(batch.examples, told, strict=True)):
            if use and example.instruction and (self._follows or not batch.kept):
                by_instruction.setdefault(example.instruction, []).append(i)
        for instruction, places in by_instruction.items():
            instructed = self._queries([batch.examples[i].query for i in places], instruction)
            plain[places] = instructed if self._follows else plain[places] + instructed
        passages = self._known(None, batch.passages(), self._embedder.encode_passages)
        groups = (F.normalize(plain, dim=-1), passages[: len(batch)], passages[len(batch) :])
        return torch.cat([part for group in groups for part in gather_list([group])])

    def _queries(self, queries: list[str], instruction: str) -> Tensor:
        return self._known(instruction, queries, lambda texts: self._embedder.encode_queries(texts, instruction))

    def _known(self, kind: str | None, texts: list[str], encode: Callable[[list[str]], np.ndarray]) -> Tensor:
        new = list(dict.fromkeys(text for text in texts if (kind, text) not in self._rows))
        if new:
            if len(self._rows) * self._embedder.dim * 4 > _REMEMBERED:
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
        taught: (n, dim) the teacher's; of another width only where ``weight`` is 0.
        apart: (queries,) bool, those that learn from contrast what their instruction wants. They are kept near the
            teacher (two thirds of the weight), but out of the similarities that are to be the teacher's.
        weight: Of the cosine.
        neighbours: Of the similarities between texts.
    """
    left_out = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    left_out[: len(apart)] = apart
    loss = distillation(rows[~left_out], taught[~left_out], weight=weight, neighbours=neighbours)
    if not weight:
        return loss
    near = (1 - (rows[left_out] * taught[left_out]).sum(1)).sum() / len(rows)
    return loss + 2 / 3 * weight * near
