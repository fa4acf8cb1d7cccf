"""`searchkit search`: queries in, hits out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.options import (
    FusionOptions,
    HitsOptions,
    InstructionOptions,
    ModelOptions,
    RerankOptions,
    fusion_options,
    hits_options,
    instruction_options,
    model_options,
    rerank_options,
    table_or_json,
)
from searchkit.cli.output import MULTILINGUAL, clean, count, note, print_json, say, shorten
from searchkit.cli.types import FILE, NON_EMPTY, PLACE
from searchkit.errors import CorpusError, InputError

if TYPE_CHECKING:
    from searchkit.records import Explanation, Hit, Query
    from searchkit.remote.address import MilvusAddress
    from searchkit.searcher import Searcher

_BATCH = 64
_PASSAGE, _VALUE, _ID = 320, 60, 120  # terminal columns


@click.command()
@click.argument("index", type=PLACE)
@click.argument("queries", nargs=-1)
@instruction_options
@hits_options
@fusion_options
@rerank_options
@click.option("--where", help="Search only documents whose metadata match this JSON filter.")
@click.option("--queries", "file", type=FILE, help="Read queries from a JSONL, TSV or CSV file.")
@click.option(
    "--vector",
    type=NON_EMPTY,
    metavar="JSON|FILE",
    help="Search by this vector, '[0.1, ...]', or by those of an .npy file, one for each query if there are any.",
)
@click.option("--vector-field", type=NON_EMPTY, help="Key of the vectors in the JSON lines of --queries.")
@click.option("--explain", is_flag=True, help="Show the dense and lexical rank, score and weight of every hit.")
@click.option(
    "--facet",
    "facets",
    multiple=True,
    metavar="KEY",
    help="Count the values of this metadata key over all documents that match. Repeatable.",
)
@table_or_json
@model_options
def search(
    index: Path | MilvusAddress,
    queries: tuple[str, ...],
    wording: InstructionOptions,
    hits: HitsOptions,
    fusion: FusionOptions,
    again: RerankOptions,
    where: str | None,
    file: Path | None,
    vector: str | None,
    vector_field: str | None,
    explain: bool,
    facets: tuple[str, ...],
    output: str,
    model: ModelOptions,
) -> None:
    """Search INDEX for each of QUERIES, for the queries in a file, or for each line of standard input.

    Put a query that begins with a dash after --. In place of an index folder, INDEX may be a collection in Milvus.

    \b
        searchkit search papers.index "does vitamin D prevent flu" --task scifact -k 5
        searchkit search papers.index "..." --instruction "Given a claim, find documents that refute it"
        searchkit search papers.index "vitamin D" --where '{"year": {"$gte": 2015}}'
        searchkit search papers.index "vitamin D" --facet year --facet author.name
        searchkit search papers.index "vitamin D" --rerank cross-encoder/ms-marco-MiniLM-L6-v2
        searchkit search papers.index --queries queries.jsonl --format json
        searchkit search papers.index -- "-5 degrees"
        searchkit search own.index --vector '[0.12, -0.4, 0.9]'
    """
    if queries and file:
        raise click.UsageError("QUERIES cannot be combined with --queries")
    if vector_field and (vector or not file):
        raise click.UsageError("--vector-field says where the vectors of --queries FILE are; without it: --vector")
    from searchkit.indexer.filters import parse_filter
    from searchkit.records import Query

    instruction = wording.text()
    options = fusion.search_options(hits.mode, None if where is None else parse_filter(where))
    with model.open_place(index) as engine:
        reranker = again.load(model)
        for fault in engine.filter_faults(options.where) if options.where else ():
            note(fault.message)
        for sentence in engine.absent_keys(facets) if facets else ():
            note(sentence)
        items = _with_vectors(_queries(queries, file, vector, vector_field), vector)
        unusable = 0
        while batch := list(islice(items, _BATCH if file else 1)):
            for error in (item for item in batch if isinstance(item, InputError)):
                note(f"Error: {error}")
                unusable += 1
            usable = [item for item in batch if isinstance(item, Query)]
            if options.mode != "lexical" and engine.has_model and not vector:
                _warn_unreadable(engine, usable)
            results = engine.search_many(
                usable, instruction=instruction, k=hits.k, options=options, explain=explain, rerank=reranker,
                rerank_depth=again.depth,
            )  # fmt: skip
            for query, found in zip(usable, results, strict=True):
                counts = engine.facets(facets, query.text, options=options).counts if facets else {}
                if output == "json":
                    answer = {"query_id": query.id, "query": query.text, "hits": list(map(hit_json, found))}
                    print_json(answer | ({"facets": counts} if facets else {}), indent=None)
                else:
                    print_hits(query.text or f"vector {query.id}", found)
                    for key, values in counts.items():
                        say(f"{key}: " + ", ".join(f"{facet_value(value)} ({number})" for value, number in values))
    if unusable:
        raise InputError(f"not answered: {count(unusable, 'query')}; see above")


def facet_value(value: object) -> str:
    """A value on one line: as a filter writes it where it is no text."""
    return shorten(value, _VALUE) if isinstance(value, str) else json.dumps(value)


def _warn_unreadable(engine: Searcher, queries: list[Query]) -> None:
    from searchkit.request import unreadable

    if all(query.text.isascii() for query in queries):  # the model need not be loaded for this
        return
    for query, noise in zip(queries, unreadable(engine.embedder, [query.text for query in queries]), strict=True):
        if noise:
            note(f"{engine.embedder.name} does not know the script of: {query.text}. {MULTILINGUAL}")


def _queries(
    texts: tuple[str, ...], file: Path | None, vector: str | None, vector_field: str | None
) -> Iterator[Query | InputError]:
    if file:
        return _read_file(file, vector_field)
    if texts:
        return _read_arguments(texts)
    return iter(()) if vector else _read_standard_input()


def _with_vectors(items: Iterator[Query | InputError], vector: str | None) -> Iterator[Query | InputError]:
    """The queries with their vectors, or the vectors alone where there are no queries."""
    if vector is None:
        return items
    from searchkit.readers.arrays import parse_vectors
    from searchkit.records import Query

    rows, queries = parse_vectors(vector), list(items)
    if error := next((item for item in queries if isinstance(item, InputError)), None):
        raise error  # or the vectors would be those of other queries
    if not queries:
        queries = [Query(str(number), "") for number in range(1, len(rows) + 1)]
    if len(rows) != len(queries):
        raise InputError(f"{count(len(rows), 'vector')} came for {len(queries)} queries; expected one each")
    return (replace(query, vector=row) for query, row in zip(queries, rows, strict=True) if isinstance(query, Query))


def _read_file(file: Path, vector_field: str | None) -> Iterator[Query | InputError]:
    from searchkit.readers.judgements import read_queries

    errors: list[CorpusError] = []
    queries = read_queries(file, errors=errors, vector_field=vector_field)
    yield from errors
    yield from queries


def _read_arguments(texts: tuple[str, ...]) -> Iterator[Query | InputError]:
    from searchkit.records import Query

    for number, text in enumerate(texts, start=1):
        try:
            text.encode()
        except UnicodeEncodeError:
            yield InputError(f"query {number} is not UTF-8: {text}; check the terminal's encoding")
        else:
            yield Query(str(number), text)


def _read_standard_input() -> Iterator[Query | InputError]:
    from searchkit.readers.lines import Lines
    from searchkit.records import Query

    if sys.stdin is None:
        raise InputError("standard input is closed; give queries as arguments, or with --queries FILE")
    if sys.stdin.isatty():
        note("reading queries from standard input, one per line (Ctrl-D ends)")
    lines = Lines(sys.stdin.buffer, "standard input")
    location = lines.begin()
    for number, line in enumerate(lines, start=1):
        if lines.fault:
            yield InputError(f"{location}: {lines.fault}")
        elif line.strip():
            yield Query(str(number), line.strip())
        location = lines.begin()


def hit_json(hit: Hit) -> dict[str, Any]:
    """A hit as JSON shows it: the explanation only where one was asked for."""
    values = asdict(hit)
    return values if values["explanation"] else {key: value for key, value in values.items() if key != "explanation"}


def print_hits(query: str, hits: list[Hit]) -> None:
    """A table of hits with their passages, at the terminal's width."""
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not hits:
        console.print(Text(f"no hits for: {clean(query)}"))
        return
    table = Table(title=Text(shorten(query, console.width)), title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("#", justify="right")
    table.add_column("score", justify="right")
    table.add_column("document", overflow="fold", max_width=24)
    table.add_column("passage", ratio=1)
    for hit in hits:
        passage = Text(shorten(hit.text, _PASSAGE))
        title = Text(shorten(hit.title, console.width), "bold", no_wrap=True, overflow="ellipsis")
        parts = [*([title] if hit.title else []), passage]
        if hit.explanation:
            parts.append(Text(_why(hit.explanation), "dim"))
        table.add_row(str(hit.rank), f"{hit.score:.3f}", Text(shorten(hit.id, _ID)), Group(*parts))
    console.print(table)


def _why(explanation: Explanation) -> str:
    """One line: where the document stands on either side, and how much that side counts."""
    weight = explanation.dense_weight
    sides = []
    for name, score, rank, share in (
        ("dense", explanation.dense_score, explanation.dense_rank, weight),
        ("lexical", explanation.lexical_score, explanation.lexical_rank, None if weight is None else 1 - weight),
    ):
        if share != 0 or score is not None:
            place = "no match" if score is None else f"rank {rank}, score {score:.3f}"
            sides.append(f"{name}: {place}" + ("" if share is None else f", weight {share:.2f}"))
    return " · ".join(sides)
