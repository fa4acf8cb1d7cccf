"""`searchkit compare`: systems beside each other, with tests of whether a difference is more than luck."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.options import FILE, INDEX, fusion_options, model_options, note, open_engine, readable_bytes

if TYPE_CHECKING:
    from searchkit.evaluation.comparison import Comparison, System
    from searchkit.records import Document, Qrels, Query

_WIDE = 130
_TEXT = 90  # characters of a text
_INDEXES_ONLY = {"instruction", "dims", "recipes", "fusion", "dense_weight", "rrf_k"} | {
    "model", "adapter", "device", "dtype", "threads"
}  # fmt: skip


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--beir", type=INDEX, help="BEIR folder with queries.jsonl, qrels/ and corpus.jsonl.")
@click.option("--split", help="Which qrels/SPLIT.tsv. [default: what published numbers use, mostly test]")
@click.option("--queries", type=FILE, help="Queries, when they lie elsewhere (JSONL or TSV).")
@click.option("--qrels", type=FILE, help="Judgements, when they lie elsewhere (BEIR or TREC form).")
@click.option(
    "--corpus",
    type=click.Path(exists=True, path_type=Path),
    help="Documents to show. [default: of --beir or the index]",
)
@click.option("--against", help='Compare with the system of this name, or with the "best". [default: the first]')
@click.option("--metrics", help="Some of ndcg@10,recall@100,map@100,mrr@10; the first one decides. [default: all]")
@click.option("--modes", help="Ways to search an index [default: hybrid]; modes of a report [default: all].")
@click.option("--instruction", multiple=True, help="Ask an index so; give several. Empty: none. Systems A, B, C ...")
@click.option("--dims", help="Cut an index's vectors to widths, as 384,128,64, and search them exactly.")
@click.option("--recipes", help="Store copies of an index so, as int8,pq:48+rerank, and search them.")
@click.option("--changed", default=5, show_default=True, type=click.IntRange(0), help="Queries that changed most.")
@click.option("--flips", default=20_000, show_default=True, type=click.IntRange(100), help="Of the randomisation test.")
@click.option("--seed", default=0, show_default=True, help="Of the randomisation test.")
@click.option("--drop-self/--keep-self", default=None, help="Leave out a query's own id. [default: as the set asks]")
@fusion_options
@click.option("--format", "output", default="table", show_default=True, type=click.Choice(["table", "json"]))
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="File for everything in JSON.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Quality against cost: PNG, SVG.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="File for a page that opens offline.")
@model_options
@click.pass_context
def compare(context: click.Context, /, runs: tuple[str, ...], output: str, report: Path | None, **options: Any) -> None:
    """Compare RUNs over the same queries: metrics, paired significance, and the queries that changed most.

    A RUN is an index, which is searched, a TREC run file or a report of `searchkit evaluate`; NAME=RUN gives it a name.
    Differences from the first system are tested by randomisation (sign flips) and by a paired t test, two-sided, and p
    values corrected by Holm's steps for all tests in the table; * marks .05 and ** .01 by randomisation, corrected.

    \b
        searchkit compare runs/dense.trec runs/hybrid.trec --beir scifact/ --split test
        searchkit compare before=old.json after=new.json --modes hybrid --metrics ndcg@10
        searchkit compare scifact.index --beir scifact/ --modes dense,lexical,hybrid --plot costs.png --html report.html
        searchkit compare scifact.index --beir scifact/ --instruction "" --instruction "Given a claim, refute it"
        searchkit compare scifact.index --beir scifact/ --dims 384,192,96,48 --against best
        searchkit compare scifact.index --beir scifact/ --recipes int8,pq:48+rerank --plot costs.png
    """
    from searchkit.evaluation.comparison import compare as compare_systems
    from searchkit.metrics import METRICS
    from searchkit.reports.comparison_page import content as told
    from searchkit.reports.comparison_page import shown_documents

    named = _named(runs)
    _check_options(context, any(path.is_dir() for _, path in named))
    queries, qrels, drop_self, task = judgements(options)
    systems = _systems(named, queries, qrels, drop_self, task, options)
    comparison = compare_systems(
        systems,
        against=options["against"],
        metrics=_names(options["metrics"]) or list(METRICS),
        changed=options["changed"],
        flips=options["flips"],
        seed=options["seed"],
    )
    texts = _texts(shown_documents(comparison), options["corpus"] or options["beir"], [path for _, path in named])
    labels = _labels(options["instruction"])
    about = {"instructions": labels} if labels else {}
    content = told(comparison, queries=queries, documents=texts, qrels=qrels, about=about)
    if report:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if output == "json":
        click.echo(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        print_comparison(comparison, labels)
        _print_changes(content)
    _write_pictures(
        options["plot"], options["html"], comparison, content, str(options["beir"] or options["qrels"] or "")
    )


def _check_options(context: click.Context, indexes: bool) -> None:
    """Raise UsageError on an option that would have no effect."""
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is not click.core.ParameterSource.DEFAULT
        if parameter.name in _INDEXES_ONLY and given and not indexes:
            raise click.UsageError(f"{parameter.opts[0]} is for an index, and no RUN is one")


def judgements(options: dict[str, Any]) -> tuple[dict[str, Query], Qrels | None, bool, str]:
    """The queries by id, the judgements, whether a query's own document is left out, and the name of the set.

    None and nothing where none is given.
    """
    from searchkit.readers.judgements import read_beir_split, read_qrels, read_queries
    from searchkit.tasks import find_task

    drop_self = bool(options["drop_self"])
    if options["beir"]:
        if options["qrels"] or options["queries"]:
            raise click.UsageError("give the judgements as --beir FOLDER, or as --qrels FILE")
        name = options["beir"].resolve().name
        known = find_task(name)
        asked, qrels = read_beir_split(options["beir"], options["split"] or (known.split if known else "test"))
        drop_self = drop_self if options["drop_self"] is not None else bool(known and known.drop_self)
        return {query.id: query for query in asked}, qrels, drop_self, name
    asked = read_queries(options["queries"]) if options["queries"] else []
    qrels_given = read_qrels(options["qrels"]) if options["qrels"] else None
    return {query.id: query for query in asked}, qrels_given, drop_self, ""


def _names(asked: str | None) -> list[str]:
    return [name.strip() for name in (asked or "").split(",") if name.strip()]


def _labels(instructions: tuple[str, ...]) -> dict[str, str]:
    if len(instructions) > len(ascii_uppercase):
        raise click.UsageError(f"{len(instructions)} instructions came; give at most {len(ascii_uppercase)}")
    return dict(zip(ascii_uppercase, instructions, strict=False))


def _systems(
    named: list[tuple[str, Path]],
    queries: dict[str, Query],
    qrels: Qrels | None,
    drop_self: bool,
    task: str,
    options: dict[str, Any],
) -> list[System]:
    """Every index searched in every way, every file read."""
    from searchkit.evaluation.comparison import read_systems

    systems: list[System] = []
    wanted = set(_names(options["modes"]))
    alone = len(named) == 1
    for name, path in named:
        if path.is_dir():
            if qrels is None or not queries:
                raise click.UsageError(f"{path} is searched: give --beir FOLDER, or --queries FILE and --qrels FILE")
            found = _searched(path, queries, qrels, drop_self, task, options)
            systems += found if alone else [replace(one, name=f"{name}: {one.name}") for one in found]
        else:
            found = read_systems(path, qrels, name=name, drop_self=drop_self)
            systems += [
                one for one in found if not wanted or ":" not in one.name or one.name.rpartition(":")[2] in wanted
            ]
    return systems


def _searched(
    index: Path, queries: dict[str, Query], qrels: Qrels, drop_self: bool, task: str, options: dict[str, Any]
) -> list[System]:
    """One index, searched as the options say."""
    from searchkit.cli.evaluate import set_rules
    from searchkit.evaluation.sweep import Variants, sweep
    from searchkit.ranking import SearchOptions
    from searchkit.records import Judgements

    how = {name: options[name] for name in ("model", "adapter", "device", "dtype", "threads")}
    dims, recipes = _widths(options["dims"]), _names(options["recipes"])
    fusion = SearchOptions(fusion=options["fusion"], dense_weight=options["dense_weight"], rrf_k=options["rrf_k"])
    with open_engine(index, **how) as engine:
        labels = _labels(options["instruction"])
        instruction = None
        if not labels:
            rules = {"task": None, "instruction": None, "drop_self": drop_self}
            instruction, _ = set_rules(task, rules, engine)
        modes = _names(options["modes"]) or ([] if dims or recipes else ["hybrid"])
        return sweep(
            engine,
            Judgements(task, list(queries.values()), qrels, instruction, drop_self),
            Variants(modes, labels or None, dims, recipes),
            options=fusion,
            on_system=lambda name: note(f"searching {name} ..."),
        )


def _widths(asked: str | None) -> list[int]:
    try:
        return [int(name) for name in _names(asked)]
    except ValueError:
        raise click.UsageError(f"--dims is {asked!r}; expected numbers of dimensions, as 384,128,64") from None


def _named(runs: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Every run's name, by default as much of its path as tells it from the others, and its file or index."""
    given: list[tuple[str | None, Path]] = []
    for run in runs:
        name, equals, file = run.partition("=")
        path = Path(run) if not equals or Path(run).exists() else Path(file)
        if not path.is_file() and not (path / "index.db").is_file():
            raise click.UsageError(
                f"there is no file or index {path}; a RUN is an index, a TREC run, a report in JSON, or NAME=RUN"
            )
        given.append((None if path == Path(run) else name, path))
    stems = [path.with_suffix("").parts for _, path in given]
    names = []
    for (own, path), parts in zip(given, stems, strict=True):
        most = max((_shared(parts, other) for other in stems if other != parts), default=0)
        names.append((own or "/".join(parts[-1 - most :]), path))
    return names


