"""Measure an index against relevance judgements."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.errors import InputError
from searchkit.indexer.analysis import Analyzer
from searchkit.metrics import DEPTH, drop_own, means, score_queries, top
from searchkit.models.reranker import Reranker
from searchkit.ranking import SearchOptions, as_mode
from searchkit.records import Judgements, Query, Run, join_title
from searchkit.reranking import RERANK_DEPTH, rerank_hits
from searchkit.searcher import Searcher
from searchkit.validation import whole_number

EVALUATION_MODES = ("dense", "lexical", "hybrid", "rank-bm25")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One search mode, measured.

    Args:
        mode: One of :data:`EVALUATION_MODES`, followed by "+rerank" where a reranker had the last word.
        metrics: Means over all judged queries, by name: nDCG@10, recall@100, MRR@10, MAP@100.
        per_query: Every metric of every judged query, {metric: {query id: value}}.
        run: The ranking of every query.
        seconds_per_query: Embedding and search, all queries in one batch.
        bytes_per_document: Disk space this mode needs for ranking; None for a baseline in memory.
    """

    mode: str
    metrics: dict[str, float]
    per_query: dict[str, dict[str, float]]
    run: Run
    seconds_per_query: float
    bytes_per_document: float | None

    def summary(self) -> dict[str, float | int | None]:
        """The metrics and their cost."""
        return {
            **self.metrics,
            "queries": len(self.per_query["ndcg@10"]),
            "seconds_per_query": self.seconds_per_query,
            "bytes_per_document": self.bytes_per_document,
        }


def evaluate(
    engine: Searcher,
    judgements: Judgements,
    *,
    modes: Sequence[str] = ("dense", "lexical", "hybrid"),
    options: SearchOptions | None = None,
    on_mode: Callable[[str], None] | None = None,
    reranker: Reranker | None = None,
    rerank_depth: int = RERANK_DEPTH,
) -> list[Evaluation]:
    """Search for every judged query in each mode, and score the rankings.

    Args:
        engine: The index.
        judgements: Queries and qrels. A judged query that is missing from the queries, or has no hits, scores zero.
        modes: Some of :data:`EVALUATION_MODES`.
        options: Fusion settings; their mode is ignored.
        on_mode: Called with each mode before it is searched.
        reranker: Each mode but rank-bm25 is measured a second time, with its first hits in this model's order.
        rerank_depth: How many hits it reads.

    Raises:
        InputError: A mode is unknown, or no judged document is in the index.
    """
    check_modes(modes)
    queries = judged_queries(engine, judgements)
    sizes = mode_bytes(engine)
    evaluations = []
    rankers: list[tuple[str, Callable[[], Any]]] = []
    for mode in modes:
        rankers.append((mode, partial(make_ranker, engine, mode, judgements, options)))
        if reranker is not None and mode != "rank-bm25":
            own = replace(options or SearchOptions(), mode=as_mode(mode))
            again = partial(RerankedRanker, engine, judgements, own, reranker, rerank_depth)
            rankers.append((f"{mode}+rerank", again))
    for mode, prepare in rankers:
        if on_mode:
            on_mode(mode)
        ranker = prepare()
        began = time.perf_counter()
        run = ranker.run(queries, DEPTH)
        seconds = (time.perf_counter() - began) / len(queries)
        run = {query: top(ranking, DEPTH) if len(ranking) > DEPTH else ranking for query, ranking in run.items()}
        per_query = score_queries(run, judgements.qrels)
        evaluations.append(
            Evaluation(mode, means(per_query), per_query, run, seconds, sizes.get(mode.partition("+")[0]))
        )
    return evaluations


def check_modes(modes: Sequence[str]) -> None:
    """Raise InputError unless there is at least one mode and all are in :data:`EVALUATION_MODES`."""
    unknown = [mode for mode in modes if mode not in EVALUATION_MODES]
    if unknown or not modes:
        raise InputError(f"modes are {', '.join(unknown) or 'none'}; expected some of {', '.join(EVALUATION_MODES)}")


def judged_queries(engine: Searcher, judgements: Judgements) -> list[Query]:
    """The queries that have judgements.

    Raises:
        InputError: The index holds no judged document, or no query is judged.
    """
    qrels = judgements.qrels
    documents = {document for gains in qrels.values() for document in gains}
    if not engine.known_ids(sorted(documents)):
        raise InputError(
            f"none of the {len(documents)} judged documents is in the index; "
            "judgements and index are of different corpora"
        )
    queries = [query for query in judgements.queries if query.id in qrels]
    if not queries:
        raise InputError("none of the queries has a judgement; queries and judgements are of different sets")
    return queries


def make_ranker(
    engine: Searcher, mode: str, judgements: Judgements, options: SearchOptions | None
) -> EngineRanker | Bm25Ranker:
    """The ranker of a mode of :data:`EVALUATION_MODES`, warmed up so that its first run can be timed."""
    if mode == "rank-bm25":
        return Bm25Ranker(engine, judgements)
    return EngineRanker(engine, judgements, replace(options or SearchOptions(), mode=as_mode(mode)))


