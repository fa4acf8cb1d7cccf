"""Measure an index against judgements."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.engine import SearchEngine
from searchkit.errors import InputError
from searchkit.indexer.lexical import make_analyzer
from searchkit.metrics import DEPTH, means, score_queries, top
from searchkit.ranking import SearchOptions, as_mode
from searchkit.records import Qrels, Query, Run, join_title

EVALUATION_MODES = ("dense", "lexical", "hybrid", "rank-bm25")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One way of searching, measured.

    Args:
        mode: One of :data:`EVALUATION_MODES`.
        metrics: Means over all judged queries, by name: nDCG@10, recall@100, MRR@10, MAP@100.
        per_query: Every metric of every judged query, {metric: {query id: value}}.
        run: What was returned.
        seconds_per_query: Embedding and search, all queries in one batch.
        bytes_per_document: What this mode needs on disk for ranking, a document; None for a baseline in memory.
    """

    mode: str
    metrics: dict[str, float]
    per_query: dict[str, dict[str, float]]
    run: Run
    seconds_per_query: float
    bytes_per_document: float | None

    def summary(self) -> dict[str, float | int | None]:
        """The metrics with what they cost."""
        return {
            **self.metrics,
            "queries": len(self.per_query["ndcg@10"]),
            "seconds_per_query": self.seconds_per_query,
            "bytes_per_document": self.bytes_per_document,
        }


def evaluate(
    engine: SearchEngine,
    queries: Sequence[Query],
    qrels: Qrels,
    *,
    modes: Sequence[str] = ("dense", "lexical", "hybrid"),
    instruction: str | None = None,
    drop_self: bool = False,
    options: SearchOptions | None = None,
    on_mode: Callable[[str], None] | None = None,
) -> list[Evaluation]:
    """Search for every judged query in each mode, and score what comes back.

    Args:
        engine: The index.
        queries: Those with judgements are asked; a query's own instruction comes before `instruction`.
        qrels: The judgements. A judged query that is not asked, or finds nothing, counts as zero.
        modes: Some of :data:`EVALUATION_MODES`.
        instruction: For queries without their own; None takes the model's default, "" none.
        drop_self: Leave out the document whose id is the query's, where queries are documents themselves.
        options: Fusion settings; the mode in them is not used.
        on_mode: Told each mode before it begins.

    Raises:
        ValueError: A mode is unknown, or no judged document is in the index.
    """
    unknown = [mode for mode in modes if mode not in EVALUATION_MODES]
    if unknown or not modes:
        raise InputError(f"modes are {', '.join(unknown) or 'none'}; expected some of {', '.join(EVALUATION_MODES)}")
    asked = judged_queries(engine, queries, qrels)
    bytes_per_document = mode_bytes(engine)
    evaluations = []
    for mode in modes:
        if on_mode:
            on_mode(mode)
        rank = way_to_rank(engine, mode, instruction, options)
        began = time.perf_counter()
        run = rank(asked, DEPTH + drop_self)
        seconds = (time.perf_counter() - began) / len(asked)
        if drop_self:
            drop_own(run)
        run = {id: top(found, DEPTH) if len(found) > DEPTH else found for id, found in run.items()}
        per_query = score_queries(run, qrels)
        size = bytes_per_document.get(mode)
        evaluations.append(Evaluation(mode, means(per_query), per_query, run, seconds, size))
    return evaluations


def judged_queries(engine: SearchEngine, queries: Sequence[Query], qrels: Qrels) -> list[Query]:
    """The queries that have judgements; ValueError where index, queries and judgements do not belong together."""
    judged = {document for judgements in qrels.values() for document in judgements}
    if not engine.store.known_ids(sorted(judged)):
        raise InputError(
            f"none of the {len(judged)} judged documents is in the index; judgements and index are of different corpora"
        )
    asked = [query for query in queries if query.id in qrels]
    if not asked:
        raise InputError("none of the queries has a judgement; queries and judgements are of different sets")
    return asked


Rank = Callable[[list[Query], int], Run]
"""(queries, documents wanted of each) -> what is found."""


def way_to_rank(engine: SearchEngine, mode: str, instruction: str | None, options: SearchOptions | None) -> Rank:
    """How a mode of :data:`EVALUATION_MODES` answers, made ready: nothing is loaded when it is first asked."""
    return _rank_bm25(engine) if mode == "rank-bm25" else _rank_engine(engine, mode, instruction, options)


def drop_own(run: Run) -> None:
    """Take out of every query's documents the one whose id is the query's."""
    for query_id, found in run.items():
        found.pop(query_id, None)


def _rank_engine(engine: SearchEngine, mode: str, instruction: str | None, options: SearchOptions | None) -> Rank:
    settings = replace(options or SearchOptions(), mode=as_mode(mode))

    def rank(queries: list[Query], k: int) -> Run:
        # trec_eval breaks ties by id, so all that tie at the cut must be there.
        rankings = engine.rank(queries, instruction=instruction, k=k, options=settings, ties=True)
        ids = engine.ids_of(rankings)
        return {
            query.id: {ids[item.doc]: item.score for item in ranking}
            for query, ranking in zip(queries, rankings, strict=True)
        }

    if settings.mode != "lexical":
        engine.embedder.encode_queries(["warm up"])  # loading the model is not searching
    return rank


def _rank_bm25(engine: SearchEngine) -> Rank:
    """The classical baseline: rank-bm25 over the same words, every document scored for every query."""
    from rank_bm25 import BM25Okapi

    analyzer = make_analyzer(engine.settings["language"])
    ids, words = [], []
    for document_id, title, text in engine.store.documents():
        ids.append(document_id)
        words.append(analyzer.analyze(join_title(title, text)))
    scorer = BM25Okapi(words) if any(words) else None  # rank-bm25 divides by the number of words

    def rank(queries: list[Query], k: int) -> Run:
        run: Run = {}
        if scorer is None:
            return run
        for query in queries:
            scores = scorer.get_scores(analyzer.analyze(query.text))
            least = np.sort(scores)[-k] if len(scores) > k else 0.0
            run[query.id] = {ids[i]: float(scores[i]) for i in np.flatnonzero((scores >= least) & (scores > 0))}
        return run

    return rank


def mode_bytes(engine: SearchEngine) -> dict[str, float]:
    sizes = engine.store.sizes()
    documents = max(1, len(engine))
    dense, lexical = sizes["segments"] / documents, sizes["lexical"] / documents
    return {"dense": dense, "lexical": lexical, "hybrid": dense + lexical}


def write_run(file: Path, evaluation: Evaluation) -> None:
    """Write a run as TREC does: query Q0 document rank score system, best first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as stream:
        for query_id, documents in evaluation.run.items():
            for rank, (document, value) in enumerate(top(documents, DEPTH).items(), start=1):
                for name in (query_id, document):
                    if any(character.isspace() for character in name):
                        raise InputError(f"id {name!r} has white space, which a TREC run file cannot hold")
                # Nine digits keep every 32-bit score apart, so that trec_eval ranks the file as it was.
                score = f"{np.float32(value):.9g}"
                stream.write(f"{query_id} Q0 {document} {rank} {score} searchkit-{evaluation.mode}\n")


def write_report(file: Path, evaluations: Iterable[Evaluation], about: dict[str, Any]) -> None:
    """Write everything measured as JSON, with `about` (what was evaluated, and how) at its head."""
    modes = {
        item.mode: {
            **item.summary(),
            **{f"per_query_{name}": values for name, values in item.per_query.items()},
            "top10": {query: list(top(found, 10)) for query, found in item.run.items()},
        }
        for item in evaluations
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**about, "modes": modes}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
