"""`searchkit delete`: remove documents from an index."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from searchkit.cli.options import text_or_json
from searchkit.cli.output import count, note, print_json, say, shorten
from searchkit.cli.types import PLACE

if TYPE_CHECKING:
    from searchkit.remote.address import MilvusAddress

_SHOWN = 10
_COMPACT = 0.2
"""Share of deleted passages at which compacting pays: scans and graphs still visit them."""


@click.command()
@click.argument("index", type=PLACE)
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--ids", "file", type=click.File("rb"), help="File with one id per line; - for standard input.")
@click.option("--where", help="Delete documents whose metadata match this JSON filter.")
@click.option("--dry-run", is_flag=True, help="Only count what would be deleted.")
@text_or_json
def delete(
    index: Path | MilvusAddress,
    ids: tuple[str, ...],
    file: IO[bytes] | None,
    where: str | None,
    dry_run: bool,
    output: str,
) -> None:
    """Delete documents from INDEX, a folder or a collection in Milvus, by id, by a metadata filter, or both.

    They disappear from search results immediately; `searchkit compact` frees their space.

    \b
        searchkit delete papers.index 4983 10.1000/182
        searchkit delete papers.index --where '{"year": {"$lt": 1990}}' --dry-run
    """
    if not ids and file is None and where is None:
        raise click.UsageError("say what to delete: ids, --ids FILE or --where JSON")
    from searchkit.indexer.filters import parse_filter
    from searchkit.remote.places import open_place

    parsed = None if where is None else parse_filter(where)
    if parsed == {}:
        raise click.UsageError("--where {} matches every document; to delete all of them, remove the index")
    wanted = [*ids, *(_read_ids(file) if file else ())]
    with open_place(index, writable=not dry_run) as engine:
        before = len(engine)
        for fault in engine.filter_faults(parsed) if parsed else ():
            if not fault.always:  # those are refused
                note(fault.message)
        deleted, unknown = engine.delete(wanted, where=parsed, dry_run=dry_run)
        total = len(engine)
        share = engine.deleted_share()
    if output == "json":
        print_json(
            {"index": str(index), "deleted": deleted, "total": total, "unknown": unknown, "dry_run": dry_run},
            indent=None,
        )
    else:
        say(f"{index}: {count(deleted, 'document')} {'would be ' if dry_run else ''}deleted, of {before:,}")
    if unknown:
        more = f" and {len(unknown) - _SHOWN:,} more" if len(unknown) > _SHOWN else ""
        note(f"not in the index: {', '.join(shorten(id, 80) for id in unknown[:_SHOWN])}{more}")
    if share > _COMPACT:
        note(f"{share:.0%} of the passages are deleted; free their space with: searchkit compact {index}")


def _read_ids(file: IO[bytes]) -> list[str]:
    from searchkit.errors import CorpusError
    from searchkit.readers.lines import Lines

    ids = []
    lines = Lines(file, getattr(file, "name", "standard input"))
    location = lines.begin()
    for line in lines:
        if lines.fault:
            raise CorpusError(f"{location}: {lines.fault}; nothing was deleted")
        if line.strip():
            ids.append(line.rstrip("\r\n"))
        location = lines.begin()
    return ids
