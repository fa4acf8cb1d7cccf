"""`searchkit add` and `searchkit update`: documents into an existing index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from searchkit.cli.adding import add_corpus
from searchkit.cli.options import CorpusOptions, ModelOptions, corpus_options, model_options, text_or_json
from searchkit.cli.types import NON_EMPTY, PLACE
from searchkit.cli.vectors import VectorOptions, vector_options

if TYPE_CHECKING:
    from searchkit.remote.address import MilvusAddress


@click.command()
@click.argument("index", type=PLACE)
@click.argument("corpus", type=NON_EMPTY)
@vector_options
@corpus_options
@text_or_json
@model_options
def add(
    index: Path | MilvusAddress,
    corpus: str,
    own: VectorOptions,
    reading: CorpusOptions,
    output: str,
    model: ModelOptions,
) -> None:
    """Add the documents of CORPUS to INDEX, a folder or a collection in Milvus.

    Documents that are already there, unchanged, are skipped; one with the same id and other content is an error. Stop
    it at any time and run it again to resume.

    \b
        searchkit add papers.index new-papers.jsonl
        searchkit add own.index more.jsonl --vector-field embedding
    """
    from searchkit.object_storage import local_corpus

    corpus = local_corpus(corpus)
    rows = own.rows(corpus, reading)
    with model.open_place(index, writable=True, vectors_from=own.vectors_from) as engine:
        add_corpus(engine, corpus, reading, output, own=own, rows=rows)


@click.command()
@click.argument("index", type=PLACE)
@click.argument("corpus", type=NON_EMPTY)
@vector_options
@corpus_options
@text_or_json
@model_options
def update(
    index: Path | MilvusAddress,
    corpus: str,
    own: VectorOptions,
    reading: CorpusOptions,
    output: str,
    model: ModelOptions,
) -> None:
    """Replace documents of INDEX by those of CORPUS with the same ids, and add the others.

    Unchanged documents are not embedded again. Stop it at any time and run it again to resume.

    \b
        searchkit update papers.index corrected.jsonl
    """
    from searchkit.object_storage import local_corpus

    corpus = local_corpus(corpus)
    rows = own.rows(corpus, reading)
    with model.open_place(index, writable=True, vectors_from=own.vectors_from) as engine:
        add_corpus(engine, corpus, reading, output, own=own, rows=rows, update=True)
