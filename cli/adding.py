"""Add a corpus to an open index, with a progress bar and a report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.options import CorpusOptions
from searchkit.cli.output import MULTILINGUAL, count, note, print_json, progress_bar, say
from searchkit.cli.vectors import VectorOptions, check_given
from searchkit.errors import CorpusError, RejectedRowError, SearchkitError

if TYPE_CHECKING:
    import numpy as np

    from searchkit.ingest import AddReport
    from searchkit.merging import Part, Sample
    from searchkit.readers.rejects import Rejects
    from searchkit.records import Document
    from searchkit.writer import Writer


def add_corpus(
    engine: Writer,
    corpus: str,
    reading: CorpusOptions,
    output: str,
    *,
    own: VectorOptions,
    rows: np.ndarray | None = None,
    update: bool = False,
    created: bool = False,
    part: Part | Sample | None = None,
) -> AddReport:
    """Add a corpus to an open index with a progress bar, and print a report.

    Args:
        engine: The index.
        corpus: As on the command line.
        reading: How to read it.
        output: "text" or "json"; "none" prints only what went wrong.
        own: Where vectors are, if no model makes them.
        rows: The vectors themselves, where they are in a file of their own.
        update: Replace documents whose content has changed.
        created: The index is new; it is removed if nothing gets into it.
        part: Add only this share of it.
    """
    from searchkit.readers.corpus import ReadReport, Rejects, estimate_documents

    check_given(engine, own)
    # Rejects go beside the folder, those of a collection on a server into the working directory.
    folder = Path(engine.name) if Path(engine.name).is_dir() else Path(Path(engine.name.partition("?")[0]).name)
    name, skip = engine.name, skips(corpus, reading)
    read = ReadReport()
    file = reading.rejects_file(folder)
    with Rejects(file if skip else None) as rejects:
        try:
            documents = reading.read(corpus, rejects, read, own.vector_field)
            estimate = estimate_documents(corpus, reading.kind)
            if part is not None:
                documents = filter(part.holds, documents)
                estimate = None if estimate is None else int(estimate * part.share)
            with Progress(estimate) as progress:
                report = add_documents(
                    engine, documents, own, rejects, rows=rows, update=update, on_progress=progress.update
                )
            if created and rejects.count and not len(engine):
                raise CorpusError(f"{corpus}: nothing could be indexed; rejected: {rejects.summary(read.rows)}")
        except KeyboardInterrupt:
            kept = len(engine)
            raise click.ClickException(
                f"stopped; {name} holds {count(kept, 'document')}, and the same command resumes from there"
            ) from None
        except (SearchkitError, OSError) as error:
            kept = len(engine)
            if kept:
                note(f"{name} holds {count(kept, 'document')}; the same command resumes from there")
            elif created:
                shutil.rmtree(name)  # an empty index would only confuse
            if isinstance(error, RejectedRowError) and not skip:
                raise CorpusError(f"{error}; to skip bad rows and write them to a file: --on-error skip") from error
            raise
        report.refused = rejects.count
    total = len(engine)
    if output == "json":
        print_json({"index": name, "total": total, **asdict(report)}, indent=None)
        return report
    rate = f", {report.passages / report.seconds:.0f} passages/s" if report.passages else ""
    new = f"{report.documents - report.updated} new" + (f" and {report.updated} replaced" if update else "")
    if output == "text":
        say(
            f"{name}: {count(total, 'document')} ({new} in {count(report.passages, 'passage')}, "
            f"{report.unchanged} unchanged) in {report.seconds:.1f} s{rate}"
        )
    if report.without_vector:
        note(
            f"{report.without_vector} of {count(report.documents, 'document')} have no vector: only lexical search "
            "finds them"
        )
    if report.truncated:
        note(
            f"{report.truncated} of {count(report.passages, 'passage')} exceed the model's "
            f"{engine.embedder.max_length} tokens: only lexical and hybrid search see what was cut off"
        )
    if not (report.documents or report.unchanged or report.refused):
        note(f"{corpus} holds no documents")
    if report.unreadable:
        note(
            f"{report.unreadable} of {count(report.passages, 'passage')} are in scripts that {engine.embedder.name} "
            f"does not know: only lexical search finds them. {MULTILINGUAL}"
        )
    for sentence in read.notes():
        note(sentence)
    if report.refused:
        detail = (
            f"; see {file}"
            if skip
            else " (rows without any text in a BEIR folder, and empty rows of a table, never stop a run)"
        )
        note(f"rejected: {rejects.summary(read.rows)}{detail}")
    return report


def skips(corpus: str, reading: CorpusOptions) -> bool:
    """Whether bad rows are set aside: if asked for, and of folders, since one bad note must not stop the others."""
    from searchkit.readers.corpus import kind_of

    if reading.on_error is None and corpus != "-" and not Path(corpus).is_file():
        return kind_of(corpus, reading.kind) == "files"
    return reading.on_error == "skip"


def add_documents(
    engine: Writer,
    documents: Iterable[Document],
    own: VectorOptions,
    rejects: Rejects,
    *,
    rows: np.ndarray | None = None,
    update: bool = False,
    on_progress: Callable[[float, int], None] | None = None,
) -> AddReport:
    """Add documents, with the vectors that they bring if no model makes them."""
    vectors: Any = rows
    if own.vector_field is not None:
        documents, again = tee(documents)
        vectors = (document.vector for document in again)
    return engine.add(
        documents, vectors=vectors, update=update, on_refused=rejects.refuse_document, on_progress=on_progress
    )


class Progress:
    """Documents done, rate and time left, on a terminal."""

    def __init__(self, total: int | None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        self._bar = progress_bar(
            TextColumn("indexing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("documents · {task.fields[rate]} · left:"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self._task = self._bar.add_task("", total=total, rate="starting")
        self._began: tuple[float, int] | None = None

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, documents: float, passages: int) -> None:
        """Show this many done."""
        now = self._bar.get_time()
        if self._began is None:
            self._began = (now, passages)
        elapsed = now - self._began[0]
        rate = f"{(passages - self._began[1]) / elapsed:.0f} passages/s" if elapsed > 1 else "starting"
        self._bar.update(self._task, completed=int(documents), rate=rate)
