"""One ranking out of two."""

from __future__ import annotations

from collections.abc import Sequence

Ranking = dict[int, float]
"""Item -> score, higher is better."""

FUSIONS = ("adaptive", "weighted", "rrf")

# Fitted on development data: SciFact (train), NFCorpus, corpora/intents, corpora/kinds, and queries written for
# Cranfield, under instructions that decide (docs/benchmarks.md has the table and its command) and under others that
# only say to search (docs/built-in-model.md).
WEAK, SOLID = 0.15, 0.25
"""Lexical evidence up to which the lexical side is ignored, and from which it has its full weight."""
DOUBT = 0.2
"""How much more evidence it takes where the instruction changes what is similar."""
DIVERGENT, EQUAL, SAME = 0.94, 0.95, 0.96
"""Agreement with the neutral instruction up to which the lexical side is ignored, from which it is not, and from which
it is not doubted either."""
FEW_TERMS = 6
"""Query terms below which agreement counts for less: an instruction changes a vector of two words for no reason."""


def lexical_share(evidence: float, agreement: float, terms: int) -> float:
    """How much of its weight the lexical side of one query keeps, 0 to 1.

    BM25 ignores the instruction, so it is trusted as far as the instruction changes nothing, and as far as it matched
    more than a common word or two.

    Args:
        evidence: The best BM25 score over the highest that the query's terms could give.
        agreement: Correlation of the candidates' similarities under the instruction with those under a neutral one.
        terms: Distinct terms of the query.
    """
    doubt = DOUBT * (1 - _ramp(agreement, EQUAL, SAME))
    matched = _ramp(evidence, WEAK + doubt, SOLID + doubt)
    neutral = _ramp(agreement, DIVERGENT, EQUAL)
    return matched * (1 - (1 - neutral) * min(1.0, terms / FEW_TERMS))


def _ramp(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))


def reciprocal_rank(rankings: Sequence[Ranking], rrf_k: int = 60) -> Ranking:
    """Sum of 1 / (rrf_k + rank) over the rankings (Cormack et al., 2009); needs no comparable scores."""
    fused: Ranking = {}
    for ranking in rankings:
        for rank, item in enumerate(sorted(ranking, key=lambda item: (-ranking[item], item)), start=1):
            fused[item] = fused.get(item, 0.0) + 1.0 / (rrf_k + rank)
    return fused


def weighted(dense: Ranking, lexical: Ranking, dense_weight: float) -> Ranking:
    """Weighted sum of both scores, each scaled to at most 1.

    Args:
        dense: A similarity for every candidate that has a vector, those of the lexical side included; scaled from
            lowest to highest, since even an unrelated text has some similarity. Without a vector counts as the lowest.
        lexical: BM25 of the candidates that share a term with the query; scaled by the highest, since 0 is meaningful
            there, and missing ones count as 0.
        dense_weight: Weight of the dense side, 0 to 1.
    """
    low, high = min(dense.values(), default=0.0), max(dense.values(), default=0.0)
    best = max(lexical.values(), default=0.0)
    fused: Ranking = {}
    for item in dense.keys() | lexical.keys():
        similarity = dense.get(item)
        scaled = 0.0 if similarity is None else (similarity - low) / (high - low) if high > low else 1.0
        bm25 = lexical.get(item, 0.0) / best if best > 0 else 0.0
        fused[item] = dense_weight * scaled + (1 - dense_weight) * bm25
    return fused
