"""`searchkit index --ray`: the parts of an index built by actors of Ray, and merged."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from searchkit.cli.adding import Progress, add_documents, skips
from searchkit.cli.building import BuildOptions, load_embedder, open_or_create_own
from searchkit.cli.compress import store_by
from searchkit.cli.merge import merging_bar
from searchkit.cli.options import CorpusOptions, ModelOptions, as_record, require
from searchkit.cli.output import MULTILINGUAL, count, note, print_json, say
from searchkit.cli.storage import fetched, put_at_end, temporary_folder
from searchkit.cli.vectors import VectorOptions
from searchkit.errors import StoreError

if TYPE_CHECKING:
    from searchkit.engine import SearchEngine
    from searchkit.ingest import AddReport
    from searchkit.merging import Part
    from searchkit.models.embedder import Embedder


@dataclass(frozen=True, slots=True)
class RayOptions:
    """Which cluster, and how it shares the work."""

    ray: str | None
    parts: int | None
    workers: int | None

    def __post_init__(self) -> None:
        if self.ray is None and (self.parts or self.workers):
            raise click.UsageError("--parts and --workers need --ray ADDRESS")


ray_options = as_record(
    "cluster",
    RayOptions,
    click.option(
        "--ray",
        metavar="ADDRESS",
        help="Build parts by actors of Ray and merge them: local, auto, HOST:PORT or ray://HOST:PORT. All nodes must "
        "see CORPUS and the folder of the index, or both are URLs.",
    ),
    click.option("--parts", type=click.IntRange(1), help="With --ray: parts to build. [default: 4 per worker]"),
    click.option(
        "--workers",
        type=click.IntRange(1),
        help="With --ray: actors at once. [default: one per 4 CPUs; with --device cuda: per GPU]",
    ),
)


@dataclass(frozen=True, slots=True)
class PartMaker:
    """Makes the parts of an index; see `searchkit.ray_build.Maker`.

    Args:
        corpus: By its whole path, or its URL.
        kind: What it is.
        reading: How it is read.
        build: What the index is made with.
        model: Which model, and how it runs.
        own: Where vectors are, if no model makes them.
        similarity: How those are compared.
        width: Their width; None with a model.
        recipe_from: The index whose codebook is used, if any.
        skip: Bad rows are set aside.
    """

    corpus: str
    kind: str
    reading: CorpusOptions
    build: BuildOptions
    model: ModelOptions
    own: VectorOptions
    similarity: str | None
    width: int | None
    recipe_from: Path | str | None
    skip: bool

    def load(self, threads: int) -> Embedder | None:
        """The model."""
        if self.width is not None:
            return None
        return load_embedder(replace(self.model, threads=self.model.threads or threads), self.build)

    def make(
        self, part: Part, place: str, embedder: Embedder | None, on_progress: Callable[[float, int], None]
    ) -> AddReport:
        """Make a part, or go on with it; for a URL in a temporary folder, so that only whole parts are kept."""
        from searchkit.object_storage import fetch_index, holds_index, is_url, put_index, write_at

        if not is_url(place):
            return self._make(part, Path(place), embedder, on_progress)
        with TemporaryDirectory(prefix="searchkit-part-") as scratch:
            folder = Path(scratch) / "part.index"
            if holds_index(place):
                fetch_index(place, folder)
            report = self._make(part, folder, embedder, on_progress)
            put_index(folder, place)
            if (file := Path(_rejects(str(folder)))).exists():
                write_at(_rejects(place), file.read_bytes())
        return report

    def _make(
        self, part: Part, folder: Path, embedder: Embedder | None, on_progress: Callable[[float, int], None]
    ) -> AddReport:
        from searchkit.object_storage import local_corpus
        from searchkit.readers.corpus import ReadReport, Rejects

        file = Path(_rejects(str(folder))) if self.skip else None
        with self._open(folder, embedder) as engine, Rejects(file) as rejects, ExitStack() as opened:
            if self.recipe_from is not None:
                scratch = temporary_folder(opened, self.recipe_from)
                engine.store_like(fetched([self.recipe_from], scratch)[0])
            documents = self.reading.read(local_corpus(self.corpus), rejects, ReadReport(), self.own.vector_field)
            mine = filter(part.holds, documents)
            return add_documents(engine, mine, self.own, rejects, on_progress=on_progress)

    def _open(self, folder: Path, embedder: Embedder | None) -> SearchEngine:
        from searchkit.engine import SearchEngine

        if embedder is None:
            return open_or_create_own(folder, self.build, self.model, self.own, self.similarity, self.width or 0)
        whole = self.build.chunk_tokens is None and self.kind == "beir"  # published figures embed each document whole
        return SearchEngine.create(
            folder,
            model=embedder,
            device=self.model.device,
            exist_ok=True,
            chunk_tokens=0 if whole else self.build.chunk_tokens,
            overlap=self.build.overlap,
            language=self.build.language,
        )


def index_on_ray(
    corpus: str,
    target: Path | str,
    cluster: RayOptions,
    build: BuildOptions,
    model: ModelOptions,
    own: VectorOptions,
    similarity: str | None,
    recipe: str | None,
    recipe_from: Path | str | None,
    reading: CorpusOptions,
    output: str,
) -> None:
    """Build the parts of an index on a cluster, merge them, and print a report."""
    from searchkit.indexer.files import sync_folder
    from searchkit.indexer.vectors.recipes import recipe_of
    from searchkit.object_storage import is_url, local_corpus, remove_at
    from searchkit.readers.corpus import kind_of

    require("--ray", "ray", "ray")
    if corpus == "-" or own.vectors is not None:
        raise click.UsageError("--ray reads the corpus once for each part: neither standard input nor --vectors FILE")
    if similarity and not own.given:
        raise click.UsageError("--similarity is for your own vectors: give --vector-field NAME")
    if isinstance(target, Path) and target.exists():
        raise StoreError(f"{target} exists; --ray makes a new index: name another folder, or use searchkit add")
    if recipe and recipe != "auto":
        recipe_of(recipe.strip().removesuffix("+rerank"))
    named = corpus if is_url(corpus) else os.path.abspath(corpus)
    corpus = local_corpus(corpus)
    own.rows(corpus, reading)
    maker = PartMaker(
        corpus=named,
        kind=kind_of(corpus, reading.kind),
        reading=reading,
        build=build,
        model=model,
        own=own,
        similarity=similarity,
        width=(build.dim or own.width(corpus, reading, None)) if own.given else None,
        recipe_from=recipe_from.resolve() if isinstance(recipe_from, Path) else recipe_from,
        skip=skips(corpus, reading),
    )
    began = time.monotonic()
    places_at = f"{target if isinstance(target, str) else target.resolve()}.parts"
    with put_at_end(target, go_on=False) as folder:
        try:
            places, report, workers = _build(maker, cluster, places_at)
        except KeyboardInterrupt:
            raise click.ClickException(f"stopped; the same command goes on with what is in {places_at}") from None
        copies = folder.resolve().with_name(f"{folder.name}.parts")
        whole = copies / "whole.index"
        shutil.rmtree(whole, ignore_errors=True)  # an earlier call was stopped before it was stored by its recipe
        parts = fetched([place if is_url(place) else Path(place) for place in places], copies)
        documents, passages = _merge(parts, whole)
        if recipe:
            with model.open(whole, writable=True) as engine:
                store_by(engine, recipe)
        report.refused = _join_rejects(places, reading.rejects_file(folder)) if maker.skip else 0
        if isinstance(target, str):  # an earlier call could not upload it
            shutil.rmtree(folder, ignore_errors=True)
        whole.rename(folder)
        sync_folder(folder.resolve().parent)
        shutil.rmtree(copies)
    if is_url(places_at):
        remove_at(places_at)
    report.seconds = time.monotonic() - began
    if output == "json":
        print_json({"index": str(target), "total": documents, "parts": len(places), **asdict(report)}, indent=None)
        return
    rate = f", {report.passages / report.seconds:.0f} passages/s" if report.passages else ""
    say(
        f"{target}: {count(documents, 'document')} in {count(passages, 'passage')}, {count(len(places), 'part')} by "
        f"{count(workers, 'worker')} in {report.seconds:.1f} s{rate}"
    )
    if report.without_vector:
        note(f"{count(report.without_vector, 'document')} have no vector: only lexical search finds them")
    if report.truncated:
        note(f"{count(report.truncated, 'passage')} exceed the model's length: dense search does not see what was cut")
    if report.unreadable:
        note(f"{count(report.unreadable, 'passage')} are in scripts that the model does not know. {MULTILINGUAL}")
    if report.refused:
        note(f"rejected: {count(report.refused, 'row')}; see {reading.rejects_file(folder)}")


def _build(maker: PartMaker, cluster: RayOptions, places_at: str) -> tuple[list[str], AddReport, int]:
    """Build all parts in a folder or at a URL; returns their places, what was done in all, and by how many workers."""
    from searchkit.ingest import AddReport
    from searchkit.object_storage import is_url, local_corpus
    from searchkit.ray_build import PARTS, build_parts, connected, crew
    from searchkit.readers.corpus import estimate_documents

    assert cluster.ray is not None
    with connected(cluster.ray):
        gpu = bool(maker.model.device and maker.model.device.startswith("cuda"))
        made = crew(workers=cluster.workers, threads=maker.model.threads, gpu=gpu)
        number = _parts_before(places_at, cluster.parts) or cluster.parts or PARTS * made.count
        if not is_url(places_at):
            Path(places_at).mkdir(parents=True, exist_ok=True)
        places = [f"{places_at}/part-{each}-of-{number}.index" for each in range(1, number + 1)]
        note(f"{count(number, 'part')} by {count(made.count, 'worker')} of {count(made.cpus, 'CPU')}, in {places_at}")
        with Progress(estimate_documents(local_corpus(maker.corpus), maker.reading.kind)) as progress:
            reports = build_parts(maker, places, made, on_progress=progress.update)
    total = AddReport()
    for report in reports:
        for field in fields(AddReport):
            setattr(total, field.name, getattr(total, field.name) + getattr(report, field.name))
    return places, total, made.count


def _parts_before(places_at: str, wanted: int | None) -> int | None:
    """Into how many parts an earlier call cut the corpus, if there was one."""
    from searchkit.object_storage import is_url, names_at

    names = names_at(places_at) if is_url(places_at) else [path.name for path in Path(places_at).glob("*")]
    numbers = {int(match[1]) for name in names if (match := re.fullmatch(r"part-\d+-of-(\d+)\.index", name))}
    if len(numbers) > 1 or (numbers and wanted and numbers != {wanted}):
        found = " and ".join(map(str, sorted(numbers)))
        raise StoreError(f"{places_at} holds parts of {found}; go on without --parts, or delete it to begin anew")
    return next(iter(numbers), None)


def _merge(parts: Sequence[Path], whole: Path) -> tuple[int, int]:
    from searchkit.merging import merge

    with merging_bar() as on_progress:
        report = merge(parts, whole, on_progress=on_progress)
    return report.documents, report.passages


def _rejects(place: str) -> str:
    return place.removesuffix(".index") + ".rejects.jsonl"


def _join_rejects(places: Sequence[str], file: Path) -> int:
    """Write what parts have rejected to one file; every part reads, and rejects, the same bad rows."""
    from searchkit.object_storage import is_url, read_at

    lines: dict[bytes, None] = {}
    for each in map(_rejects, places):
        content = read_at(each) if is_url(each) else Path(each).read_bytes() if Path(each).exists() else b""
        lines |= dict.fromkeys(content.splitlines())
    if lines:
        file.write_bytes(b"".join(line + b"\n" for line in lines))
    return len(lines)
