"""`searchkit index`: build an index from a corpus."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from glob import has_magic
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.options import (
    INDEX,
    MULTILINGUAL,
    NEW_FOLDER,
    NON_EMPTY,
    CorpusOptions,
    ModelOptions,
    as_record,
    corpus_options,
    model_options,
    text_or_json,
)
from searchkit.cli.output import count, note, print_json, progress_bar, say
from searchkit.cli.vectors import VectorOptions, check_given, vector_options
from searchkit.errors import CorpusError, InputError, RejectedRowError, SearchkitError

if TYPE_CHECKING:
    import numpy as np

    from searchkit.engine import SearchEngine
    from searchkit.ingest import AddReport
    from searchkit.merging import Part, Sample


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What an index is built with, and bound to."""

    max_length: int | None
    dim: int | None
    force_dim: bool
    chunk_tokens: int | None
    overlap: int | None
    language: str | None


build_options = as_record(
    "build",
    BuildOptions,
    click.option(
        "--max-length", type=click.IntRange(8), help="Truncate inputs to this many tokens. [default: the model's limit]"
    ),
    click.option(
        "--dim",
        type=click.IntRange(1),
        help="Keep only the first DIM dimensions (Matryoshka); or the width of your own vectors. [default: all]",
    ),
    click.option("--force-dim", is_flag=True, help="Allow --dim for a model that was not trained for it."),
    click.option(
        "--chunk-tokens",
        type=click.IntRange(0),
        help="Split documents into passages of at most this many tokens; 0: do not split. "
        "[default: the model's limit, at most 512; BEIR: 0]",
    ),
    click.option("--overlap", type=click.IntRange(0), help="Tokens that neighbouring passages share. [default: 1/8]"),
    click.option(
        "--language",
        help="Stemming and stop words of lexical search; none: neither. french+fold, none+fold, ...: accents are "
        "ignored too. [default: english]",
    ),
)

similarity_option = click.option(
    "--similarity",
    type=click.Choice(["cosine", "inner-product", "euclidean"]),
    help="How your own vectors are compared. [default: cosine]",
)


@click.command()
@click.argument("corpus", type=NON_EMPTY)
@click.option("--index", "folder", type=NEW_FOLDER, help="Folder for the index. [default: CORPUS.index]")
@build_options
@click.option(
    "--recipe",
    help="How to store the vectors once all are in: a recipe such as pq:48+rerank (see searchkit compress), or auto: "
    "the smallest that keeps 95 % of exact search's hits.",
)
@click.option(
    "--recipe-from",
    "recipe_from",
    type=INDEX,
    metavar="INDEX",
    help="Store the vectors by the codebook of another index: one of searchkit train-recipe, or another part.",
)
@vector_options
@similarity_option
@click.option("--part", metavar="K/N", help="Index only share K of N of the corpus, to be merged: searchkit merge.")
@corpus_options
@text_or_json
@model_options
def index(
    corpus: str,
    folder: Path | None,
    build: BuildOptions,
    recipe: str | None,
    recipe_from: Path | None,
    own: VectorOptions,
    similarity: str | None,
    part: str | None,
    reading: CorpusOptions,
    output: str,
    model: ModelOptions,
) -> None:
    """Build an index from CORPUS, or resume building it.

    CORPUS is a BEIR folder, a .jsonl, .csv, .tsv or .parquet file, a folder of notes and documents (.md, .txt, .html,
    .pdf, .docx, .epub ...), a pattern such as 'notes/*.md', or - for JSON lines on standard input. Stop it at any time
    and run it again to resume: nothing is embedded twice.

    \b
        searchkit index papers/ --index papers.index
        zcat dump.jsonl.gz | searchkit index - --index dump.index --text-field body
        searchkit index papers.jsonl --vector-field embedding --vectors-from my-model-v2
    """
    from searchkit.merging import Part

    share = None if part is None else Part.parse(part)
    if share is not None and folder is None:
        raise click.UsageError("--part needs --index, a folder for each part")
    if share is not None and own.vectors is not None:
        raise click.UsageError(
            "--part cannot be combined with --vectors FILE, whose rows are in the order of the corpus"
        )
    if recipe and recipe_from:
        raise click.UsageError("--recipe cannot be combined with --recipe-from")
    folder = folder or _default_folder(corpus)
    created = not folder.exists()
    rows = own.rows(corpus, reading)
    with open_or_create(folder, corpus, reading, build, model, own, similarity, rows=rows) as engine:
        try:
            if recipe:
                from searchkit.cli.compress import check_recipe, store_by

                check_recipe(engine, recipe)
            if recipe_from:
                engine.store_like(recipe_from)
        except SearchkitError:
            if created:
                shutil.rmtree(folder)
            raise
        report = add_corpus(engine, corpus, reading, output, own=own, rows=rows, created=created, part=share)
        if recipe:
            store_by(engine, recipe)
        elif recipe_from and share is None and report.documents:
            engine.consolidate()


