"""`searchkit latency`: what users of an index wait for, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from searchkit.cli.options import (
    HitsOptions,
    InstructionOptions,
    ModelOptions,
    hits_options,
    instruction_options,
    model_options,
    table_or_json,
)
from searchkit.cli.output import note, print_json, print_table, readable_bytes, say
from searchkit.cli.types import FILE, INDEX, Finite
from searchkit.errors import InputError


@click.command()
@click.argument("index", type=INDEX)
@click.option(
    "--queries", "file", type=FILE, help="Queries to search for (JSONL or TSV). [default: phrases from documents]"
)
@instruction_options
@hits_options
@click.option("--concurrency", default=8, show_default=True, type=click.IntRange(1, 1024), help="Concurrent searches.")
@click.option(
    "--seconds",
    default=10.0,
    show_default=True,
    type=Finite(0),
    help="Approximate time for each of the four measurements.",
)
@table_or_json
@model_options
def latency(
    index: Path,
    file: Path | None,
    wording: InstructionOptions,
    hits: HitsOptions,
    concurrency: int,
    seconds: float,
    output: str,
    model: ModelOptions,
) -> None:
    """Measure how fast INDEX answers, and what it costs.

    Measured: a search in a new process, with its peak memory; searches in a warm process, one at a time (with and
    without embedding the query) and concurrently; indexing speed on a sample; bytes on disk. Percentiles are observed
    times, and are omitted where there are too few searches. Run it on an otherwise idle machine.

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
    from searchkit.ranking import SearchOptions
    from searchkit.readers.judgements import read_queries

    instruction = wording.text()
    options = SearchOptions(mode=hits.mode)
    with model.open(index) as engine:
        engine.require_model()
        if not len(engine):
            raise InputError(f"{index} holds no documents, so there is nothing to search; add some: searchkit add")
        queries = read_queries(file) if file else made_queries(engine)
        note("searching in new processes ...")
        starts = time_starts(index, queries[0].text, _arguments(model, hits, instruction), seconds=seconds)
        note("searching, one query at a time ...")
        alone = time_searches(engine, queries, seconds=seconds, k=hits.k, instruction=instruction, options=options)
        note(f"searching, {concurrency} queries at once ...")
        load = time_load(
            engine, queries, concurrency, seconds=seconds, k=hits.k, instruction=instruction, options=options
        )
        note("indexing a sample of the documents ...")
        indexing = time_indexing(engine, seconds=seconds)
        results = {
            "index": str(index),
            "documents": len(engine),
            "passages": engine.store.snapshot().passages,
            "model": engine.settings["model"]["model"],
            "mode": hits.mode,
            "k": hits.k,
            "queries": len(queries),
            "queries_from": str(file) if file else "phrases out of documents",
            "cold_start": {**starts.times.summary(), "peak_bytes": starts.peak_bytes},
            "alone": alone.whole.summary(),
            "embedding": alone.embedding.summary() if alone.embedding else None,
            "without_embedding": alone.rest.summary(),
            "at_once": {"threads": load.threads, **load.times.summary(), "per_second": load.per_second},
            "indexing": indexing and {"documents": indexing.documents, "per_second": indexing.per_second},
            "bytes_per_document": bytes_per_document(engine),
        }
    if output == "json":
        print_json(results)
    else:
        _print_results(results)


def _arguments(model: ModelOptions, hits: HitsOptions, instruction: str | None) -> list[str]:
    """Options of the same search in a process of its own."""
    options = {
        "--model": model.model,
        "--adapter": model.adapter,
        "--device": model.device,
        "--dtype": model.dtype,
        "--threads": model.threads,
        "--instruction": instruction,
        "--mode": hits.mode,
        "-k": hits.k,
    }
    return [part for name, value in options.items() if value is not None for part in (name, str(value))]


def _print_results(results: dict[str, Any]) -> None:
    from statistics import median

    say(
        f"{results['index']}: {results['documents']:,} documents, {results['mode']}, {results['k']} hits per query; "
        f"{results['queries']:,} queries ({results['queries_from']})"
    )
    times = [("in a new process", results["cold_start"]), ("alone", results["alone"])]
    if results["embedding"]:
        times += [("  embedding the query", results["embedding"]), ("  the rest", results["without_embedding"])]
    times.append((f"{results['at_once']['threads']} at once", results["at_once"]))
    rows = []
    for name, item in times:
        rate = item["per_second"] if "per_second" in item else 1 / item["mean"]
        percentiles = [_milliseconds(item[key]) for key in ("p50", "p95", "p99")]
        rows.append([name, f"{item['n']:,}", *percentiles, f"{rate:,.1f}"])
    print_table(["milliseconds per search", "n", "p50", "p95", "p99", "per second"], rows)
    say(f"peak memory of a new process: {readable_bytes(results['cold_start']['peak_bytes'])}")
    if indexing := results["indexing"]:
        rates = indexing["per_second"]
        say(
            f"indexing: {median(rates):,.1f} documents per second "
            f"({min(rates):,.1f} to {max(rates):,.1f} in {len(rates)} rounds of {indexing['documents']:,})"
        )
    sizes = {name: readable_bytes(size) for name, size in results["bytes_per_document"].items()}
    say(
        f"on disk: {sizes['all']} per document ({sizes['documents']} text and metadata, {sizes['vectors']} vectors, "
        f"{sizes['words']} lexical index)"
    )


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:,.{1 if seconds < 0.1 else 0}f}"
