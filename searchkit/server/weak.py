"""Which hits are probably noise: a ranking always has a first place, also where nothing relevant exists."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from threading import Lock, Thread

import numpy as np

from searchkit.indexer.analysis import Analyzer
from searchkit.models.embedder import Embedder
from searchkit.readers.kinds import kinds_rows
from searchkit.records import Hit

logger = logging.getLogger(__name__)

PAIRS = 64
UNLIKE = 0.02
"""Share of the related pairs that are less similar than the level; the level is fitted to no index."""
SHARED_TERMS = 0.5
"""A passage that holds at least this share of the query's terms is never called weak."""

_PATIENCE = 10.0


def weak_matches(query: str, hits: Sequence[Hit], language: str, level: Callable[[], float | None]) -> list[bool]:
    """Whether each hit is weak: few of the query's terms occur in it, and it is less similar than related texts are.

    A hit without a similarity, in a lexical ranking, is never weak: it holds terms of the query.

    Args:
        query: The query.
        hits: Searched with `explain=True`.
        language: The index's.
        level: Gives the similarity that nearly all related texts reach, or None if it is not known (yet).
    """
    analyzer = Analyzer(language)
    terms = set(analyzer.analyze_query(query))
    needed = SHARED_TERMS * max(1, len(terms))
    doubtful = [
        _similarity(hit) is not None and len(terms & set(analyzer.analyze(f"{hit.title} {hit.text}"))) < needed
        for hit in hits
    ]
    threshold = level() if any(doubtful) else None
    if threshold is None:
        return [False] * len(hits)
    return [doubt and (_similarity(hit) or 0.0) < threshold for doubt, hit in zip(doubtful, hits, strict=True)]


def _similarity(hit: Hit) -> float | None:
    """Its similarity, unless the model cannot read the query, in which case it has no weight and means nothing."""
    why = hit.explanation
    return None if why is None or why.dense_weight == 0 else why.dense_score


def related_similarity(embedder: Embedder) -> float:
    """The similarity that all but `UNLIKE` of related texts reach: questions and their answers of `corpora/kinds`.

    Models differ in what numbers they give to related and to unrelated texts, indexes hardly do.
    """
    topics = kinds_rows("topics")[:PAIRS]
    questions, answers = ([topic[kind] for topic in topics] for kind in ("question", "answer"))
    similarities = np.sum(embedder.encode_queries(questions) * embedder.encode_passages(answers), axis=1)
    return float(np.quantile(similarities, UNLIKE))


class RelatedLevels:
    """The level of each model, measured in a thread when it is first needed: with a large model it takes minutes."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._levels: dict[int, _Level] = {}

    def of(self, embedder: Embedder) -> float | None:
        """The level, or None while a slow model still measures it or where it failed."""
        with self._lock:
            level = self._levels.get(id(embedder))
            if level is None:
                level = self._levels[id(embedder)] = _Level(embedder)
                level.start()
        level.join(_PATIENCE)
        return level.value


class _Level(Thread):
    """Measures one model; a daemon, so that a process that ends does not wait for it."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(name="related-similarity", daemon=True)
        self._embedder = embedder
        self.value: float | None = None

    def run(self) -> None:
        try:
            self.value = related_similarity(self._embedder)
        except Exception:
            logger.exception("no match is called weak: the similarity of related texts could not be measured")
