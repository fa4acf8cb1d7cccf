"""A linear map that brings queries nearer to the passages that answer them, fitted with numpy in seconds.

The loss is InfoNCE over many passages at once, of cosines after the map, plus the map's squared distance to the
identity. How much of the map is used is chosen by queries held out from fitting it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STEPS, BATCH, LEARNING_RATE, TEMPERATURE, STAY = 60, 256, 3e-3, 0.03, 0.1
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
HELD_OUT = 0.2
"""Share of the queries that choose the strength."""
_NUMBERS = 3_000_000  # in the passages of one step; a step takes a fraction of a second at any width up to 1024
_CUTOFF = 10  # ranks that count


def most_passages(dim: int) -> int:
    """How many passages a step compares queries with at most."""
    return max(2 * BATCH, _NUMBERS // dim)


@dataclass(frozen=True, slots=True)
class VectorPairs:
    """Pairs of a query and a passage, as vectors.

    Args:
        queries: (n, dim) float32 unit rows, one for each pair.
        passages: (m, dim) float32 unit rows: those of the pairs, and others to tell them from.
        right: (n,) the position of each pair's passage.
        neutral: For each pair, positions that are neither right nor wrong: other passages that answer its query.
        groups: (n,) numbers; pairs of one query have the same.
    """

    queries: np.ndarray
    passages: np.ndarray
    right: np.ndarray
    neutral: Sequence[np.ndarray]
    groups: np.ndarray

    def only(self, chosen: np.ndarray) -> VectorPairs:
        """Some of the pairs, by a mask (n,), with all passages."""
        neutral = [each for each, mine in zip(self.neutral, chosen, strict=True) if mine]
        return VectorPairs(self.queries[chosen], self.passages, self.right[chosen], neutral, self.groups[chosen])


def fit(pairs: VectorPairs, *, seed: int = 0) -> tuple[np.ndarray, float]:
    """(map, strength): the map is (dim, dim) float32, the identity for strength 0; vectors times it are the new ones.

    Args:
        pairs: What to fit it to.
        seed: Draws what is held out, and what a step sees.
    """
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.unique(pairs.groups))
    held_out = np.isin(pairs.groups, groups[: max(1, round(HELD_OUT * len(groups)))])
    trial, judging = _fitted(pairs.only(~held_out), seed), pairs.only(held_out)
    scores = [mean_gain(_partly(trial, strength), judging) for strength in STRENGTHS]
    strength = STRENGTHS[int(np.argmax(scores))]
    if strength == 0:
        return np.eye(pairs.passages.shape[1], dtype=np.float32), strength
    return _partly(_fitted(pairs, seed), strength), strength


def _partly(matrix: np.ndarray, strength: float) -> np.ndarray:
    """So much of the way from the identity to a map."""
    start = np.eye(len(matrix), dtype=np.float32)
    return start + np.float32(strength) * (matrix - start)


def _fitted(pairs: VectorPairs, seed: int) -> np.ndarray:
    """The map at full strength, by Adam with a learning rate that falls to zero."""
    rng = np.random.default_rng(seed)
    count, dim = pairs.passages.shape
    most = most_passages(dim)
    start = np.eye(dim, dtype=np.float32)
    matrix, mean, square = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step in range(STEPS):
        chosen = rng.permutation(len(pairs.queries))[:BATCH]
        columns = np.arange(count)
        if count > most:
            columns = np.union1d(pairs.right[chosen], rng.choice(count, most, replace=False))
        gradient = _gradient(matrix, pairs, chosen, columns) + 2 * STAY * (matrix - start)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        rate = LEARNING_RATE * (1 - step / STEPS)
        matrix -= rate * (mean / (1 - 0.9 ** (step + 1))) / (np.sqrt(square / (1 - 0.999 ** (step + 1))) + 1e-8)
    return matrix


def _gradient(matrix: np.ndarray, pairs: VectorPairs, chosen: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The gradient of InfoNCE by the map, (dim, dim).

    Args:
        matrix: The map.
        pairs: All pairs.
        chosen: (b,) those in the batch.
        columns: (c,) ascending, the passages in it.
    """
    queries, passages = pairs.queries[chosen], pairs.passages[columns]
    asked, asked_lengths = _unit(queries @ matrix)
    found, found_lengths = _unit(passages @ matrix)
    logits = asked @ found.T / np.float32(TEMPERATURE)  # (b, c)
    logits[_neutral(pairs, chosen, columns)] = -np.inf
    logits -= logits.max(axis=1, keepdims=True)
    errors = np.exp(logits)
    errors /= errors.sum(axis=1, keepdims=True)
    errors[np.arange(len(chosen)), np.searchsorted(columns, pairs.right[chosen])] -= 1
    errors /= np.float32(TEMPERATURE * len(chosen))
    by_asked = _before_unit(errors @ found, asked, asked_lengths)
    by_found = _before_unit(errors.T @ asked, found, found_lengths)
    return np.asarray(queries.T @ by_asked + passages.T @ by_found)


def _unit(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of length 1, and the lengths (n, 1) they had."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / lengths, lengths


def _before_unit(gradient: np.ndarray, unit: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The gradient by rows from that by the rows at length 1."""
    return np.asarray((gradient - unit * (gradient * unit).sum(axis=1, keepdims=True)) / lengths)


def _neutral(pairs: VectorPairs, chosen: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of what is neither right nor wrong among the scores of a batch."""
    lists = [pairs.neutral[each] for each in chosen.tolist()]
    rows = np.repeat(np.arange(len(chosen)), [len(each) for each in lists])
    wanted = np.concatenate(lists) if lists else np.empty(0, np.int64)
    places = np.minimum(np.searchsorted(columns, wanted), len(columns) - 1)
    there = columns[places] == wanted
    return rows[there], places[there]


def mean_gain(matrix: np.ndarray, pairs: VectorPairs) -> float:
    """Mean nDCG@10 of pairs after a map, each with its own passage as the only right one."""
    found, _ = _unit(pairs.passages @ matrix)
    everything, gains = np.arange(len(found)), []
    for start in range(0, len(pairs.queries), BATCH):
        chosen = np.arange(start, min(start + BATCH, len(pairs.queries)))
        scores = _unit(pairs.queries[chosen] @ matrix)[0] @ found.T
        scores[_neutral(pairs, chosen, everything)] = -np.inf
        ranks = (scores > scores[np.arange(len(chosen)), pairs.right[chosen]][:, None]).sum(axis=1)
        gains.append(np.where(ranks < _CUTOFF, 1 / np.log2(ranks + 2.0), 0.0))
    return float(np.concatenate(gains).mean())
