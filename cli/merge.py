"""`searchkit merge`: one index out of several."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from searchkit.cli.options import text_or_json
from searchkit.cli.output import count, print_json, progress_bar, say
from searchkit.cli.storage import fetched, put_at_end
from searchkit.cli.types import INDEX_OR_URL, NEW_FOLDER_OR_URL


@click.command()
@click.argument("parts", type=INDEX_OR_URL, nargs=-1, required=True)
@click.option("--index", "target", type=NEW_FOLDER_OR_URL, required=True, help="Folder or URL for the merged index.")
@click.option(
    "--on-clash",
    default="refuse",
    show_default=True,
    type=click.Choice(["refuse", "newest"]),
    help="Where parts hold different documents of one id: stop, or keep that of the part changed last.",
)
@text_or_json
def merge(parts: tuple[Path | str, ...], target: Path | str, on_clash: str, output: str) -> None:
    """Merge PARTS, indexes of one model, into a new one. Nothing is embedded, and the parts stay as they are.

    Stop it at any time and run it again to resume. The result does not depend on the order of the parts. Parts, and the
    new index, may be in object storage.

    \b
        searchkit index papers/ --index part-1.index --part 1/2
        searchkit index papers/ --index part-2.index --part 2/2
        searchkit merge part-*.index --index papers.index
        searchkit merge 's3://bucket/part-*.index' --index papers.index
    """
    from searchkit.merging import merge as merge_parts

    with put_at_end(target, go_on=False) as folder:
        copies = folder.with_name(f"{folder.name}.parts")
        local = fetched(parts, copies)
        if isinstance(target, str):  # an earlier call may have merged other parts, and not uploaded them
            shutil.rmtree(folder, ignore_errors=True)
        with merging_bar() as on_progress:
            report = merge_parts(local, folder, on_clash=on_clash, on_progress=on_progress)
        shutil.rmtree(copies, ignore_errors=True)
    if output == "json":
        print_json({"index": str(target), **asdict(report)}, indent=None)
        return
    kinds = {"repeated": report.repeated, "older": report.replaced}
    left = [f"{number} {kind}" for kind, number in kinds.items() if number]
    left_out = f" ({', '.join(left)} left out)" if left else ""
    say(f"{target}: {count(report.documents, 'document')} in {count(report.passages, 'passage')}{left_out}")


@contextmanager
def merging_bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar; yields what to call with the documents done and those of all parts."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("merging"), BarColumn(), MofNCompleteColumn(), TextColumn("left:"), TimeRemainingColumn())
    with progress_bar(*columns) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
