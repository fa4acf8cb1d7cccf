"""`searchkit sync`: an index that follows folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from searchkit.cli.options import CorpusOptions, ModelOptions, corpus_options, model_options, require, text_or_json
from searchkit.cli.output import count, note, print_json, say
from searchkit.cli.types import INDEX, NON_EMPTY
from searchkit.errors import InputError

if TYPE_CHECKING:
    from searchkit.engine import SearchEngine
    from searchkit.readers.corpus import ReadReport
    from searchkit.readers.rejects import Rejects
    from searchkit.sync import SyncReport

_SHOWN = 20
_PAUSE = 1000  # milliseconds without a change before a watched folder is read again


@click.command()
@click.argument("index", type=INDEX)
@click.argument("corpora", type=NON_EMPTY, metavar="FOLDER...", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--watch", is_flag=True, help="Keep running, and sync after every change.")
@corpus_options
@text_or_json
@model_options
def sync(
    index: Path,
    corpora: tuple[str, ...],
    dry_run: bool,
    watch: bool,
    reading: CorpusOptions,
    output: str,
    model: ModelOptions,
) -> None:
    """Make INDEX hold exactly what the FOLDERs hold: add new documents, replace changed ones, delete vanished ones.

    Files are compared by content, not by date. A file that exists and cannot be read this time stays in the index.

    \b
        searchkit sync notes.index notes/ --dry-run
        searchkit sync notes.index notes/ --watch
    """
    if watch and dry_run:
        raise click.UsageError("--watch cannot be combined with --dry-run")
    if watch:
        require("--watch", "files", "watchfiles")
    with model.open(index, writable=not dry_run) as engine:
        if not engine.has_model:
            raise InputError(
                f"{index} holds vectors that its users made, which a folder does not: searchkit update with "
                "--vector-field or --vectors, and searchkit delete for what is gone"
            )
        _sync_once(engine, corpora, reading, output, dry_run=dry_run)
        if watch:
            from watchfiles import watch as changes

            note("watching for changes (Ctrl-C ends)")
            for _ in changes(*corpora, debounce=_PAUSE, raise_interrupt=False):
                _sync_once(engine, corpora, reading, output, dry_run=False)


def _sync_once(
    engine: SearchEngine, corpora: tuple[str, ...], reading: CorpusOptions, output: str, *, dry_run: bool
) -> None:
    from searchkit.readers.corpus import ReadReport, kind_of
    from searchkit.readers.rejects import Rejects
    from searchkit.sync import sync as run

    folder = Path(engine.name)
    file = reading.rejects_file(folder)
    read = ReadReport()
    with Rejects(None if reading.on_error == "raise" else file) as rejects:
        kinds = {kind_of(corpus, reading.kind) for corpus in corpora}
        report = run(
            engine,
            (document for corpus in corpora for document in reading.read(corpus, rejects, read)),
            still_exists=_still_exists(read, kinds, rejects),
            dry_run=dry_run,
            on_refused=rejects.refuse_document,
        )
    if output == "json":
        print_json({"index": str(folder), "total": len(engine), "dry_run": dry_run, **asdict(report)}, indent=None)
    else:
        _print_report(engine, report, dry_run=dry_run)
    for sentence in read.notes():
        note(sentence)
    if rejects.count:
        note(f"rejected: {rejects.summary(read.rows)}; see {file}")


def _still_exists(read: ReadReport, kinds: set[str], rejects: Rejects) -> Callable[[str], bool]:
    """Whether a document that did not come exists: as a file that was rejected; in tables, whenever any row was."""
    if kinds == {"files"}:
        return read.is_unread
    return lambda id: rejects.count > 0


def _print_report(engine: SearchEngine, report: SyncReport, *, dry_run: bool) -> None:
    moved = [f"{old} -> {new}" for old, new in report.moved.items()]
    groups = {
        "new": report.new, "changed": report.changed, "moved": moved, "vanished": report.vanished,
        "kept, not readable": report.kept,
    }  # fmt: skip
    for name, items in groups.items():
        for item in items[:_SHOWN]:
            say(f"{name}: {item}")
        if len(items) > _SHOWN:
            say(f"{name}: {len(items) - _SHOWN:,} more")
    counts = ", ".join(f"{len(items):,} {name}" for name, items in groups.items() if items)
    changes = f"{counts or 'no changes'}, {report.unchanged:,} unchanged"
    state = "dry run" if dry_run else count(len(engine), "document")
    say(f"{engine.name}: {state}; {changes}")
