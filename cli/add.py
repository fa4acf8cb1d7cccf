"""`searchkit add` and `searchkit update`: documents into an index that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from searchkit.cli.index import add_corpus
from searchkit.cli.options import INDEX, corpus_options, format_option, model_options


@click.command()
@click.argument("index", type=INDEX)
@click.argument("corpus")
@model_options
@corpus_options
@format_option
def add(index: Path, corpus: str, **options: Any) -> None:
    """Add the documents of CORPUS to INDEX.

    Those that are there already with equal content are left as they are; one with other content is refused. Stop it at
    any time: the same command goes on.

    \b
        searchkit add papers.index new-papers.jsonl
    """
    _add(index, corpus, options, update=False)


@click.command()
@click.argument("index", type=INDEX)
@click.argument("corpus")
@model_options
@corpus_options
@format_option
def update(index: Path, corpus: str, **options: Any) -> None:
    """Let documents of CORPUS take the places of those with equal ids in INDEX, and add the new ones.

    What has not changed is not embedded again. Stop it at any time: the same command goes on.

    \b
        searchkit update papers.index corrected.jsonl
    """
    _add(index, corpus, options, update=True)


def _add(index: Path, corpus: str, options: dict[str, Any], *, update: bool) -> None:
    from searchkit.engine import SearchEngine

    chosen = {name: options[name] for name in ("model", "adapter", "device", "dtype", "threads")}
    with SearchEngine.open(index, writable=True, **chosen) as engine:
        add_corpus(engine, corpus, options, update=update)
