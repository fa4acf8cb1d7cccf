"""Options that several commands share, each group as a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import click

from searchkit.cli.types import MODES, NEW_FILE, NON_EMPTY, Finite
from searchkit.errors import MissingExtraError

if TYPE_CHECKING:
    from searchkit.engine import SearchEngine
    from searchkit.models.embedder import Embedder
    from searchkit.models.reranker import Reranker
    from searchkit.ranking import SearchOptions
    from searchkit.readers.corpus import ReadReport
    from searchkit.readers.delimited import TableOptions
    from searchkit.readers.rejects import Rejects
    from searchkit.records import Document
    from searchkit.remote.address import MilvusAddress
    from searchkit.writer import Writer

F = TypeVar("F", bound=Callable[..., Any])


def require(purpose: str, extra: str, *modules: str) -> None:
    """Raise MissingExtraError before any work if a library is missing."""
    try:
        for module in modules:
            import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{purpose} needs {error.name or modules[0]}: pip install 'searchkit[{extra}]'", name=error.name
        ) from error


def needs_plots(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Option callback: refuse a chart if matplotlib is missing."""
    if value is not None:
        require(parameter.opts[0], "plots", "matplotlib.figure")
    return value


# Groups of options


def as_record(name: str, record: type[Any], *options: Callable[[F], F]) -> Callable[[F], F]:
    """A decorator that adds options to a command, which receives them as one `record` in its parameter `name`."""

    def decorate(command: F) -> F:
        @wraps(command)
        def with_record(*arguments: Any, **values: Any) -> Any:
            chosen = record(**{field.name: values.pop(field.name) for field in fields(record) if field.name in values})
            return command(*arguments, **values, **{name: chosen})

        decorated: Any = with_record
        for option in reversed(options):
            decorated = option(decorated)
        return cast(F, decorated)

    return decorate


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model, and how it runs."""

    model: str | None
    adapter: str | None
    device: str | None
    dtype: str
    threads: int | None

    @property
    def name(self) -> str:
        """The model's name, also where the default is meant."""
        from searchkit.models.embedder import DEFAULT_MODEL

        return self.model or DEFAULT_MODEL

    def open(self, index: Path, *, writable: bool = False, vectors_from: str | None = None) -> SearchEngine:
        """Open an index; the model is loaded when it is first needed."""
        from searchkit.engine import SearchEngine

        return SearchEngine.open(
            index, model=self.model, adapter=self.adapter, device=self.device, dtype=self.dtype, threads=self.threads,
            writable=writable, vectors_from=vectors_from,
        )  # fmt: skip

    def open_place(
        self, place: Path | MilvusAddress, *, writable: bool = False, vectors_from: str | None = None
    ) -> Writer:
        """Open an index or a collection; the model is loaded when it is first needed."""
        from searchkit.remote.places import open_place

        return open_place(
            place, model=self.model, adapter=self.adapter, device=self.device, dtype=self.dtype, threads=self.threads,
            writable=writable, vectors_from=vectors_from,
        )  # fmt: skip

    def embedder(self) -> Embedder:
        """Load the model."""
        from searchkit.models.embedder import Embedder

        return Embedder(self.name, adapter=self.adapter, device=self.device, dtype=self.dtype, threads=self.threads)


model_options = as_record(
    "model",
    ModelOptions,
    click.option(
        "--model",
        type=NON_EMPTY,
        help="Model folder, hub id or openai:NAME@http://HOST:PORT/v1. [default: the index's own, or builtin]",
    ),
    click.option("--adapter", type=NON_EMPTY, help="PEFT adapter trained on the model: folder or hub id."),
    click.option(
        "--device",
        type=NON_EMPTY,
        help="cpu, mps, cuda or cuda:1; for vectors too. [default: the model's best]",
    ),
    click.option(
        "--dtype",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        help="Precision of the model; auto: bfloat16 where the hardware is fast at it.",
    ),
    click.option("--threads", type=click.IntRange(1), help="CPU threads of the model. [default: usually all cores]"),
)


@dataclass(frozen=True, slots=True)
class FusionOptions:
    """How hybrid search merges two rankings."""

    fusion: str
    dense_weight: float
    rrf_k: int

    def search_options(
        self, mode: Literal["dense", "lexical", "hybrid"] = "hybrid", where: dict[str, Any] | None = None
    ) -> SearchOptions:
        """As the library takes them."""
        from searchkit.ranking import SearchOptions

        return SearchOptions(
            mode=mode, fusion=self.fusion, dense_weight=self.dense_weight, rrf_k=self.rrf_k, where=where
        )


fusion_options = as_record(
    "fusion",
    FusionOptions,
    click.option(
        "--fusion",
        default="adaptive",
        show_default=True,
        type=click.Choice(["adaptive", "weighted", "rrf"]),
        help="Hybrid search: weights that follow the instruction, fixed weights, or reciprocal ranks.",
    ),
    click.option(
        "--dense-weight",
        default=0.5,
        show_default=True,
        type=Finite(0, 1),
        help="Weight of dense scores in weighted fusion.",
    ),
    click.option("--rrf-k", default=60, show_default=True, type=click.IntRange(1), help="Constant k of rrf."),
)


@dataclass(frozen=True, slots=True)
class InstructionOptions:
    """What to search for, in a sentence or by the name of a task."""

    instruction: str | None
    task: str | None

    def __post_init__(self) -> None:
        if self.task is not None and self.instruction is not None:
            raise click.UsageError("--task cannot be combined with --instruction")

    @property
    def given(self) -> bool:
        """Whether either option was used."""
        return self.task is not None or self.instruction is not None

    def text(self) -> str | None:
        """The instruction; "" for none at all, None where the default applies."""
        from searchkit.tasks import get_task

        return self.instruction if self.task is None else get_task(self.task).instruction


