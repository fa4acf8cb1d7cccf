"""`searchkit evaluate --diagnose`: where an index loses, beside how much."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.options import FILE, F, note
from searchkit.errors import MissingExtraError

if TYPE_CHECKING:
    from searchkit.engine import SearchEngine
    from searchkit.evaluation.diagnosis import Diagnosis, Group, Interval, Lengths
    from searchkit.evaluation.evaluate import Evaluation
    from searchkit.records import Judgements, Query

_RANKS = (1, 10, 100, 1000)
_WORST = 5  # queries that are named
_TEXT = 70  # characters of one
_FUSED = " (hybrid joins deeper lists then, so that its recall@100 is not the one above)"


def diagnose_options(command: F) -> F:
    """A closer look at an evaluation."""
    for option in reversed(
        [
            click.option(
                "--diagnose",
                type=click.Path(file_okay=False, path_type=Path),
                help="Say where it loses: by rank, length, what is cut, holes in judgements. Folder for JSON, charts.",
            ),
            click.option("--pairs", type=FILE, multiple=True, help="Training pairs to look for the test set in."),
        ]
    ):
        command = option(command)
    return command


def check(options: dict[str, Any]) -> None:
    """Raise before anything is searched: UsageError on options without effect, ImportError on missing libraries."""
    if options["pairs"] and not options["diagnose"]:
        raise click.UsageError("--pairs goes with --diagnose FOLDER only")
    if options["diagnose"]:
        try:
            import matplotlib  # noqa: F401
            import scipy  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"--diagnose needs {error.name}: pip install 'searchkit[eval]'") from error


def diagnose_evaluation(
    engine: SearchEngine,
    judgements: Judgements,
    evaluations: list[Evaluation],
    about: dict[str, Any],
    options: dict[str, Any],
    settings: Any,
) -> tuple[Diagnosis, list[dict[str, Any]]]:
    """Diagnose, look for leaks, write diagnosis.json and the charts, and return what was found."""
    from searchkit.evaluation.diagnosis import diagnose
    from searchkit.reports.diagnosis_plot import diagnosis_charts

    found = diagnose(
        engine,
        judgements,
        evaluations,
        options=settings,
        on_step=lambda step: note(f"{step} ..."),
    )
    leaks = [_leaks(file, engine, judgements.queries, evaluations) for file in options["pairs"]]
    folder: Path = options["diagnose"]
    folder.mkdir(parents=True, exist_ok=True)
    content = {**about, **found.summary(), "pairs": leaks}
    file = folder / "diagnosis.json"
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    name = (options["beir"] or options["qrels"]).resolve().name
    written = diagnosis_charts(folder, found, title=name)
    note(f"wrote {file} and {len(written)} charts beside it")
    return found, leaks


def _leaks(
    file: Path, engine: SearchEngine, queries: Sequence[Query], evaluations: Iterable[Evaluation]
) -> dict[str, Any]:
    """What a file of training pairs shares with the queries and the index, and the scores without shared queries."""
    from searchkit.evaluation.diagnosis import Grouping
    from searchkit.training.contamination import find_leaks
    from searchkit.training.dataset import read_examples
    from searchkit.training.texts import fingerprint

    note(f"comparing {file} with the queries and the index ...")
    scores = {item.mode: item.per_query["ndcg@10"] for item in evaluations}
    judged = [query for query in queries if query.id in next(iter(scores.values()))]
    leaks = find_leaks(read_examples(file, corpus=engine), judged, engine.documents())
    shared = [query.id for query in judged if fingerprint(query.text) in leaks.asked]
    others = [id for id in next(iter(scores.values())) if id not in set(shared)]
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


def print_diagnosis(found: Diagnosis, leaks: Sequence[dict[str, Any]], queries: Sequence[Query]) -> None:
    """What a person reads first; everything else is in diagnosis.json."""
    from rich.console import Console
    from rich.text import Text

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    console = Console()
    deepest = max(len(curve) for curve in found.recall.values())
    say(f"\n{_judgements(found)}")
    say(f"\nrecall by rank, searching for {deepest:,} documents" + (_FUSED if "hybrid" in found.recall else ""))
    console.print(_recall_table(found, deepest))
    say("\nnDCG@10 by words of the query, with 95 % intervals")
    console.print(_group_table("words", found.by_words))
    say(f"\n{_lengths('documents', found.documents, found.cut)}\n{_lengths('queries', found.queries, True)}")
    if len(found.by_document) > 1:
        done = "cut" if found.cut else "split"
        say(f"nDCG@10 by how many of a query's relevant documents are {done}")
        console.print(_group_table("", found.by_document))
    if found.by_query:
        say("nDCG@10 by whether the query is cut")
        console.print(_group_table("", found.by_query))
    for one in leaks:
        say(f"\n{_told(one)}")
    say("\nqueries whose first relevant document comes last, by its rank")
    console.print(_worst_table(found, queries))


def _judgements(found: Diagnosis) -> str:
    counts = found.judgements
    parts = [
        f"{counts['relevant']:,} relevant documents judged for {counts['queries']:,} queries",
        f"{counts['not_relevant']:,} judged not relevant",
    ]
    if not counts["not_relevant"]:
        parts[1] = "none judged not relevant, so that an unjudged one may be either"
    if counts["queries_without_relevant"]:
        parts.append(f"{counts['queries_without_relevant']:,} queries without a relevant document count as zero")
    if counts["unknown"]:
        parts.append(f"judged documents that are not in the index: {counts['unknown']:,}")
    return "; ".join(parts)


def _recall_table(found: Diagnosis, deepest: int) -> Any:
    ranks = sorted({*(rank for rank in _RANKS if rank < deepest), deepest})
    names = ["mode", *(f"@{rank:,}" for rank in ranks), "judged@10", "never found"]
    rows = [
        [
            mode,
            *(f"{curve[rank - 1]:.4f}" for rank in ranks),
            "-" if isnan(found.judged[mode]) else f"{found.judged[mode]:.4f}",
            str(found.unfound(mode)),
        ]
        for mode, curve in found.recall.items()
    ]
    return _table(names, rows)


def _group_table(name: str, groups: Sequence[Group]) -> Any:
    modes = list(groups[0].scores)
    rows = [
        [group.name, str(len(group.queries)), *(_interval(group.scores[mode]) for mode in modes)] for group in groups
    ]
    return _table([name, "n", *modes], rows)


def _interval(score: Interval) -> str:
    return f"{score.mean:.3f}" if isnan(score.low) else f"{score.mean:.3f} ({score.low:.2f}-{score.high:.2f})"


def _lengths(what: str, lengths: Lengths, cut: bool) -> str:
    head = f"{what}: {lengths.longer:,} of {lengths.texts:,} are longer than {lengths.room:,} tokens"
    if not lengths.longer:
        return f"{head} (the longest has {lengths.longest:,})"
    done = "cut there, and lost to vectors are" if cut else "in several passages, and past the first are"
    share = lengths.beyond / lengths.tokens
    return f"{head} (the longest has {lengths.longest:,}); they are {done} {share:.1%} of all tokens"


def _told(leaks: dict[str, Any]) -> str:
    lines = [
        f"{leaks['file']}: {leaks['examples']:,} pairs; {leaks['with_a_test_query']:,} ask a test query, "
        f"{leaks['with_an_indexed_document']:,} hold a document of the index, "
        f"{leaks['low_entropy']:,} share a text of so few words that it may be chance"
    ]
    if leaks["shared_queries"]:
        scores = ", ".join(f"{mode} {score['mean']:.4f}" for mode, score in leaks["ndcg@10_without_them"].items())
        lines.append(
            f"  test queries that are trained on: {len(leaks['shared_queries']):,}; a score with them means little. "
            f"nDCG@10 without them: {scores or 'no query is left'}"
        )
    return "\n".join(lines)


def _worst_table(found: Diagnosis, queries: Sequence[Query]) -> Any:
    """Queries by the rank of their first relevant document, deepest first, in the mode that finds it first."""
    modes = list(found.first)
    ranks = {query: [found.first[mode][query] for mode in modes] for query in found.first[modes[0]]}
    never = 1 + max(len(curve) for curve in found.recall.values())
    texts = {query.id: query.text for query in queries}
    order = sorted(ranks, key=lambda query: -min(never if rank is None else rank for rank in ranks[query]))
    rows = [
        [_shortened(texts.get(query, query)), *("-" if rank is None else f"{rank:,}" for rank in ranks[query])]
        for query in order[:_WORST]
    ]
    return _table(["query", *modes], rows, wrap=True)


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _TEXT else text[: text.rfind(" ", 0, _TEXT)] + " …"


def _table(names: Sequence[str], rows: Iterable[Sequence[str]], *, wrap: bool = False) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    for n, name in enumerate(names):
        table.add_column(name, justify="right" if n else "left", no_wrap=n > 0 or not wrap)
    for row in rows:
        table.add_row(*map(escape, row))
    return table
