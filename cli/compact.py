"""`searchkit compact`: free the space of deleted documents."""

from __future__ import annotations

from pathlib import Path

import click

from searchkit.cli.options import text_or_json
from searchkit.cli.output import count, print_json, readable_bytes, say
from searchkit.cli.types import INDEX


@click.command()
@click.argument("index", type=INDEX)
@click.option("--erase", is_flag=True, help="Leave nothing of deleted documents in any file. Takes longer.")
@click.option("--device", help="cuda: build the graphs of cagra on the GPU.")
@text_or_json
def compact(index: Path, erase: bool, device: str | None, output: str) -> None:
    """Free the space of deleted documents in INDEX.

    Nothing is embedded again, and searches continue meanwhile.

    \b
        searchkit compact papers.index
        searchkit compact papers.index --erase
    """
    from searchkit.engine import SearchEngine
    from searchkit.indexer.store import Store

    with SearchEngine.open(index, device=device, writable=True) as engine:
        documents, passages = engine.store.documents.waiting()
        before = sum(engine.store.sizes().values())
        engine.compact(erase=erase)
    with Store(index) as store:  # closing the engine has merged SQLite's log into the database
        after = sum(store.sizes().values())
    if output == "json":
        print_json(
            {"index": str(index), "documents": documents, "passages": passages, "before": before, "after": after},
            indent=None,
        )
        return
    say(
        f"{index}: freed the space of {count(documents, 'deleted document')} ({count(passages, 'passage')}): "
        f"{readable_bytes(before)} before, {readable_bytes(after)} after"
    )
