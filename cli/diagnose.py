"""What `searchkit evaluate --diagnose` adds: where an index loses quality."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.options import FusionOptions, require
from searchkit.cli.output import count, note, print_table, say, shorten, write_json

if TYPE_CHECKING:
    from searchkit.evaluation.diagnosis import Diagnosis, Group, Interval, Lengths
    from searchkit.evaluation.evaluate import Evaluation
    from searchkit.records import Judgements, Query
    from searchkit.searcher import Searcher

_RANKS = (1, 10, 100, 1000)
_WORST = 5  # queries listed
_TEXT = 70  # columns of a query
_FUSED = " (hybrid fuses deeper lists here, so its recall@100 differs from the one above)"


def needs_libraries(context: click.Context, parameter: click.Parameter, folder: Path | None) -> Path | None:
    """Option callback: refuse a diagnosis before any work if a library is missing."""
    if folder is not None:
        require("--diagnose", "eval", "matplotlib.figure", "scipy")
    return folder


def diagnose_evaluation(
    engine: Searcher, judgements: Judgements, evaluations: list[Evaluation], fusion: FusionOptions
) -> Diagnosis:
    """Diagnose an evaluation, reporting each step."""
    from searchkit.evaluation.diagnosis import diagnose

    return diagnose(
        engine,
        judgements,
        evaluations,
        options=fusion.search_options(),
        on_step=lambda step: note(f"{step} ..."),
    )


def write_diagnosis(
    folder: Path, header: dict[str, Any], diagnosis: Diagnosis, leaks: Sequence[dict[str, Any]], *, title: str
) -> None:
    """Write diagnosis.json and the charts."""
    from searchkit.reports.diagnosis_plot import diagnosis_charts

    file = folder / "diagnosis.json"
    write_json(file, {**header, **diagnosis.summary(), "pairs": leaks})
    charts = diagnosis_charts(folder, diagnosis, title=title)
    note(f"wrote {file} and {count(len(charts), 'chart')}")


def find_pair_leaks(
    file: Path, engine: Searcher, judgements: Judgements, evaluations: Iterable[Evaluation]
) -> dict[str, Any]:
    """What training pairs share with the test queries and the index, and the scores without the shared queries."""
    from searchkit.evaluation.diagnosis import Grouping
    from searchkit.training.contamination import Evaluation
    from searchkit.training.dataset import read_examples
    from searchkit.training.texts import fingerprint

    note(f"comparing {file} with the queries and the index ...")
    scores = {item.mode: item.per_query["ndcg@10"] for item in evaluations}
    first_mode = next(iter(scores.values()))
    queries = [query for query in judgements.queries if query.id in first_mode]
    leaks = Evaluation(queries, engine.documents()).find_leaks(read_examples(file, corpus=engine))
    shared = [query.id for query in queries if fingerprint(query.text) in leaks.asked]
    others = [id for id in first_mode if id not in set(shared)]
    means = Grouping(scores).means(others) if shared and others else {}
    return {
        "file": str(file),
        "examples": leaks.examined,
        "with_a_test_query": len(leaks.questions),
        "with_an_indexed_document": len(leaks.documents),
        "low_entropy": len(leaks.low_entropy),
        "samples": [match.text for match in leaks.questions.samples],
        "shared_queries": shared,
        "ndcg@10_without_them": {mode: score.summary() for mode, score in means.items()},
    }


def print_diagnosis(diagnosis: Diagnosis, leaks: Sequence[dict[str, Any]], queries: Sequence[Query]) -> None:
    """Print the main findings; diagnosis.json has the rest."""
    deepest = max(len(curve) for curve in diagnosis.recall.values())
    say(f"\n{_judgements(diagnosis)}")
    say(f"\nrecall by rank, among {deepest:,} hits" + (_FUSED if "hybrid" in diagnosis.recall else ""))
    _print_recall(diagnosis, deepest)
    say("\nnDCG@10 by number of words in the query, with 95 % intervals")
    _print_groups("words", diagnosis.by_words)
    say(f"\n{_lengths('documents', diagnosis.documents, diagnosis.cut)}")
    say(_lengths("queries", diagnosis.queries, True))
    if len(diagnosis.by_document) > 1:
        say(f"nDCG@10 by how many relevant documents are {'truncated' if diagnosis.cut else 'split'}")
        _print_groups("", diagnosis.by_document)
    if diagnosis.by_query:
        say("nDCG@10 by whether the query is truncated")
        _print_groups("", diagnosis.by_query)
    for shared in leaks:
        say(f"\n{_leaks(shared)}")
    say("\nqueries whose first relevant document ranks lowest, with its rank")
    _print_worst(diagnosis, queries)


def _judgements(diagnosis: Diagnosis) -> str:
    counts = diagnosis.judgements
    parts = [
        f"{counts['relevant']:,} documents judged relevant for {counts['queries']:,} queries",
        f"{counts['not_relevant']:,} judged not relevant",
    ]
    if not counts["not_relevant"]:
        parts[1] = "none judged not relevant, so an unjudged document may be either"
    if counts["queries_without_relevant"]:
        parts.append(f"queries without a relevant document, which score zero: {counts['queries_without_relevant']:,}")
    if counts["unknown"]:
        parts.append(f"judged documents that are not in the index: {counts['unknown']:,}")
    return "; ".join(parts)


def _print_recall(diagnosis: Diagnosis, deepest: int) -> None:
    ranks = sorted({*(rank for rank in _RANKS if rank < deepest), deepest})
    rows = [
        [
            mode,
            *(f"{curve[rank - 1]:.4f}" for rank in ranks),
            "-" if isnan(diagnosis.judged[mode]) else f"{diagnosis.judged[mode]:.4f}",
            str(diagnosis.unfound(mode)),
        ]
        for mode, curve in diagnosis.recall.items()
    ]
    print_table(["mode", *(f"@{rank:,}" for rank in ranks), "judged@10", "never found"], rows)


def _print_groups(name: str, groups: Sequence[Group]) -> None:
    modes = list(groups[0].scores)
    rows = [
        [group.name, str(len(group.queries)), *(_interval(group.scores[mode]) for mode in modes)] for group in groups
    ]
    print_table([name, "n", *modes], rows)


def _interval(score: Interval) -> str:
    return f"{score.mean:.3f}" if isnan(score.low) else f"{score.mean:.3f} ({score.low:.2f}-{score.high:.2f})"


def _lengths(name: str, lengths: Lengths, cut: bool) -> str:
    head = f"{name}: {lengths.longer:,} of {lengths.texts:,} are longer than {lengths.room:,} tokens"
    if not lengths.longer:
        return f"{head} (longest: {lengths.longest:,})"
    share = f"{lengths.beyond / lengths.tokens:.1%} of all tokens"
    effect = f"truncation hides {share} from the vectors" if cut else f"{share} are in passages after the first"
    return f"{head} (longest: {lengths.longest:,}); {effect}"


def _leaks(leaks: dict[str, Any]) -> str:
    lines = [
        f"{leaks['file']}: {count(leaks['examples'], 'pair')}; {leaks['with_a_test_query']:,} contain a test query, "
        f"{leaks['with_an_indexed_document']:,} a document of the index, "
        f"{leaks['low_entropy']:,} share a text so short that it may be chance"
    ]
    if leaks["shared_queries"]:
        scores = ", ".join(f"{mode} {score['mean']:.4f}" for mode, score in leaks["ndcg@10_without_them"].items())
        lines.append(
            f"  test queries in the training pairs: {len(leaks['shared_queries']):,}; scores that include them mean "
            f"little. nDCG@10 without them: {scores or 'no query is left'}"
        )
    return "\n".join(lines)


def _print_worst(diagnosis: Diagnosis, queries: Sequence[Query]) -> None:
    """Queries by the rank of their first relevant document in their best mode, lowest first."""
    modes = list(diagnosis.first)
    ranks = {query: [diagnosis.first[mode][query] for mode in modes] for query in diagnosis.first[modes[0]]}
    never = 1 + max(len(curve) for curve in diagnosis.recall.values())
    texts = {query.id: query.text for query in queries}
    order = sorted(ranks, key=lambda query: -min(never if rank is None else rank for rank in ranks[query]))
    rows = [
        [shorten(texts.get(query, query), _TEXT), *("-" if rank is None else f"{rank:,}" for rank in ranks[query])]
        for query in order[:_WORST]
    ]
    print_table(["query", *modes], rows)
