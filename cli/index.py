"""`searchkit index`: build an index from a corpus."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from glob import has_magic
from pathlib import Path

import click

from searchkit.cli.adding import add_corpus
from searchkit.cli.building import BuildOptions, build_options, open_or_create, similarity_option
from searchkit.cli.options import CorpusOptions, ModelOptions, corpus_options, model_options, text_or_json
from searchkit.cli.ray_index import RayOptions, index_on_ray, ray_options
from searchkit.cli.storage import fetched, put_at_end, temporary_folder
from searchkit.cli.types import INDEX_OR_URL, NEW_FOLDER_OR_URL, NON_EMPTY
from searchkit.cli.vectors import VectorOptions, vector_options
from searchkit.errors import SearchkitError


@click.command()
@click.argument("corpus", type=NON_EMPTY)
@click.option("--index", "target", type=NEW_FOLDER_OR_URL, help="Folder or URL for the index. [default: CORPUS.index]")
@build_options
@click.option(
    "--recipe",
    help="How to store the vectors once all are in: a recipe such as pq:48+rerank (see searchkit compress), or auto: "
    "the smallest that keeps 95 % of exact search's hits.",
)
@click.option(
    "--recipe-from",
    "recipe_from",
    type=INDEX_OR_URL,
    metavar="INDEX",
    help="Store the vectors by the codebook of another index: one of searchkit train-recipe, or another part.",
)
@vector_options
@similarity_option
@click.option("--part", metavar="K/N", help="Index only share K of N of the corpus, to be merged: searchkit merge.")
@ray_options
@corpus_options
@text_or_json
@model_options
def index(
    corpus: str,
    target: Path | str | None,
    build: BuildOptions,
    recipe: str | None,
    recipe_from: Path | str | None,
    own: VectorOptions,
    similarity: str | None,
    part: str | None,
    cluster: RayOptions,
    reading: CorpusOptions,
    output: str,
    model: ModelOptions,
) -> None:
    """Build an index from CORPUS, or resume building it.

    CORPUS is a BEIR folder, a .jsonl, .csv, .tsv or .parquet file, a folder of notes and documents (.md, .txt, .html,
    .pdf, .docx, .epub ...), a pattern such as 'notes/*.md', or - for JSON lines on standard input; it may be a URL, as
    s3://bucket/papers.jsonl. Stop it at any time and run it again to resume: nothing is embedded twice.

    \b
        searchkit index papers/ --index papers.index
        zcat dump.jsonl.gz | searchkit index - --index dump.index --text-field body
        searchkit index papers.jsonl --vector-field embedding --vectors-from my-model-v2
    """
    from searchkit.merging import Part
    from searchkit.object_storage import local_corpus

    share = None if part is None else Part.parse(part)
    if share is not None and target is None:
        raise click.UsageError("--part needs --index, a folder for each part")
    if share is not None and own.vectors is not None:
        raise click.UsageError(
            "--part cannot be combined with --vectors FILE, whose rows are in the order of the corpus"
        )
    if recipe and recipe_from:
        raise click.UsageError("--recipe cannot be combined with --recipe-from")
    target = target or _default_folder(corpus)
    if cluster.ray is not None:
        if part:
            raise click.UsageError("--part cannot be combined with --ray, which builds all parts")
        index_on_ray(corpus, target, cluster, build, model, own, similarity, recipe, recipe_from, reading, output)
        return
    with put_at_end(target, go_on=True) as folder, ExitStack() as opened:
        corpus = local_corpus(corpus)
        codebook = None if recipe_from is None else fetched([recipe_from], temporary_folder(opened, recipe_from))[0]
        created = not folder.exists()
        rows = own.rows(corpus, reading)
        engine = opened.enter_context(open_or_create(folder, corpus, reading, build, model, own, similarity, rows=rows))
        try:
            if recipe:
                from searchkit.cli.compress import check_recipe, store_by

                check_recipe(engine, recipe)
            if codebook:
                engine.store_like(codebook)
        except SearchkitError:
            if created:
                shutil.rmtree(folder)
            raise
        report = add_corpus(engine, corpus, reading, output, own=own, rows=rows, created=created, part=share)
        if recipe:
            store_by(engine, recipe)
        elif codebook and share is None and report.documents:
            engine.compact()  # compressed segments are searched as if all had been added at once


def _default_folder(corpus: str) -> Path:
    if corpus == "-":
        raise click.UsageError("standard input has no name; name the index with --index")
    path = Path(corpus).resolve()
    if has_magic(corpus) and not path.exists():
        raise click.UsageError("a pattern has no name; name the index with --index")
    name = path.name if path.is_dir() else Path(path.name.removesuffix(".gz")).stem
    return Path(f"{name}.index")
