"""`searchkit get` and `searchkit similar`: documents by id, and those nearest to one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from searchkit.cli.options import table_or_json, text_or_json
from searchkit.cli.output import note, print_json, say
from searchkit.cli.search import hit_json, print_hits
from searchkit.cli.types import PLACE
from searchkit.errors import InputError

if TYPE_CHECKING:
    from searchkit.remote.address import MilvusAddress


@click.command()
@click.argument("index", type=PLACE)
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@text_or_json
def get(index: Path | MilvusAddress, ids: tuple[str, ...], output: str) -> None:
    """Print documents of INDEX, whole and as they were added.

    \b
        searchkit get papers.index 4983 10.1000/182
        searchkit get papers.index 4983 --format json
    """
    from searchkit.remote.places import open_place

    missing = []
    with open_place(index) as engine:
        for id in ids:
            document = engine.get(id)
            if document is None:
                missing.append(id)
            elif output == "json":
                print_json(document.as_row(), indent=None)
            else:
                say(f"id: {document.id}")
                if document.title:
                    say(f"title: {document.title}")
                if document.metadata:
                    say(f"metadata: {json.dumps(document.metadata, ensure_ascii=False)}")
                say(f"\n{document.text}\n")
    if missing:
        raise InputError(f"not in the index: {', '.join(missing)}; ids are compared exactly")


@click.command()
@click.argument("index", type=PLACE)
@click.argument("id")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1), help="Number of hits.")
@click.option("--where", help="Search only documents whose metadata match this JSON filter.")
@table_or_json
def similar(index: Path | MilvusAddress, id: str, k: int, where: str | None, output: str) -> None:
    """Find the documents of INDEX that are nearest to the one with this ID, by their vectors.

    \b
        searchkit similar papers.index 4983 -k 5
    """
    from searchkit.indexer.filters import parse_filter
    from searchkit.remote.places import open_place

    parsed = None if where is None else parse_filter(where)
    with open_place(index) as engine:
        for fault in engine.filter_faults(parsed) if parsed else ():
            note(fault.message)
        hits = engine.similar(id, k=k, where=parsed)
    if output == "json":
        print_json({"id": id, "hits": list(map(hit_json, hits))}, indent=None)
    else:
        print_hits(f"like {id}", hits)
