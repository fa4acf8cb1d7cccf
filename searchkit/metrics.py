"""Quality of a ranking by relevance judgements: trec_eval's metrics for every query."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from searchkit.errors import InputError
from searchkit.records import MOST_GAIN, Qrels, Run

METRICS = ("ndcg@10", "recall@100", "map@100", "mrr@10")
DEPTH = 100
"""Documents of a query that are judged; lower ranks count in none of the metrics."""

_MEASURES = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "map@100": "map_cut_100"}


def check_metrics(names: Sequence[str]) -> None:
    """Raise InputError unless there is at least one name and all are in :data:`METRICS`."""
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise InputError(f"metrics are {', '.join(unknown) or 'none'}; expected some of {', '.join(METRICS)}")


def score_queries(run: Run, qrels: Qrels) -> dict[str, dict[str, float]]:
    """Every metric of every judged query by trec_eval's definitions, {metric: {query id: value}}.

    A judged query without hits scores zero. Ties are broken by document id, descending, as trec_eval does. Only the
    first 100 documents count. Negative judgements count as zero.

    Raises:
        InputError: There are no judgements, one is above :data:`searchkit.records.MOST_GAIN`, or an id holds a NUL.
    """
    import pytrec_eval

    if not qrels:
        raise InputError("there are no judgements; give at least one judged query")
    highest = max((gain for gains in qrels.values() for gain in gains.values()), default=0)
    if highest > MOST_GAIN:
        raise InputError(
            f"a judgement is {highest}; the highest possible is {MOST_GAIN}; divide all by the same number"
        )
    named: list[Iterable[str]] = [qrels, *qrels.values(), *(run[query] for query in run.keys() & qrels.keys())]
    for id in chain.from_iterable(named):
        if "\0" in id:  # trec_eval's ids end there, and those that are equal so far are one
            raise InputError(f"the id {id!r} holds a NUL; remove it")
    # trec_eval counts grades in an array, and those below -1, such as TREC's -2 for spam, outside of it.
    qrels = {query: {document: max(gain, 0) for document, gain in gains.items()} for query, gains in qrels.items()}
    run = {query: ranking for query, ranking in run.items() if query in qrels and ranking}
    measures = {"ndcg_cut.10", "recall.100", "map_cut.100", "recip_rank"}
    results = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run) if run else {}
    values = {
        name: {query: float(results.get(query, {}).get(key, 0.0)) for query in qrels} for name, key in _MEASURES.items()
    }
    # trec_eval has no cutoff for the reciprocal rank; rank 11 gives 1/11.
    reciprocal = {query: float(results.get(query, {}).get("recip_rank", 0.0)) for query in qrels}
    values["mrr@10"] = {query: value if value > 1 / 10.5 else 0.0 for query, value in reciprocal.items()}
    return values


def means(per_query: dict[str, dict[str, float]]) -> dict[str, float]:
    """The mean of every metric over all judged queries; over the answered ones alone it would reward silence."""
    return {name: sum(values.values()) / len(values) for name, values in per_query.items()}


def score(run: Run, qrels: Qrels) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of a run: (means over all judged queries, nDCG@10 of each); see :func:`score_queries`."""
    per_query = score_queries(run, qrels)
    return means(per_query), per_query["ndcg@10"]


def top(documents: dict[str, float], k: int) -> dict[str, float]:
    """The k best documents of one query, best first, in trec_eval's order."""
    # trec_eval compares scores as 32-bit floats, then ids as bytes.
    order = sorted(documents, key=lambda document: (np.float32(documents[document]), document.encode()), reverse=True)
    return {document: documents[document] for document in order[:k]}


def drop_own(run: Run) -> Run:
    """The run without the documents whose id is their query's."""
    return {query: {id: value for id, value in ranking.items() if id != query} for query, ranking in run.items()}