instruction_options = as_record(
    "wording",
    InstructionOptions,
    click.option("--instruction", help='What to look for, in one sentence. "": no instruction.'),
    click.option("--task", help="Use the published instruction of a task: scifact, fiqa, quora, web ..."),
)


@dataclass(frozen=True, slots=True)
class HitsOptions:
    """How many documents a search returns, and how they are ranked."""

    k: int
    mode: Literal["dense", "lexical", "hybrid"]


hits_options = as_record(
    "hits",
    HitsOptions,
    click.option("-k", default=10, show_default=True, type=click.IntRange(1), help="Number of hits per query."),
    click.option(
        "--mode",
        default="hybrid",
        show_default=True,
        type=click.Choice(MODES),
        help="Rank by vectors (dense), by BM25 (lexical), or by both (hybrid).",
    ),
)


@dataclass(frozen=True, slots=True)
class CorpusOptions:
    """How a corpus is read, and what happens to bad rows."""

    kind: str
    id_field: str
    title_field: str
    text_field: str
    metadata_field: tuple[str, ...]
    columns: tuple[str, ...]
    delimiter: str | None
    no_header: bool
    encoding: str
    on_error: str | None
    rejects: Path | None

    def __post_init__(self) -> None:
        if wrong := next((column for column in self.columns if not column.rpartition(":")[0]), None):
            raise click.UsageError(f"--column {wrong}: expected NAME:TYPE, such as year:integer")

    def table(self) -> TableOptions:
        """How a CSV or TSV file is read."""
        from searchkit.readers.delimited import TableOptions

        named = (column.rpartition(":") for column in self.columns)
        return TableOptions(self.delimiter, not self.no_header, {name: kind for name, _, kind in named})

    def read(
        self, corpus: str, rejects: Rejects, report: ReadReport, vector_field: str | None = None
    ) -> Iterator[Document]:
        """Read a corpus as the options say, with the vectors that its rows bring under a key, if one is given."""
        from searchkit.readers.corpus import Fields, read_corpus

        return read_corpus(
            corpus,
            kind=self.kind,
            fields=Fields(self.id_field, self.title_field, self.text_field, self.metadata_field or None, vector_field),
            table=self.table(),
            rejects=rejects,
            report=report,
            encoding=self.encoding,
        )

    def rejects_file(self, index: Path) -> Path:
        """The file for what cannot be read."""
        return self.rejects or index.with_name(index.name + ".rejects.jsonl")


corpus_options = as_record(
    "reading",
    CorpusOptions,
    click.option(
        "--kind",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "beir", "jsonl", "csv", "tsv", "parquet", "files"]),
        help="Format of the corpus.",
    ),
    click.option("--id-field", default="id", show_default=True, help="Key or column of the id."),
    click.option("--title-field", default="title", show_default=True, help="Key or column of the title."),
    click.option("--text-field", default="text", show_default=True, help="Key or column of the text."),
    click.option(
        "--metadata-field", multiple=True, help="Key or column to keep as metadata. Repeatable. [default: all others]"
    ),
    click.option(
        "--column",
        "columns",
        multiple=True,
        metavar="NAME:TYPE",
        help="Type of a CSV or TSV column: integer, decimal, boolean, date, text. Repeatable. [default: by its cells]",
    ),
    click.option("--delimiter", help="Separator of CSV or TSV cells, such as ; or tab. [default: comma, or tab]"),
    click.option("--no-header", is_flag=True, help="The first line of the CSV or TSV file is a row, not a header."),
    click.option(
        "--encoding",
        default="utf-8",
        show_default=True,
        help="Encoding of text, CSV, JSON lines and HTML that declares none.",
    ),
    click.option(
        "--on-error",
        type=click.Choice(["raise", "skip"]),
        help="At a bad row or file: stop, or skip it and write it to --rejects. "
        "[default: skip in folders of files, else raise]",
    ),
    click.option("--rejects", type=NEW_FILE, help="File for skipped rows. [default: INDEX.rejects.jsonl]"),
)


@dataclass(frozen=True, slots=True)
class RerankOptions:
    """A second model that reads query and document together, and how many hits it reads."""

    rerank: str | None
    rerank_depth: int | None

    def __post_init__(self) -> None:
        if self.rerank_depth is not None and self.rerank is None:
            raise click.UsageError("--rerank-depth needs --rerank MODEL")

    @property
    def depth(self) -> int:
        """How many hits it reads."""
        from searchkit.reranking import RERANK_DEPTH

        return self.rerank_depth or RERANK_DEPTH

    def load(self, model: ModelOptions) -> Reranker | None:
        """Load it, on the device of the other model."""
        if self.rerank is None:
            return None
        from searchkit.models.reranker import Reranker

        return Reranker(self.rerank, device=model.device, dtype=model.dtype)


rerank_options = as_record(
    "again",
    RerankOptions,
    click.option(
        "--rerank",
        type=NON_EMPTY,
        help="Put the first hits in the order of this reranker: a cross-encoder or Qwen3-Reranker, folder or hub id.",
    ),
    click.option("--rerank-depth", type=click.IntRange(1), help="Hits that the reranker reads. [default: 50]"),
)


# Single options that several commands share


def _format(human: str) -> Callable[[F], F]:
    return click.option(
        "--format",
        "output",
        default=human,
        show_default=True,
        type=click.Choice([human, "json"]),
        help="Output for people, or JSON.",
    )


text_or_json = _format("text")
table_or_json = _format("table")
report_option = click.option("--report", type=NEW_FILE, help="Also write everything to this file, as JSON.")