def _shared(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many parts at the end of two paths are equal."""
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count


def _texts(wanted: set[str], corpus: Path | None, places: list[Path]) -> dict[str, Document]:
    """The documents that are shown, from the corpus or else from the first index."""
    from searchkit.readers.corpus import read_corpus
    from searchkit.readers.lines import gz_or_plain
    from searchkit.records import Document

    found: dict[str, Document] = {}
    index = next((path for path in places if path.is_dir()), None)
    if corpus is not None and (corpus.is_file() or gz_or_plain(corpus / "corpus.jsonl").is_file()):
        for document in read_corpus(corpus):
            if len(found) == len(wanted):
                break
            if document.id in wanted:
                found[document.id] = document
    elif index is not None:
        with open_engine(index, None, None, None, "auto") as engine:
            for id, title, text, _ in engine.store.documents.living():
                if id in wanted:
                    found[id] = Document(id, text, title)
    return found


def _write_pictures(
    plot: Path | None, html: Path | None, comparison: Comparison, content: dict[str, Any], judged_by: str
) -> None:
    """The chart where one is asked for, the page with a chart in it where the costs are known."""
    from tempfile import TemporaryDirectory

    from searchkit.reports.comparison_page import html as page
    from searchkit.reports.comparison_plot import cost_charts

    metric, systems = comparison.metrics[0], comparison.systems
    judged_by = Path(judged_by).name  # a picture is for others, who do not have the folder
    title = f"{metric} and what it costs" + (f", {judged_by}" if judged_by else "")
    if plot:
        note("wrote " + ", ".join(map(str, cost_charts(plot, systems, metric, title=title))))
    if html:
        charts = None
        with TemporaryDirectory(prefix="searchkit-") as folder:
            if any(one.seconds_per_query or one.bytes_per_document for one in systems):
                _, light, _, dark = cost_charts(Path(folder) / "chart", systems, metric, title=title)
                charts = light, dark
            heading = "Comparison" + (f" on {judged_by}" if judged_by else "")
            html.parent.mkdir(parents=True, exist_ok=True)
            html.write_text(page(content, title=heading, charts=charts), encoding="utf-8")
        note(f"wrote {html}")


def print_comparison(comparison: Comparison, labels: dict[str, str] | None = None) -> None:
    """Two tables: the means, and every difference with its tests."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from searchkit.metrics import means
    from searchkit.reports.comparison_page import readable_p, stars

    marks = {(one.system, one.metric): stars(one.adjusted_randomisation) for one in comparison.differences}
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("system", no_wrap=True)
    timed = any(one.seconds_per_query is not None for one in comparison.systems)
    for name in (*comparison.metrics, *(("ms/query", "bytes/document") if timed else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for one in comparison.systems:
        values = means(one.per_query)
        row = [f"{values[name]:.4f}{marks.get((one.name, name), ''):<2}" for name in comparison.metrics]
        if timed:
            row.append("-" if one.seconds_per_query is None else f"{1000 * one.seconds_per_query:.1f}")
            row.append("-" if one.bytes_per_document is None else readable_bytes(one.bytes_per_document))
        table.add_row(escape(one.name), *row)
    tests = Table(show_edge=False, pad_edge=False)
    tests.add_column(escape(f"against {comparison.against}"), no_wrap=True)
    tests.add_column("metric", no_wrap=True)
    for name in ("change", "95 % interval", "win/tie/loss", "p", "p, Holm", "p of t", "p of t, Holm"):
        tests.add_column(name, justify="right", no_wrap=True)
    for difference in comparison.differences:
        test = difference.test
        tests.add_row(
            escape(difference.system),
            difference.metric,
            f"{test.difference:+.4f}",
            f"{test.low:+.4f} to {test.high:+.4f}",
            f"{test.wins}/{test.ties}/{test.losses}",
            *(
                readable_p(p)
                for p in (test.p_randomisation, difference.adjusted_randomisation, test.p_t, difference.adjusted_t)
            ),
        )
    console = Console()
    if console.width < _WIDE and not console.is_terminal:
        console = Console(width=_WIDE)
    console.print(table)
    console.print()
    console.print(tests)
    for label, instruction in (labels or {}).items():
        note(f"{label}: {instruction or 'no instruction'}")
    queries = len(comparison.systems[0].per_query[comparison.metrics[0]])
    note(f"{queries} queries; Holm's correction for {comparison.tests} tests; * p < .05, ** p < .01 after it")


def _print_changes(content: dict[str, Any]) -> None:
    metric = content["metrics"][0]
    for name, changes in content["changes"].items():
        if changes:
            click.echo(f"\n{name} against {content['against']}: the queries whose {metric} changed most")
        for change in changes:
            text = f"  {_short(change['text'])}" if change["text"] else ""
            click.echo(f"\n  {change['query']}  {change['before']:.3f} -> {change['after']:.3f}{text}")
            for when in ("before", "after"):
                for rank, document in enumerate(change[f"documents_{when}"], 1):
                    label = when if rank == 1 else ""
                    grade = "?" if document["grade"] is None else document["grade"]
                    said = _short(" ".join(part for part in (document.get("title"), document.get("text")) if part))
                    click.echo(f"    {label:<6} {rank}. [{grade}] {document['id']}  {said}".rstrip())
                if not change[f"documents_{when}"]:
                    click.echo(f"    {when:<6} nothing is known of what was found")


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _TEXT else words[: _TEXT - 1].rstrip() + "…"
