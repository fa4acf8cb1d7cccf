"""`searchkit merge`: one index out of several."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from searchkit.cli.options import INDEX, NEW_FOLDER, text_or_json
from searchkit.cli.output import count, print_json, progress_bar, say


@click.command()
@click.argument("parts", type=INDEX, nargs=-1, required=True)
@click.option("--index", "folder", type=NEW_FOLDER, required=True, help="Folder for the merged index.")
@click.option(
    "--on-clash",
    default="refuse",
    show_default=True,
    type=click.Choice(["refuse", "newest"]),
    help="Where parts hold different documents of one id: stop, or keep that of the part changed last.",
)
@text_or_json
def merge(parts: tuple[Path, ...], folder: Path, on_clash: str, output: str) -> None:
    """Merge PARTS, indexes of one model, into a new one. Nothing is embedded, and the parts stay as they are.

    Stop it at any time and run it again to resume. The result does not depend on the order of the parts.

    \b
        searchkit index papers/ --index part-1.index --part 1/2
        searchkit index papers/ --index part-2.index --part 2/2
        searchkit merge part-*.index --index papers.index
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from searchkit.merging import merge as merge_parts

    columns = (TextColumn("merging"), BarColumn(), MofNCompleteColumn(), TextColumn("left:"), TimeRemainingColumn())
    with progress_bar(*columns) as bar:
        task = bar.add_task("", total=None)
        report = merge_parts(
            parts,
            folder,
            on_clash=on_clash,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if output == "json":
        print_json({"index": str(folder), **asdict(report)}, indent=None)
        return
    kinds = {"repeated": report.repeated, "older": report.replaced}
    left = [f"{number} {kind}" for kind, number in kinds.items() if number]
    left_out = f" ({', '.join(left)} left out)" if left else ""
    say(f"{folder}: {count(report.documents, 'document')} in {count(report.passages, 'passage')}{left_out}")
