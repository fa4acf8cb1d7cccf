"""The losses: contrast with negatives, distillation of a teacher's vectors, Matryoshka widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from searchkit.errors import InputError


def info_nce(
    queries: Tensor,
    passages: Tensor,
    *,
    temperature: float = 0.02,
    duplicates: Tensor | None = None,
    margin: float | None = None,
) -> Tensor:
    """The mean cross entropy of each query's positive among all passages of the batch.

    Every other passage is a negative of a query: the other queries' positives and all hard negatives.

    Args:
        queries: (q, dim) unit rows.
        passages: (p, dim) unit rows, p >= q; row i < q is the positive of query i, the rest are hard negatives.
        temperature: Softmax temperature.
        duplicates: (q, p) bool, True where a passage is not a negative of a query because it is relevant too, such as a
            copy of its positive. Entries (i, i) are ignored: a positive always counts.
        margin: Excludes each negative whose cosine exceeds that of the positive by more than this, as it is probably
            relevant but unlabelled; may be negative. None keeps all.

    Returns:
        A scalar, float32 (float64 for float64 rows).
    """
    check_temperature(temperature)
    count, width = len(queries), len(passages)
    if queries.ndim != 2 or passages.ndim != 2 or not 0 < count <= width or queries.shape[1] != passages.shape[1]:
        raise InputError(
            f"queries are {tuple(queries.shape)} and passages {tuple(passages.shape)}; expected (q, dim) and (p, dim) "
            "with 1 <= q <= p: the positives in the order of their queries, then the hard negatives"
        )
    if duplicates is not None and (duplicates.shape != (count, width) or duplicates.dtype != torch.bool):
        raise InputError(
            f"duplicates is {duplicates.dtype} {tuple(duplicates.shape)}; expected torch.bool {(count, width)}, "
            "a row for each query and a column for each passage"
        )
    with torch.autocast(queries.device.type, enabled=False):  # which would multiply in bfloat16 or float16
        cosines = full(queries) @ full(passages).T  # (q, p)
        excluded = torch.zeros_like(cosines, dtype=torch.bool)
        if duplicates is not None:
            excluded |= duplicates.to(cosines.device)
        if margin is not None:
            excluded |= cosines > cosines.diagonal().unsqueeze(1) + margin
        excluded.fill_diagonal_(False)
        logits = (cosines / temperature).masked_fill(excluded, float("-inf"))
        return F.cross_entropy(logits, torch.arange(count, device=logits.device))


def distillation(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 0.05,
    weight: float = 5.0,
    neighbours: float = 1.0,
    similarities: Tensor | None = None,
) -> Tensor:
    """The distance between a student's rows and its teacher's, one by one and as neighbours of each other.

    ``weight`` * mean(1 - cosine of the two rows of a text) + ``neighbours`` * KL(teacher || student), averaged over the
    texts, where the distribution of a text is the softmax of its cosines with the *other* texts of the batch, divided
    by ``temperature``.

    Args:
        student: (n, dim) unit rows.
        teacher: (n, dim) unit rows of the same texts, without gradient. Their width may differ from the student's if
            ``weight`` is 0, as then only neighbours are compared.
        temperature: Softmax temperature.
        weight: Weight of the first term.
        neighbours: Weight of the second term.
        similarities: (n, n), between the texts, for the second term instead of the cosines of the teacher's rows.

    Returns:
        A scalar, float32 (float64 for float64 rows).
    """
    check_temperature(temperature)
    if student.ndim != 2 or teacher.ndim != 2 or not 0 < len(student) == len(teacher):
        raise InputError(
            f"student is {tuple(student.shape)} and teacher {tuple(teacher.shape)}; expected one row per text in both"
        )
    if weight and student.shape != teacher.shape:
        raise InputError(
            f"the student's rows are {student.shape[1]} wide and the teacher's {teacher.shape[1]}, so there is no "
            "cosine between them; cut the teacher's rows to the student's width, or set weight=0"
        )
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = full(student), full(teacher.detach())
        target = teacher @ teacher.T if similarities is None else full(similarities.detach())
        learned, taught = (_others(each / temperature).log_softmax(1) for each in (student @ student.T, target))
        loss = neighbours * F.kl_div(learned, taught, reduction="batchmean", log_target=True)
        return loss + weight * (1 - (student * teacher).sum(1)).mean() if weight else loss


def matryoshka(loss: Callable[..., Tensor], *rows: Tensor, dims: Sequence[int]) -> Tensor:
    """The sum of a loss at several leading widths, so that truncated vectors are good vectors too.

        matryoshka(info_nce, queries, passages, dims=[1024, 256, 64])
        matryoshka(partial(info_nce, temperature=0.05), queries, passages, dims=[1024, 256])

    Args:
        loss: Takes as many tensors as there are ``rows``.
        rows: Each (n, dim); all are truncated to each width and normalised again.
        dims: Widths, at most the rows' own, which is included only if named.

    Returns:
        A scalar.
    """
    widest = min(tensor.shape[1] for tensor in rows)
    if not dims or not all(1 <= dim <= widest for dim in dims):
        raise InputError(f"dims are {list(dims)}; expected widths from 1 to the rows' own {widest}")
    return torch.stack([loss(*(F.normalize(full(tensor[:, :dim]), dim=1) for tensor in rows)) for dim in dims]).sum()


def full(rows: Tensor) -> Tensor:
    """The rows as float32; float64 stays."""
    return rows if rows.dtype == torch.float64 else rows.float()


def check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; expected a number above 0")


def _others(square: Tensor) -> Tensor:
    """(n, n) without its diagonal, (n, n - 1)."""
    count = len(square)
    return square[~torch.eye(count, dtype=torch.bool, device=square.device)].view(count, count - 1)
