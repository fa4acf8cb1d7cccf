"""`searchkit delete`: documents out of an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

import click

from searchkit.cli.options import INDEX, format_option, note

_SHOWN = 10
_MUCH = 0.2
"""Share of deleted passages from which on compacting pays: scans and graphs visit the dead as well."""


@click.command()
@click.argument("index", type=INDEX)
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--ids", "file", type=click.File(encoding="utf-8"), help="File with an id a line; - is standard input.")
@click.option("--where", help="Delete what matches a filter on the metadata, in JSON.")
@click.option("--dry-run", is_flag=True, help="Only say how many it would be.")
@format_option
def delete(
    index: Path, ids: tuple[str, ...], file: TextIO | None, where: str | None, dry_run: bool, output: str
) -> None:
    """Delete documents from INDEX by their ids, by a filter, or both.

    They are found no more from that moment; `searchkit compact` frees their space.

    \b
        searchkit delete papers.index 4983 10.1000/182
        searchkit delete papers.index --where '{"year": {"$lt": 1990}}' --dry-run
    """
    if not ids and file is None and where is None:
        raise click.UsageError("say what to delete: ids, --ids FILE or --where JSON")
    from searchkit.engine import SearchEngine
    from searchkit.indexer.filters import parse_filter

    parsed = None if where is None else parse_filter(where)
    if parsed == {}:
        raise click.UsageError("--where {} matches every document; to be rid of all, remove the folder")
    wanted = [*ids, *(line.rstrip("\r\n") for line in file or () if line.strip())]
    with SearchEngine.open(index, writable=not dry_run) as engine:
        before = len(engine)
        for fault in engine.filter_faults(parsed) if parsed else ():
            if not fault.always:  # those are refused
                note(fault.message)
        deleted, unknown = engine.delete(wanted, where=parsed, dry_run=dry_run)
        total = len(engine)
        _, dead = engine.store.documents.waiting()
        _, passages = engine.store.documents.counts()
    if output == "json":
        found = {"index": str(index), "deleted": deleted, "total": total, "unknown": unknown, "dry_run": dry_run}
        click.echo(json.dumps(found, ensure_ascii=False))
    else:
        click.echo(f"{index}: {deleted} documents {'would be ' if dry_run else ''}deleted, of {before}")
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        note(f"not in the index: {', '.join(unknown[:_SHOWN])}{more}")
    if dead > _MUCH * (dead + passages):
        share = dead / (dead + passages)
        note(f"{share:.0%} of the passages are deleted; free their space with: searchkit compact {index}")