class EngineRanker:
    """Ranks queries as the index itself does."""

    def __init__(self, engine: Searcher, judgements: Judgements, options: SearchOptions) -> None:
        self._engine, self._options = engine, options
        self._instruction, self._drop_self = judgements.instruction, judgements.drop_self
        if options.mode != "lexical":
            engine.warm_up()

    def run(self, queries: Sequence[Query], k: int) -> Run:
        """The k best documents of every query, and all that tie with the k-th."""
        # trec_eval breaks ties by id, so it has to see every document that ties at the cut.
        rankings = self._engine.rank(
            queries, instruction=self._instruction, k=k + self._drop_self, options=self._options, ties=True
        )
        ids = self._engine.ids_of(rankings)
        run = {
            query.id: {ids[item.doc]: item.score for item in ranking}
            for query, ranking in zip(queries, rankings, strict=True)
        }
        return drop_own(run) if self._drop_self else run


class RerankedRanker:
    """Ranks queries as the index does, and then the first hits as a reranker does; the others follow in their order."""

    def __init__(
        self, engine: Searcher, judgements: Judgements, options: SearchOptions, reranker: Reranker, depth: int
    ) -> None:
        self._engine, self._options, self._reranker = engine, options, reranker
        self._depth = whole_number("rerank_depth", depth, 1)
        self._instruction, self._drop_self = judgements.instruction, judgements.drop_self
        if options.mode != "lexical":
            engine.warm_up()

    def run(self, queries: Sequence[Query], k: int) -> Run:
        """The k best documents of every query."""
        run: Run = {}
        found = self._engine.search_many(
            queries, instruction=self._instruction, k=max(k + self._drop_self, self._depth), options=self._options
        )
        for query, hits in zip(queries, found, strict=True):
            read = rerank_hits(self._reranker, query, hits, self._instruction, self._depth)
            # Scores are 0 to 1, so that whatever was not read comes after it.
            rest = {hit.id: -float(hit.rank) for hit in hits[self._depth :]}
            run[query.id] = {hit.id: hit.score for hit in read} | rest
        return drop_own(run) if self._drop_self else run


class Bm25Ranker:
    """The classical baseline: rank-bm25 over the words of the lexical index, scoring every document for every query."""

    def __init__(self, engine: Searcher, judgements: Judgements) -> None:
        from rank_bm25 import BM25Okapi

        self._analyzer = Analyzer(engine.settings["language"])
        self._drop_self = judgements.drop_self
        self._ids: list[str] = []
        words: list[list[str]] = []
        for document in engine.documents():
            self._ids.append(document.id)
            words.append(self._analyzer.analyze(join_title(document.title, document.text)))
        self._scorer = BM25Okapi(words) if any(words) else None  # rank-bm25 divides by the number of words

    def run(self, queries: Sequence[Query], k: int) -> Run:
        """The k best documents of every query, and all that tie with the k-th."""
        if self._scorer is None:
            return {}
        run: Run = {}
        for query in queries:
            scores = self._scorer.get_scores(self._analyzer.analyze_query(query.text))
            depth = k + self._drop_self
            least = np.sort(scores)[-depth] if len(scores) > depth else 0.0
            run[query.id] = {self._ids[n]: float(scores[n]) for n in np.flatnonzero((scores >= least) & (scores > 0))}
        return drop_own(run) if self._drop_self else run


def mode_bytes(engine: Searcher) -> dict[str, float]:
    """Bytes a document that dense, lexical and hybrid search need; empty where that is not known."""
    sizes = {part: size / max(1, len(engine)) for part, size in engine.bytes_by_part().items()}
    return sizes and {**sizes, "hybrid": sizes["dense"] + sizes["lexical"]}


def write_run(file: Path, evaluation: Evaluation) -> None:
    """Write a run in TREC's format: query Q0 document rank score system, best first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as stream:
        for query_id, documents in evaluation.run.items():
            for rank, (document, value) in enumerate(top(documents, DEPTH).items(), start=1):
                for name in (query_id, document):
                    if any(character.isspace() for character in name):
                        raise InputError(f"id {name!r} has white space, which a TREC run file cannot hold")
                # Nine digits tell all 32-bit scores apart, so that trec_eval ranks the file as we did.
                score = f"{np.float32(value):.9g}"
                stream.write(f"{query_id} Q0 {document} {rank} {score} searchkit-{evaluation.mode}\n")


def write_report(file: Path, evaluations: Iterable[Evaluation], header: dict[str, Any]) -> None:
    """Write all measurements as JSON, after `header` (what was evaluated, and how)."""
    modes = {
        item.mode: {
            **item.summary(),
            **{f"per_query_{name}": values for name, values in item.per_query.items()},
            "top10": {query: list(top(ranking, 10)) for query, ranking in item.run.items()},
        }
        for item in evaluations
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**header, "modes": modes}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
