"""Which hits are probably noise: a ranking always has a first place, also where nothing relevant exists."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from searchkit.indexer.analysis import Analyzer
from searchkit.records import Hit
from searchkit.searcher import Searcher

SHARED_TERMS = 0.5
"""A passage that holds at least this share of the query's terms is never called weak."""

SAMPLE = 256
"""Passages drawn at random to see how similar unrelated passages are to the query."""


def weak_matches(engine: Searcher, query: str, instruction: str | None, hits: Sequence[Hit]) -> list[bool]:
    """Whether each hit is weak: few of the query's terms occur in it, and its similarity could be chance.

    Chance is the similarity that the best of all passages would reach if they were as unrelated to the query as a
    random sample is: mean + standard deviation * sqrt(2 ln passages). Without a similarity, in a lexical ranking, the
    terms decide alone.

    Args:
        engine: The index that the hits are of.
        query: The query.
        instruction: Its instruction; None for the model's default.
        hits: Searched with `explain=True`.
    """
    analyzer = Analyzer(engine.settings["language"])
    terms = set(analyzer.analyze(query))
    doubtful = [
        len(terms & set(analyzer.analyze(f"{hit.title} {hit.text}"))) < SHARED_TERMS * max(1, len(terms))
        for hit in hits
    ]
    if not any(doubtful):
        return doubtful
    scores = [None if hit.explanation is None else hit.explanation.dense_score for hit in hits]
    if all(score is None for score in scores):
        return doubtful
    level = chance_similarity(engine, query, instruction)
    return [doubt and (score is None or score < level) for doubt, score in zip(doubtful, scores, strict=True)]


def chance_similarity(engine: Searcher, query: str, instruction: str | None) -> float:
    """The similarity to a query that the best of an index's passages would reach if none were related to it."""
    sample = engine.sample(SAMPLE)
    if len(sample) < 2:
        return -1.0  # no sample, no doubt
    similarities = sample @ engine.embed([query], instruction)[0]
    spread = math.sqrt(2 * math.log(max(2, engine.passages)))
    return float(np.mean(similarities) + spread * np.std(similarities))