def add_corpus(
    engine: SearchEngine,
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
    from searchkit.readers.corpus import ReadReport, Rejects, estimate_documents, kind_of

    check_given(engine, own)
    folder, is_file = engine.store.folder, corpus == "-" or Path(corpus).is_file()
    skip = reading.on_error == "skip"
    if reading.on_error is None and not is_file:  # one bad note must not stop the others
        skip = kind_of(corpus, reading.kind) == "files"
    read = ReadReport()
    file = reading.rejects_file(folder)
    with Rejects(file if skip else None) as rejects:
        try:
            documents = reading.read(corpus, rejects, read, own.vector_field)
            estimate = estimate_documents(corpus, reading.kind)
            if part is not None:
                documents = filter(part.holds, documents)
                estimate = None if estimate is None else int(estimate * part.share)
            vectors: Any = rows
            if own.vector_field is not None:
                documents, again = tee(documents)
                vectors = (document.vector for document in again)
            with _Progress(estimate) as progress:
                report = engine.add(
                    documents,
                    vectors=vectors,
                    update=update,
                    on_refused=rejects.refuse_document,
                    on_progress=progress.update,
                )
            if created and rejects.count and not len(engine):
                raise CorpusError(f"{corpus}: nothing could be indexed; rejected: {rejects.summary(read.rows)}")
        except KeyboardInterrupt:
            kept, _ = engine.store.documents.counts()
            raise click.ClickException(
                f"stopped; {folder} holds {count(kept, 'document')}, and the same command resumes from there"
            ) from None
        except (SearchkitError, OSError) as error:
            kept, _ = engine.store.documents.counts()
            if kept:
                note(f"{folder} holds {count(kept, 'document')}; the same command resumes from there")
            elif created:
                shutil.rmtree(folder)  # an empty index would only confuse
            if isinstance(error, RejectedRowError) and not skip:
                note("to skip bad rows and write them to a file: --on-error skip")
            raise
        report.refused = rejects.count
    total = len(engine)
    if output == "json":
        print_json({"index": str(folder), "total": total, **asdict(report)}, indent=None)
        return report
    rate = f", {report.passages / report.seconds:.0f} passages/s" if report.passages else ""
    new = f"{report.documents - report.updated} new" + (f" and {report.updated} replaced" if update else "")
    if output == "text":
        say(
            f"{folder}: {count(total, 'document')} ({new} in {count(report.passages, 'passage')}, "
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


def _default_folder(corpus: str) -> Path:
    if corpus == "-":
        raise click.UsageError("standard input has no name; name the index with --index")
    path = Path(corpus).resolve()
    if has_magic(corpus) and not path.exists():
        raise click.UsageError("a pattern has no name; name the index with --index")
    name = path.name if path.is_dir() else Path(path.name.removesuffix(".gz")).stem
    return Path(f"{name}.index")


def open_or_create(
    folder: Path,
    corpus: str,
    reading: CorpusOptions,
    build: BuildOptions,
    model: ModelOptions,
    own: VectorOptions,
    similarity: str | None,
    *,
    rows: np.ndarray | None = None,
) -> SearchEngine:
    """The index to write a corpus to: the existing one, or a new one."""
    from searchkit.readers.corpus import kind_of

    kind = kind_of(corpus, reading.kind)
    if own.given:
        width = build.dim or own.width(corpus, reading, rows)
        return _open_or_create_own(folder, build, model, own, similarity, width)
    if similarity:
        raise click.UsageError("--similarity is for your own vectors: give --vectors FILE or --vector-field NAME")
    return _open_or_create(folder, kind, build, model)


def _open_or_create(folder: Path, kind: str, build: BuildOptions, model: ModelOptions) -> SearchEngine:
    """The index whose vectors a model makes."""
    from searchkit.binding import bound_name
    from searchkit.engine import SearchEngine
    from searchkit.indexer.store import Store
    from searchkit.models.embedder import Embedder
    from searchkit.models.remote.address import RemoteModel

    name: str | RemoteModel = model.name
    chunk_tokens = build.chunk_tokens
    if (folder / "index.db").is_file():
        if not (model.model or model.adapter or build.max_length or build.dim):
            engine = model.open(folder, writable=True)
            try:
                engine.check_settings(chunk_tokens=build.chunk_tokens, overlap=build.overlap, language=build.language)
            except SearchkitError:
                engine.close()
                raise
            return engine
        if model.model is None:
            with Store(folder) as store:
                bound = store.database.settings()["model"]
            if bound is None:
                raise InputError(f"{folder} holds vectors that its users made; omit --max-length and --dim")
            name = bound_name(bound)
    elif chunk_tokens is None and kind == "beir":
        # Published figures embed each BEIR document whole.
        chunk_tokens = 0
    embedder = Embedder(
        name,
        adapter=model.adapter,
        device=model.device,
        dtype=model.dtype,
        threads=model.threads,
        max_length=build.max_length,
        dim=build.dim,
        force_dim=build.force_dim,
    )
    return SearchEngine.create(
        folder,
        model=embedder,
        device=model.device,
        exist_ok=True,
        chunk_tokens=chunk_tokens,
        overlap=build.overlap,
        language=build.language,
    )


def _open_or_create_own(
    folder: Path,
    build: BuildOptions,
    model: ModelOptions,
    own: VectorOptions,
    similarity: str | None,
    dim: int,
) -> SearchEngine:
    """The index of vectors that users made to write to: the existing one, or a new one."""
    from searchkit.engine import SearchEngine

    for name, value in {
        "--model": model.model, "--adapter": model.adapter, "--max-length": build.max_length,
        "--chunk-tokens": build.chunk_tokens, "--overlap": build.overlap, "--force-dim": build.force_dim or None,
    }.items():  # fmt: skip
        if value is not None:
            raise click.UsageError(f"{name} is for a model, which your own vectors do without; omit it")
    return SearchEngine.create(
        folder,
        dim=dim,
        similarity=similarity,
        vectors_from=own.vectors_from,
        language=build.language,
        device=model.device,
        exist_ok=True,
    )


class _Progress:
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
