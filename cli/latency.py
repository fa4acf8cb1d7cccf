"""`searchkit latency`: what users of an index wait for, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from searchkit.cli.options import (
    FILE,
    INDEX,
    hits_options,
    instruction_of,
    instruction_options,
    model_options,
    note,
    open_engine,
    readable_bytes,
)
from searchkit.errors import InputError


@click.command()
@click.argument("index", type=INDEX)
@click.option("--queries", type=FILE, help="Queries to search for (JSONL or TSV). [default: phrases out of documents]")
@instruction_options
@hits_options
@click.option("--concurrency", default=8, show_default=True, type=click.IntRange(1), help="Searches at once.")
@click.option(
    "--seconds",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0),
    help="About how long each of the four parts is measured.",
)
@click.option("--format", "output", default="table", show_default=True, type=click.Choice(["table", "json"]))
@model_options
def latency(index: Path, output: str, **options: Any) -> None:
    """Measure how fast INDEX answers, and what it costs.

    A search in a new process, with its peak memory; searches in a process that is warm, alone (with and without the
    embedding of the query) and several at once; documents indexed in a second, on a sample of its own; bytes on disk.
    Percentiles are times that occurred, and are left out where too few searches were made to tell them. Other work on
    the machine slows everything: give it a quiet one.

    \b
        searchkit latency papers.index
        searchkit latency papers.index --queries queries.jsonl --mode dense --concurrency 32
    """
    from searchkit.evaluation.latency import (
        bytes_per_document,
        made_queries,
        time_indexing,
        time_load,
        time_searches,
        time_starts,
    )
    from searchkit.ranking import SearchOptions, as_mode
    from searchkit.readers.judgements import read_queries

    instruction = instruction_of(options["task"], options["instruction"])
    how = {name: options[name] for name in ("model", "adapter", "device", "dtype", "threads")}
    settings = SearchOptions(mode=as_mode(options["mode"]))
    with open_engine(index, **how) as engine:
        if not len(engine):
            raise InputError(f"{index} holds no document; there is nothing to search for")
        given = options["queries"]
        queries = read_queries(given) if given else made_queries(engine)
        common: dict[str, Any] = {"seconds": options["seconds"]}
        asked: dict[str, Any] = {**common, "k": options["k"], "instruction": instruction, "options": settings}
        note("searching in new processes ...")
        starts = time_starts(index, queries[0].text, _arguments(options, how, instruction), **common)
        note("searching, one query at a time ...")
        alone = time_searches(engine, queries, **asked)
        note(f"searching, {options['concurrency']} queries at once ...")
        load = time_load(engine, queries, options["concurrency"], **asked)
        note("indexing a sample of the documents ...")
        indexing = time_indexing(engine, **common)
        found = {
            "index": str(index),
            "documents": len(engine),
            "passages": engine.store.snapshot().passages,
            "model": engine.settings["model"]["model"],
            "mode": options["mode"],
            "k": options["k"],
            "queries": len(queries),
            "queries_from": str(given) if given else "phrases out of documents",
            "cold_start": {**starts.times.summary(), "peak_bytes": starts.peak_bytes},
            "alone": alone.whole.summary(),
            "embedding": alone.embedding.summary() if alone.embedding else None,
            "without_embedding": alone.rest.summary(),
            "at_once": {"threads": load.threads, **load.times.summary(), "per_second": load.per_second},
            "indexing": indexing and {"documents": indexing.documents, "per_second": indexing.per_second},
            "bytes_per_document": bytes_per_document(engine),
        }
    if output == "json":
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        _print_table(found)


def _arguments(options: dict[str, Any], how: dict[str, Any], instruction: str | None) -> list[str]:
    """The same search for a process of its own."""
    given = {**how, "instruction": instruction, "mode": options["mode"], "k": options["k"]}
    names = {name: f"-{name}" if len(name) == 1 else f"--{name}" for name in given}
    return [part for name, value in given.items() if value is not None for part in (names[name], str(value))]


def _print_table(found: dict[str, Any]) -> None:
    from statistics import median

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    head = f"{found['documents']:,} documents, {found['mode']}, {found['k']} a query; {found['queries']:,} queries"
    console.print(Text(f"{found['index']}: {head} ({found['queries_from']})"), soft_wrap=True)
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("a search, milliseconds")
    for name in ("n", "p50", "p95", "p99", "a second"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = [("in a new process", found["cold_start"]), ("alone", found["alone"])]
    if found["embedding"]:
        rows += [("  its embedding", found["embedding"]), ("  without it", found["without_embedding"])]
    rows.append((f"{found['at_once']['threads']} at once", found["at_once"]))
    for name, times in rows:
        rate = found["at_once"]["per_second"] if times is found["at_once"] else 1 / times["mean"]
        table.add_row(
            name, f"{times['n']:,}", *(_milliseconds(times[key]) for key in ("p50", "p95", "p99")), f"{rate:,.1f}"
        )
    console.print(table)
    sizes = {name: readable_bytes(size) for name, size in found["bytes_per_document"].items()}
    lines = [f"memory, most of a new process: {readable_bytes(found['cold_start']['peak_bytes'])}"]
    if indexing := found["indexing"]:
        rates = indexing["per_second"]
        lines.append(
            f"indexing: {median(rates):,.1f} documents a second "
            f"({min(rates):,.1f} to {max(rates):,.1f} in {len(rates)} rounds of {indexing['documents']:,})"
        )
    lines.append(
        f"on disk: {sizes['all']} a document ({sizes['documents']} itself, {sizes['vectors']} vectors, "
        f"{sizes['words']} words)"
    )
    console.print(Text("\n".join(lines)), soft_wrap=True)


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:,.{1 if seconds < 0.1 else 0}f}"
