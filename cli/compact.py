"""`searchkit compact`: the space of deleted documents is freed."""

from __future__ import annotations

import json
from pathlib import Path

import click

from searchkit.cli.options import INDEX, format_option, readable_bytes


@click.command()
@click.argument("index", type=INDEX)
@click.option("--device", help="cuda makes the graphs of cagra on the GPU.")
@format_option
def compact(index: Path, device: str | None, output: str) -> None:
    """Free the space of deleted documents in INDEX. Nothing is embedded again, and searching goes on meanwhile.

    \b
        searchkit compact papers.index
    """
    from searchkit.engine import SearchEngine
    from searchkit.indexer.store import Store

    with SearchEngine.open(index, device=device, writable=True) as engine:
        documents, passages = engine.store.documents.waiting()
        before = sum(engine.store.sizes().values())
        engine.compact()
    with Store(index) as store:  # the log has been folded in by now
        after = sum(store.sizes().values())
    if output == "json":
        found = {"index": str(index), "documents": documents, "passages": passages, "before": before, "after": after}
        click.echo(json.dumps(found))
        return
    click.echo(
        f"{index}: {documents} deleted documents with {passages} passages let go of; "
        f"{readable_bytes(before)} before, {readable_bytes(after)} after"
    )
