"""`searchkit compare`: several systems over the same queries, with significance tests."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.judgements import JudgementOptions, judgement_and_vector_options
from searchkit.cli.options import (
    FusionOptions,
    ModelOptions,
    fusion_options,
    model_options,
    needs_plots,
    report_option,
    require,
    table_or_json,
)
from searchkit.cli.output import count, note, print_json, print_table, readable_bytes, say, shorten, write_json
from searchkit.cli.runs import (
    FileSystems,
    IndexSystems,
    VariantOptions,
    is_index,
    named_runs,
    refuse_index_options,
    variant_options,
)
from searchkit.cli.types import NEW_FILE, ListOf
from searchkit.errors import SearchkitError

if TYPE_CHECKING:
    from searchkit.evaluation.comparison import Comparison, System
    from searchkit.records import Document
    from searchkit.remote.address import MilvusAddress

_TEXT = 90  # terminal columns of a text


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@judgement_and_vector_options
@click.option(
    "--corpus",
    type=click.Path(exists=True, path_type=Path),
    help="Texts of the documents to show. [default: of --beir, or the index]",
)
@click.option("--against", help='Name of the system to compare with, or "best". [default: the first]')
@click.option(
    "--metrics",
    type=ListOf(str, "ndcg@10,recall@100"),
    help="Some of ndcg@10,recall@100,map@100,mrr@10; the first one ranks. [default: all]",
)
@variant_options
@click.option(
    "--changed", default=5, show_default=True, type=click.IntRange(0), help="Number of changed queries to show."
)
@click.option(
    "--flips", default=20_000, show_default=True, type=click.IntRange(100), help="Samples of the randomisation test."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Random seed.")
@fusion_options
@table_or_json
@report_option
@click.option("--plot", type=NEW_FILE, callback=needs_plots, help="Draw quality against cost, as PNG and SVG.")
@click.option("--html", type=NEW_FILE, help="Write a page that needs no network.")
@model_options
@click.pass_context
def compare(
    context: click.Context,
    /,
    runs: tuple[str, ...],
    judged: JudgementOptions,
    corpus: Path | None,
    against: str | None,
    metrics: tuple[str, ...] | None,
    options: VariantOptions,
    changed: int,
    flips: int,
    seed: int,
    fusion: FusionOptions,
    output: str,
    report: Path | None,
    plot: Path | None,
    html: Path | None,
    model: ModelOptions,
) -> None:
    """Compare RUNS over the same queries: metrics, significance, and the queries that changed most.

    A RUN is an index to search, a TREC run file, or a report of `searchkit evaluate`; NAME=RUN names it. Each system is
    compared with the first one by a paired randomisation test and a paired t test, two-sided. p values are corrected
    by Holm's method over all tests of the table; * is p < .05 and ** p < .01 by randomisation, corrected.

    \b
        searchkit compare runs/dense.trec runs/hybrid.trec --beir scifact/
        searchkit compare before=old.json after=new.json --modes hybrid --metrics ndcg@10
        searchkit compare scifact.index --beir scifact/ --modes dense,lexical,hybrid --plot costs.png --html report.html
        searchkit compare scifact.index --beir scifact/ --instruction "" --instruction "Given a claim, refute it"
        searchkit compare scifact.index --beir scifact/ --dims 384,192,96,48 --against best
        searchkit compare scifact.index --beir scifact/ --recipes int8,pq:48+rerank --plot costs.png
    """
    require("comparing", "eval", "scipy.stats")
    from searchkit.evaluation.comparison import check_names, checked_metrics
    from searchkit.evaluation.comparison import compare as compare_systems
    from searchkit.metrics import METRICS, check_metrics
    from searchkit.readers.corpus import kind_of
    from searchkit.reports.comparison_page import content as page_content
    from searchkit.reports.comparison_page import shown_documents

    named = named_runs(runs)
    indexes = [path for _, path in named if is_index(path)]
    if not indexes:
        refuse_index_options(context)
    if corpus:
        kind_of(corpus)
    chosen = metrics or METRICS
    queries, qrels = judged.files()
    if indexes:
        judged.note_missing(queries, qrels)
    with ExitStack() as stack:
        sources: list[FileSystems | IndexSystems] = [
            FileSystems(name, path, judged, qrels, options)
            if isinstance(path, Path) and path.is_file()
            else IndexSystems(name, stack.enter_context(model.open_place(path)), judged, queries, qrels, options)
            for name, path in named
        ]
        alone = len(sources) == 1
        check_names([name for source in sources for name in source.names(alone)], against)
        files = [system for source in sources if isinstance(source, FileSystems) for system in source.systems]
        if files:
            checked_metrics(chosen, files)
        if indexes:
            check_metrics(chosen)
        priced = bool(indexes) or any(one.seconds_per_query or one.bytes_per_document for one in files)
        if plot and not priced:
            raise click.UsageError("--plot needs systems with known costs: indexes or reports, not TREC runs alone")
        if html and priced:
            require("--html", "plots", "matplotlib.figure")
        systems = [system for source in sources for system in source.search(alone, fusion)]
    comparison = compare_systems(systems, against=against, metrics=chosen, changed=changed, flips=flips, seed=seed)
    texts = _texts(shown_documents(comparison), corpus or judged.beir, indexes)
    header = {"instructions": options.labels} if options.labels else {}
    by_id = {query.id: query for query in queries}
    content = page_content(comparison, queries=by_id, documents=texts, qrels=qrels or None, about=header)
    if report:
        write_json(report, content)
    if output == "json":
        print_json(content)
    else:
        _print_comparison(comparison, options.labels)
        _print_changes(content)
    set_name = judged.source.name if judged.source else ""  # without its folders: charts and pages are for others
    title = f"{comparison.metrics[0]} and cost" + (f", {set_name}" if set_name else "")
    if plot:
        from searchkit.reports.comparison_plot import cost_charts

        note("wrote " + ", ".join(map(str, cost_charts(plot, systems, comparison.metrics[0], title=title))))
    if html:
        heading = "Comparison" + (f" on {set_name}" if set_name else "")
        _write_page(html, content, heading, systems if priced else [], comparison.metrics[0], title)


def _texts(ids: set[str], corpus: Path | None, indexes: list[Path | MilvusAddress]) -> dict[str, Document]:
    """The documents to show, from the corpus or else from the first index; none if the corpus cannot be read."""
    from searchkit.readers.corpus import read_corpus
    from searchkit.readers.lines import gz_or_plain
    from searchkit.records import Document
    from searchkit.remote.places import open_place

    texts: dict[str, Document] = {}
    if corpus is not None and (corpus.is_file() or gz_or_plain(corpus / "corpus.jsonl").is_file()):
        try:
            for document in read_corpus(corpus):
                if len(texts) == len(ids):
                    break
                if document.id in ids:
                    texts[document.id] = document
        except SearchkitError as error:
            note(f"some texts are not shown: {error}")
    elif indexes:
        with open_place(indexes[0]) as engine:
            for found in map(engine.get, sorted(ids)):
                if found is not None:
                    texts[found.id] = Document(found.id, found.text, found.title)
    return texts


def _write_page(
    file: Path, content: dict[str, Any], heading: str, systems: list[System], metric: str, title: str
) -> None:
    """Write the HTML page, with a chart of quality against cost if there are systems with known costs."""
    from tempfile import TemporaryDirectory

    from searchkit.reports.comparison_page import html
    from searchkit.reports.comparison_plot import cost_charts

    with TemporaryDirectory(prefix="searchkit-") as folder:
        charts = None
        if systems:
            _, light, _, dark = cost_charts(Path(folder) / "chart", systems, metric, title=title)
            charts = light, dark
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(html(content, title=heading, charts=charts), encoding="utf-8")
    note(f"wrote {file}")


def _print_comparison(comparison: Comparison, labels: dict[str, str]) -> None:
    """Two tables: the means, and every difference with its tests."""
    from searchkit.metrics import means
    from searchkit.reports.comparison_page import readable_p, stars

    marks = {(item.system, item.metric): stars(item.adjusted_randomisation) for item in comparison.differences}
    timed = any(system.seconds_per_query is not None for system in comparison.systems)
    rows = []
    for system in comparison.systems:
        values = means(system.per_query)
        row = [f"{values[name]:.4f}{marks.get((system.name, name), ''):<2}" for name in comparison.metrics]
        if timed:
            row.append("-" if system.seconds_per_query is None else f"{1000 * system.seconds_per_query:.1f}")
            row.append("-" if system.bytes_per_document is None else readable_bytes(system.bytes_per_document))
        rows.append([system.name, *row])
    print_table(["system", *comparison.metrics, *(("ms/query", "bytes/document") if timed else ())], rows)
    say()
    rows = []
    for item in comparison.differences:
        test = item.test
        p_values = (test.p_randomisation, item.adjusted_randomisation, test.p_t, item.adjusted_t)
        rows.append(
            [
                item.system,
                item.metric,
                f"{test.difference:+.4f}",
                "-" if math.isnan(test.low) else f"{test.low:+.4f} to {test.high:+.4f}",  # as for a single query
                f"{test.wins}/{test.ties}/{test.losses}",
                *map(readable_p, p_values),
            ]
        )
    names = ["change", "95 % interval", "win/tie/loss", "p", "p, Holm", "p (t)", "p (t), Holm"]
    print_table([f"against {comparison.against}", "metric", *names], rows, left=2)
    for label, instruction in labels.items():
        note(f"{label}: {instruction or 'no instruction'}")
    queries = len(comparison.systems[0].per_query[comparison.metrics[0]])
    note(f"{count(queries, 'query')}; Holm's correction for {count(comparison.tests, 'test')}; * p < .05, ** p < .01")


def _print_changes(content: dict[str, Any]) -> None:
    metric = content["metrics"][0]
    for name, changes in content["changes"].items():
        if changes:
            say(f"\n{name} against {content['against']}: the queries whose {metric} changed most")
        for change in changes:
            text = f"  {shorten(change['text'], _TEXT)}" if change["text"] else ""
            say(f"\n  {change['query']}  {change['before']:.3f} -> {change['after']:.3f}{text}")
            for when in ("before", "after"):
                documents = change[f"documents_{when}"]
                for rank, document in enumerate(documents, 1):
                    label = when if rank == 1 else ""
                    grade = "?" if document["grade"] is None else document["grade"]
                    text = shorten(f"{document.get('title', '')} {document.get('text', '')}", _TEXT)
                    say(f"    {label:<6} {rank}. [{grade}] {document['id']}  {text}".rstrip())
                if not documents:
                    say(f"    {when:<6} no hits recorded")
