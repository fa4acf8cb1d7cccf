"""`searchkit index`: a corpus becomes an index."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.options import MULTILINGUAL, corpus_options, format_option, model_options, note, table_options
from searchkit.errors import CorpusError, RejectedRowError, SearchkitError

if TYPE_CHECKING:
    from searchkit.engine import SearchEngine


@click.command()
@click.argument("corpus")
@click.option("--index", "folder", type=click.Path(path_type=Path), help="Folder to write. [default: CORPUS.index]")
@model_options
@click.option("--max-length", type=click.IntRange(8), help="Most tokens of one input. [default: the model's]")
@click.option("--dim", type=click.IntRange(1), help="Keep this many dimensions (Matryoshka). [default: all]")
@click.option("--force-dim", is_flag=True, help="Allow --dim on a model that was not trained for it.")
@click.option(
    "--chunk-tokens",
    type=click.IntRange(0),
    help="Longest passage; 0 keeps documents whole. [default: the model's length, 512 at most; BEIR: 0]",
)
@click.option("--overlap", type=click.IntRange(0), help="Tokens neighbouring passages share. [default: an eighth]")
@click.option("--language", help="Stemming and stop words for BM25, or none. [default: english]")
@click.option(
    "--recipe",
    help="How to store the vectors once all are in: a name such as pq:48+rerank (see searchkit compress), or auto: the "
    "smallest of some that finds 95 % of what exact search finds.",
)
@corpus_options
@format_option
def index(corpus: str, folder: Path | None, **options: Any) -> None:
    """Build an index from CORPUS, or go on where a stopped run left off.

    CORPUS is a BEIR folder, a .jsonl, .csv, .tsv or .parquet file, a folder of notes and documents (.md, .txt, .html,
    .pdf, .docx, .epub ...), a pattern such as 'notes/*.md', or - for JSON lines on standard input. Stop it at any time:
    the same command resumes, and embeds nothing twice.

    \b
        searchkit index papers/ --index papers.index
        zcat dump.jsonl.gz | searchkit index - --index dump.index --text-field body
    """
    from searchkit.readers.corpus import kind_of

    folder = folder or _default_folder(corpus)
    made = not folder.exists()
    recipe = options["recipe"]
    with _engine(folder, kind_of(corpus, options["kind"]), options) as engine:
        if recipe:
            from searchkit.cli.compress import check_recipe, store_by

            try:
                check_recipe(engine, recipe)
            except ValueError:
                if made:
                    shutil.rmtree(folder)
                raise
        add_corpus(engine, corpus, options, made=made)
        if recipe:
            store_by(engine, recipe)


def add_corpus(
    engine: SearchEngine, corpus: str, options: dict[str, Any], *, update: bool = False, made: bool = False
) -> None:
    """Add a corpus to an index that is open, show how far it is, and print what was done.

    Args:
        engine: The index.
        corpus: As on the command line.
        options: Those of `corpus_options` and `format_option`.
        update: Replace documents whose content has changed.
        made: The index is new, and of no use when nothing comes into it.
    """
    from searchkit.readers.corpus import Fields, ReadReport, Rejects, estimate_documents, kind_of, read_corpus

    folder, is_file = engine.store.folder, corpus == "-" or Path(corpus).is_file()
    skip = options["on_error"] == "skip"
    if options["on_error"] is None and not is_file:  # one bad note must not stop the others
        skip = kind_of(corpus, options["kind"]) == "files"
    fields = Fields(
        options["id_field"], options["title_field"], options["text_field"], options["metadata_field"] or None
    )
    table = table_options(options["columns"], options["delimiter"], options["no_header"])
    read = ReadReport()
    rejects = options["rejects"] or folder.with_name(folder.name + ".rejects.jsonl")
    with Rejects(rejects if skip else None) as refused:
        try:
            documents = read_corpus(
                corpus,
                kind=options["kind"],
                fields=fields,
                table=table,
                rejects=refused,
                report=read,
                encoding=options["encoding"],
            )
            with _Progress(estimate_documents(corpus, options["kind"])) as progress:
                report = engine.add(
                    documents,
                    update=update,
                    on_refused=lambda document, reason: refused.refuse(
                        document.place or f"id {document.id!r}", reason, document.as_row()
                    ),
                    on_progress=progress.update,
                )
            if made and refused.count and not len(engine):
                raise CorpusError(f"{corpus}: nothing could be indexed; rejected: {refused.summary(read.rows)}")
        except KeyboardInterrupt:
            kept, _ = engine.store.documents.counts()
            raise OSError(f"stopped; {kept} documents are in {folder}, the same command goes on from there") from None
        except (SearchkitError, ValueError, OSError) as error:
            kept, _ = engine.store.documents.counts()
            if kept:
                note(f"{kept} documents are in {folder}; the same command goes on from there")
            elif made:
                shutil.rmtree(folder)  # an index of nothing would only puzzle
            if isinstance(error, RejectedRowError) and not skip:
                note("to go on without bad rows, and keep them in a file: --on-error skip")
            raise
        report.refused = refused.count
    total = len(engine)
    if options["output"] == "json":
        click.echo(json.dumps({"index": str(folder), "total": total, **asdict(report)}))
        return
    rate = f", {report.passages / report.seconds:.0f} passages/s" if report.passages else ""
    new = f"{report.documents - report.updated} new" + (f" and {report.updated} replaced" if update else "")
    click.echo(
        f"{folder}: {total} documents ({new} in {report.passages} passages, "
        f"{report.unchanged} there already) in {report.seconds:.1f} s{rate}"
    )
    if report.truncated:
        note(
            f"{report.truncated} of {report.passages} passages are longer than the model's "
            f"{engine.embedder.max_length} tokens: their ends are found by words (lexical, hybrid), not by meaning"
        )
    if report.unreadable:
        note(
            f"{report.unreadable} of {report.passages} passages are in scripts that {engine.embedder.name} does not "
            f"know, and only their words find them. {MULTILINGUAL}"
        )
    for sentence in read.notes():
        note(sentence)
    if report.refused:
        where = f"; see {rejects}" if skip else " (blank ones of a published collection never stop a run)"
        note(f"rejected: {refused.summary(read.rows)}{where}")


def _default_folder(corpus: str) -> Path:
    if corpus == "-":
        raise click.UsageError("standard input has no name; say where the index goes with --index")
    path = Path(corpus).resolve()
    if has_magic(corpus) and not path.exists():
        raise click.UsageError("a pattern has no name; say where the index goes with --index")
    name = path.name if path.is_dir() else Path(path.name.removesuffix(".gz")).stem
    return Path(f"{name}.index")


def _engine(folder: Path, kind: str, options: dict[str, Any]) -> SearchEngine:
    """The index to write to: the one that is there, or a new one."""
    from searchkit.engine import SearchEngine
    from searchkit.indexer.store import Store
    from searchkit.models.embedder import DEFAULT_MODEL, Embedder

    chunking = {name: options[name] for name in ("chunk_tokens", "overlap", "language")}
    name = options["model"] or DEFAULT_MODEL
    if (folder / "index.db").is_file():
        if not any(options[key] for key in ("model", "adapter", "max_length", "dim")):
            engine = SearchEngine.open(
                folder, device=options["device"], dtype=options["dtype"], threads=options["threads"], writable=True
            )
            engine.check_settings(**chunking)
            return engine
        with Store(folder) as store:
            name = options["model"] or store.database.settings()["model"]["model"]
    elif chunking["chunk_tokens"] is None and kind == "beir":
        # A BEIR collection is judged by its documents as they are, and published figures embed each as one.
        chunking["chunk_tokens"] = 0
    embedder = Embedder(
        name,
        adapter=options["adapter"],
        device=options["device"],
        dtype=options["dtype"],
        threads=options["threads"],
        max_length=options["max_length"],
        dim=options["dim"],
        force_dim=options["force_dim"],
    )
    return SearchEngine.create(folder, model=embedder, device=options["device"], exist_ok=True, **chunking)


class _Progress:
    """A bar with rate and time left on a terminal; nothing elsewhere."""

    def __init__(self, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("indexing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("documents · {task.fields[rate]} · left:"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, rate="starting")
        self._began: tuple[float, int] | None = None

    def __enter__(self) -> _Progress:
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
