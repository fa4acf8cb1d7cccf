"""What an index is built with: options, the model, and the folder that is opened or made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from searchkit.cli.options import CorpusOptions, ModelOptions, as_record
from searchkit.cli.vectors import VectorOptions
from searchkit.errors import InputError, SearchkitError

if TYPE_CHECKING:
    import numpy as np

    from searchkit.engine import SearchEngine
    from searchkit.models.embedder import Embedder
    from searchkit.models.remote.address import RemoteModel


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
        return open_or_create_own(folder, build, model, own, similarity, width)
    if similarity:
        raise click.UsageError("--similarity is for your own vectors: give --vectors FILE or --vector-field NAME")
    return _open_or_create(folder, kind, build, model)


def _open_or_create(folder: Path, kind: str, build: BuildOptions, model: ModelOptions) -> SearchEngine:
    """The index whose vectors a model makes."""
    from searchkit.binding import bound_name
    from searchkit.engine import SearchEngine
    from searchkit.remote.places import stored_model

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
            bound = stored_model(folder)
            if bound is None:
                raise InputError(f"{folder} holds vectors that its users made; omit --max-length and --dim")
            name = bound_name(bound)
    elif chunk_tokens is None and kind == "beir":
        # Published figures embed each BEIR document whole.
        chunk_tokens = 0
    embedder = load_embedder(model, build, name)
    return SearchEngine.create(
        folder,
        model=embedder,
        device=model.device,
        exist_ok=True,
        chunk_tokens=chunk_tokens,
        overlap=build.overlap,
        language=build.language,
    )


def load_embedder(model: ModelOptions, build: BuildOptions, name: str | RemoteModel | None = None) -> Embedder:
    """The model of a new index."""
    from searchkit.models.embedder import Embedder

    return Embedder(
        name or model.name,
        adapter=model.adapter,
        device=model.device,
        dtype=model.dtype,
        threads=model.threads,
        max_length=build.max_length,
        dim=build.dim,
        force_dim=build.force_dim,
    )


def open_or_create_own(
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
