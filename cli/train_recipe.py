"""`searchkit train-recipe`: a codebook for indexes that are built apart and merged."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from searchkit.cli.adding import add_corpus
from searchkit.cli.building import BuildOptions, build_options, open_or_create, similarity_option
from searchkit.cli.options import CorpusOptions, ModelOptions, as_record, corpus_options, model_options, text_or_json
from searchkit.cli.output import note, print_json, say
from searchkit.cli.storage import put_at_end
from searchkit.cli.types import NEW_FOLDER_OR_URL, NON_EMPTY
from searchkit.cli.vectors import VectorOptions, vector_options

if TYPE_CHECKING:
    from searchkit.engine import SearchEngine

_MORE = 1.05
"""A random share of so much more than is wanted is rarely too small."""


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """What is trained, and on how much."""

    recipe: str
    out: Path | str
    sample: int | None
    passages: int | None
    drop_vectors: bool
    seed: int

    def __post_init__(self) -> None:
        if isinstance(self.out, Path) and self.out.exists():
            raise click.UsageError(f"{self.out} exists; name another folder, or delete it")


_training_options = as_record(
    "training",
    TrainingOptions,
    click.option("--recipe", required=True, help="How to store vectors: pq:48+rerank, ivf-pq:48 ... (see compress)."),
    click.option(
        "--out",
        type=NEW_FOLDER_OR_URL,
        required=True,
        help="Folder or URL for the codebook, an index without documents.",
    ),
    click.option(
        "--sample", type=click.IntRange(1), help="Passages to train on. [default: as many as the recipe wants, or all]"
    ),
    click.option(
        "--passages",
        type=click.IntRange(1),
        help="Passages of all parts together, for the number of IVF lists. [default: estimated from SOURCE]",
    ),
    click.option(
        "--drop-vectors", is_flag=True, help="Keep only codes in the parts. Their recipe cannot change later."
    ),
    click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Random seed."),
)


@click.command("train-recipe")
@click.argument("source", type=NON_EMPTY)
@_training_options
@build_options
@vector_options
@similarity_option
@corpus_options
@text_or_json
@model_options
def train_recipe(
    source: str,
    training: TrainingOptions,
    build: BuildOptions,
    own: VectorOptions,
    similarity: str | None,
    reading: CorpusOptions,
    output: str,
    model: ModelOptions,
) -> None:
    """Train the codebook of a recipe once, for parts that are built apart and merged.

    SOURCE is a corpus, of which a sample is embedded, or an index, whose vectors are taken as they are: the first part,
    for instance, with --passages for all of them. Stopped while it embeds, the same command resumes.

    \b
        searchkit train-recipe papers/ --recipe ivf-pq:48+rerank --out papers.recipe
        searchkit index papers/ --index part-1.index --part 1/8 --recipe-from papers.recipe
    """
    from searchkit.compression.training import train_recipe as train
    from searchkit.object_storage import local_corpus

    source = local_corpus(source)
    with put_at_end(training.out, go_on=False) as out:
        if isinstance(training.out, str):
            shutil.rmtree(out, ignore_errors=True)  # of an earlier call that could not upload it
        if (Path(source) / "index.db").is_file():
            opened = _index(Path(source), model)
        else:
            opened = _sample(source, out, training, build, own, similarity, reading, model)
        with opened as (engine, passages):
            trained = train(
                engine, training.recipe, out, passages=training.passages or passages, sample=training.sample,
                drop_vectors=training.drop_vectors, seed=training.seed,
            )  # fmt: skip
    plan = trained.plan
    if trained.vectors < plan.wanted:
        note(f"trained on {trained.vectors:,} vectors, {plan.wanted:,} are better: --sample, or a larger SOURCE")
    if output == "json":
        print_json({"index": str(training.out), "trained_on": trained.vectors, **asdict(plan)}, indent=None)
        return
    lists = f" with {plan.lists:,} IVF lists" if plan.lists else ""
    fitted = f", trained on {trained.vectors:,} vectors" if trained.vectors else ""
    say(f"{training.out}: {plan.spelling}{lists}{fitted}; to use it: --recipe-from {training.out}")


@contextmanager
def _index(folder: Path, model: ModelOptions) -> Iterator[tuple[SearchEngine, int]]:
    """An index, and how many passages it has."""
    with model.open(folder) as engine:
        yield engine, engine.passages


@contextmanager
def _sample(
    corpus: str,
    out: Path,
    training: TrainingOptions,
    build: BuildOptions,
    own: VectorOptions,
    similarity: str | None,
    reading: CorpusOptions,
    model: ModelOptions,
) -> Iterator[tuple[SearchEngine, int]]:
    """An index of a sample of a corpus, removed at the end, and about how many passages the corpus has."""
    from searchkit.compression.measure import parse
    from searchkit.merging import Sample
    from searchkit.readers.corpus import ReadReport, Rejects, estimate_documents

    if own.vectors is not None:
        raise click.UsageError("--vectors FILE goes with whole corpora: index it, and give that index as SOURCE")
    if corpus == "-":
        raise click.UsageError("no sample can be drawn from standard input; give a file, a folder or an index")
    own.rows(corpus, reading)
    documents = estimate_documents(corpus, reading.kind)
    if documents is None:
        documents = sum(1 for _ in reading.read(corpus, Rejects(Path("/dev/null")), ReadReport(), own.vector_field))
    folder = out.with_name(f"{out.name}.sample")
    created = not folder.exists()
    with open_or_create(folder, corpus, reading, build, model, own, similarity) as engine:
        try:
            wanted, _ = parse(training.recipe, engine.width, training.passages or documents)
        except BaseException:
            if created:
                shutil.rmtree(folder)
            raise
        share = min(1.0, _MORE * (training.sample or max(wanted.wanted, wanted.needed)) / max(1, documents))
        add_corpus(engine, corpus, reading, "none", own=own, created=created, part=Sample(share))
        try:
            yield engine, math.ceil(engine.passages * max(1, documents) / max(1, len(engine)))
        finally:
            shutil.rmtree(folder)
