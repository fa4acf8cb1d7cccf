"""Several teachers as one: their similarities, standardised and added, and a projection of their vectors joined."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from searchkit.errors import InputError


def summed_similarities(teachers: Sequence[Tensor]) -> Tensor:
    """The sum of the teachers' similarities between the texts of a batch, each standardised first.

    A teacher's cosines with *other* texts are standardised: their mean over the batch is subtracted, and they are
    divided by their standard deviation. The sum is scaled to the spread of the first teacher's cosines, so that a
    temperature means the same for one teacher and for several.

    Args:
        teachers: (texts, width) unit rows of each teacher for the same texts; widths may differ.

    Returns:
        (texts, texts) float32 or float64; its diagonal means nothing.
    """
    if not teachers:
        raise InputError("no teachers; expected the rows of at least one")
    count = len(teachers[0])
    others = ~torch.eye(count, dtype=torch.bool, device=teachers[0].device)
    total = teachers[0].new_zeros(count, count)
    spreads = []
    for rows in teachers:
        cosines = rows @ rows.T
        spread = _spread(cosines[others])
        total = total + (cosines - cosines[others].mean()) / spread
        spreads.append(spread)
    return total * (spreads[0] / _spread(total[others]))


class Projection:
    """A map from the joined vectors of several teachers to the student's space, fitted on a sample of texts.

    Every teacher's vectors are centred and scaled, so that the inner products of the joined vectors are the sum of
    standardised similarities. Of the joined vectors the principal components are kept, as many as the student is wide,
    and turned to where they come nearest to the vectors that the student starts with (orthogonal Procrustes): a
    rotation changes no similarity, and the student has less to unlearn.

    Args:
        teachers: (sample, width) unit rows of each teacher.
        student: (sample, dim) unit rows of the student at the start.
    """

    def __init__(self, teachers: Sequence[Tensor], student: Tensor) -> None:
        if not teachers or any(len(rows) != len(student) for rows in teachers) or len(student) < 2:
            raise InputError(
                f"{len(student)} rows of the student and {[len(rows) for rows in teachers]} of its teachers; expected "
                "one for each of at least two texts in all"
            )
        student = student.double()
        teachers = [rows.double() for rows in teachers]
        self._means = [rows.mean(0) for rows in teachers]
        self._scales = [_spread(_cosines_with_others(rows)).rsqrt() for rows in teachers]
        joined = self._joined(teachers)
        _, vectors = torch.linalg.eigh(joined.T @ joined)  # ascending
        components = vectors[:, -student.shape[1] :].flip(1)  # (joined width, components)
        left, _, right = torch.linalg.svd(F.normalize(joined @ components, dim=1).T @ student, full_matrices=False)
        self._map = components @ (left @ right)  # (joined width, dim)

    def __call__(self, teachers: Sequence[Tensor]) -> Tensor:
        """(texts, dim) float32 unit rows from each teacher's (texts, width)."""
        return F.normalize(self._joined([rows.double() for rows in teachers]) @ self._map, dim=1).float()

    def _joined(self, teachers: Sequence[Tensor]) -> Tensor:
        parts = zip(teachers, self._means, self._scales, strict=True)
        return torch.cat([(rows - mean) * scale for rows, mean, scale in parts], dim=1)


def _cosines_with_others(rows: Tensor) -> Tensor:
    cosines = rows @ rows.T
    return cosines[~torch.eye(len(rows), dtype=torch.bool, device=rows.device)]


def _spread(values: Tensor) -> Tensor:
    """The standard deviation of all values, above zero."""
    return values.std(correction=0).clamp(min=1e-6) if len(values) else values.new_ones(())
