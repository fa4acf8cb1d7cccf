"""`searchkit dump`: everything in an index, for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from searchkit.cli.output import count, note, print_json
from searchkit.cli.types import INDEX, NEW_FILE


@click.command()
@click.argument("index", type=INDEX)
@click.option("--vectors", type=NEW_FILE, help="Write passages and their vectors to this Parquet file instead.")
def dump(index: Path, vectors: Path | None) -> None:
    """Write all documents of INDEX to standard output, as JSON lines that `searchkit index` reads back.

    \b
        searchkit dump papers.index > papers.jsonl
        searchkit dump papers.index --vectors papers.parquet

    Your own vectors are written with the documents either way, under "vector": searchkit index FILE --vector-field
    vector reads both.
    """
    from searchkit.dump import write_vectors
    from searchkit.engine import SearchEngine

    with SearchEngine.open(index) as engine:
        if vectors:
            passages = write_vectors(engine, vectors)
            note(f"{vectors}: {count(passages, 'passage')} with vectors of {engine.dim} dimensions")
        else:
            for document in engine.documents(vectors=True):
                print_json(document.as_row(), indent=None)
