"""`searchkit search`: queries in, hits out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from searchkit.cli.options import (
    INDEX,
    MULTILINGUAL,
    fusion_options,
    hits_options,
    instruction_of,
    instruction_options,
    model_options,
    note,
    open_engine,
)

if TYPE_CHECKING:
    from searchkit.engine import SearchEngine
    from searchkit.records import Hit, Query

_BATCH = 64


@click.command()
@click.argument("index", type=INDEX)
@click.argument("queries", nargs=-1)
@instruction_options
@hits_options
@fusion_options
@click.option("--where", help="Only documents whose metadata match a filter, in JSON.")
@click.option("--queries", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="JSONL or TSV.")
@click.option("--format", "output", default="table", show_default=True, type=click.Choice(["table", "json"]))
@model_options
def search(
    index: Path,
    queries: tuple[str, ...],
    instruction: str | None,
    task: str | None,
    k: int,
    mode: str,
    fusion: str,
    dense_weight: float,
    rrf_k: int,
    where: str | None,
    file: Path | None,
    output: str,
    model: str | None,
    adapter: str | None,
    device: str | None,
    dtype: str,
    threads: int | None,
) -> None:
    """Search INDEX for QUERIES, for those of a file, or for each line of standard input.

    \b
        searchkit search papers.index "does vitamin D prevent flu" --task scifact -k 5
        searchkit search papers.index "..." --instruction "Given a claim, find documents that refute it"
        searchkit search papers.index "vitamin D" --where '{"year": {"$gte": 2015}}'
        searchkit search papers.index --queries queries.jsonl --format json
    """
    if queries and file:
        raise click.UsageError("QUERIES and --queries exclude each other")
    from searchkit.indexer.filters import parse_filter
    from searchkit.ranking import SearchOptions, as_mode

    instruction = instruction_of(task, instruction)
    options = SearchOptions(
        mode=as_mode(mode),
        fusion=fusion,
        dense_weight=dense_weight,
        rrf_k=rrf_k,
        where=None if where is None else parse_filter(where),
    )
    with open_engine(index, model, adapter, device, dtype, threads) as engine:
        for fault in engine.filter_faults(options.where) if options.where else ():
            note(fault.message)
        asked = _asked(queries, file)
        while batch := list(islice(asked, _BATCH if file else 1)):
            if options.mode != "lexical":
                _warn_unreadable(engine, batch)
            results = engine.search_many(batch, instruction=instruction, k=k, options=options)
            for query, hits in zip(batch, results, strict=True):
                if output == "json":
                    _print_json(query, hits)
                else:
                    print_hits(query, hits)


def _warn_unreadable(engine: SearchEngine, queries: list[Query]) -> None:
    from searchkit.models.embedder import UNREADABLE

    if all(query.text.isascii() for query in queries):  # the model need not be loaded for this
        return
    shares = engine.embedder.unknown_shares([query.text for query in queries])
    for query, share in zip(queries, shares, strict=True):
        if share > UNREADABLE:
            note(f"{engine.embedder.name} does not know the script of: {query.text}. {MULTILINGUAL}")


def _asked(queries: tuple[str, ...], file: Path | None) -> Iterator[Query]:
    from searchkit.readers.judgements import read_queries
    from searchkit.records import Query

    if file:
        yield from read_queries(file)
    elif queries:
        yield from (Query(str(number), text) for number, text in enumerate(queries, start=1))
    else:
        if sys.stdin.isatty():
            click.echo("reading queries from standard input, one a line (end with Ctrl-D)", err=True)
        for number, line in enumerate(sys.stdin, start=1):
            if line.strip():
                yield Query(str(number), line.strip())


def _print_json(query: Query, hits: list[Hit]) -> None:
    click.echo(
        json.dumps(
            {"query_id": query.id, "query": query.text, "hits": [asdict(hit) for hit in hits]}, ensure_ascii=False
        )
    )


def print_hits(query: Query, hits: list[Hit]) -> None:
    """A table of hits, each with its passage."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not hits:
        console.print(Text(f"nothing found for: {query.text}"))
        return
    table = Table(title=Text(query.text), title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("#", justify="right")
    table.add_column("score", justify="right")
    table.add_column("document", overflow="fold", max_width=24)
    table.add_column("passage", ratio=1)
    for hit in hits:
        passage = Text(_shortened(hit.text))
        if hit.title:
            passage = Text.assemble((hit.title + "\n", "bold"), passage)
        table.add_row(str(hit.rank), f"{hit.score:.3f}", Text(hit.id), passage)
    console.print(table)


def _shortened(text: str, limit: int = 320) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: text.rfind(" ", 0, limit)] + " …"
