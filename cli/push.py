"""`searchkit push`: copy an index into Milvus."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from searchkit.cli.options import text_or_json
from searchkit.cli.output import count, print_json, progress_bar, say
from searchkit.cli.types import INDEX, NON_EMPTY


@click.command()
@click.argument("index", type=INDEX)
@click.argument("address", type=NON_EMPTY)
@click.option(
    "--index-type",
    type=NON_EMPTY,
    metavar="TYPE",
    help="FLAT, HNSW, IVF_FLAT, IVF_SQ8, or FAISS:FACTORY for Milvus 3. [default: nearest to the index's recipe]",
)
@click.option("--overwrite", is_flag=True, help="Overwrite changes that were made to the collection itself.")
@text_or_json
def push(index: Path, address: str, index_type: str | None, overwrite: bool, output: str) -> None:
    """Copy INDEX to the collection of a Milvus server at ADDRESS, or update the copy.

    Nothing is embedded. Stop it at any time and run it again to resume. Searching, evaluating, serving, adding and
    deleting then take ADDRESS in place of a folder. The login comes from SEARCHKIT_MILVUS_TOKEN (an API key, or
    user:password).

    \b
        searchkit push papers.index milvus://localhost:19530/papers
        searchkit push papers.index "milvus://milvus.example.org:443/papers?tls=on&db=research"
        searchkit push papers.index milvus:papers.db/papers --index-type HNSW
        searchkit search milvus:papers.db/papers "does vitamin D prevent flu"
    """
    from rich.progress import BarColumn, MofNCompleteColumn

    from searchkit.engine import SearchEngine
    from searchkit.remote.address import parse_milvus
    from searchkit.remote.push import push as push_index

    place = parse_milvus(address)
    with SearchEngine.open(index) as engine, progress_bar("pushing", BarColumn(), MofNCompleteColumn()) as progress:
        task = progress.add_task("", total=engine.passages)
        report = push_index(
            engine,
            place,
            index_type=index_type,
            overwrite=overwrite,
            on_rows=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if output == "json":
        print_json({"index": str(index), "collection": str(place), **asdict(report)}, indent=None)
        return
    say(
        f"{place}: {count(report.documents, 'document')}, {count(report.passages, 'passage')}, index {report.kind}; "
        f"{report.written:,} written, {count(report.removed, 'document')} removed, {report.compared:,} compared, "
        f"in {report.seconds:.1f} s"
    )
