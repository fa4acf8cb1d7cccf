"""Options that name queries and relevance judgements, and reading them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from searchkit.cli.options import InstructionOptions, as_record
from searchkit.cli.output import note
from searchkit.cli.types import FILE, INDEX, NON_EMPTY

if TYPE_CHECKING:
    from searchkit.records import Judgements, Qrels, Query
    from searchkit.searcher import Searcher
    from searchkit.tasks import Task

_EXPECTED = "give the judgements as --beir FOLDER, or as --queries FILE and --qrels FILE"


@dataclass(frozen=True, slots=True)
class JudgementOptions:
    """Where queries and judgements are, and whether a query's own document counts."""

    beir: Path | None
    split: str | None
    queries: Path | None
    qrels: Path | None
    drop_self: bool | None
    query_vectors: Path | None = None
    query_vector_field: str | None = None

    @property
    def given(self) -> bool:
        """Whether any file or folder was named."""
        return bool(self.beir or self.queries or self.qrels)

    @property
    def source(self) -> Path | None:
        """What the judgements are called after."""
        return self.beir or self.qrels

    @property
    def task(self) -> Task | None:
        """The published task that the BEIR folder is named after."""
        from searchkit.tasks import find_task

        return find_task(self.beir.resolve().name) if self.beir else None

    @property
    def chosen_split(self) -> str | None:
        """The split to read, where there are several."""
        return self.split or ((self.task.split if self.task else "test") if self.beir else None)

    def files(self) -> tuple[list[Query], Qrels]:
        """Read whatever is given; empty what is not."""
        from searchkit.readers.arrays import read_array
        from searchkit.readers.judgements import read_beir_split, read_qrels, read_queries

        if self.beir and (self.queries or self.qrels):
            raise click.UsageError(_EXPECTED)
        if self.split and not self.beir:
            raise click.UsageError("--split needs --beir: other judgements have no splits")
        if self.query_vectors and self.query_vector_field:
            raise click.UsageError("--query-vectors cannot be combined with --query-vector-field")
        vectors, field = read_array(self.query_vectors) if self.query_vectors else None, self.query_vector_field
        if self.beir and self.chosen_split:
            return read_beir_split(self.beir, self.chosen_split, vectors=vectors, vector_field=field)
        queries = read_queries(self.queries, vectors=vectors, vector_field=field) if self.queries else []
        return queries, read_qrels(self.qrels) if self.qrels else {}

    def read(self, engine: Searcher, wording: InstructionOptions | None = None) -> Judgements:
        """Queries and judgements to measure an index by, with the rules of a published set."""
        from searchkit.records import Judgements

        if not (self.beir or (self.queries and self.qrels)):
            raise click.UsageError(_EXPECTED)
        queries, qrels = self.files()
        self.note_missing(queries, qrels)
        name = f"{self.beir}, {self.chosen_split}" if self.beir else str(self.qrels)
        return Judgements(name, queries, qrels, *self.rules(engine, wording))

    def note_missing(self, queries: list[Query], qrels: Qrels) -> None:
        """Say which judged queries cannot be searched; those of a BEIR folder are refused, and so is a lack of all."""
        if queries and (missing := qrels.keys() - {query.id for query in queries}):
            note(
                f"judged queries that are not in {self.queries}, and score zero: "
                f"{len(missing):,}, such as {min(missing)}"
            )

    def rules(self, engine: Searcher, wording: InstructionOptions | None = None) -> tuple[str | None, bool]:
        """The instruction, and whether a query's own document is left out.

        What the user did not choose is as published for the set; a model trained without instructions gets none.
        """
        from searchkit.tasks import get_task

        known = get_task(wording.task) if wording and wording.task else self.task
        instruction = wording.text() if wording else None
        instructed = engine.has_model and engine.settings["model"]["default_instruction"] is not None
        if instruction is None and known and instructed:
            instruction = known.instruction
            note(f"instruction: {instruction}")
        return instruction, self.drops_self(known)

    def drops_self(self, known: Task | None = None) -> bool:
        """Whether a query's own document is left out: the user's choice, else the set's rule."""
        known = known or self.task
        return bool(known and known.drop_self) if self.drop_self is None else self.drop_self


_OPTIONS = (
    click.option("--beir", type=INDEX, help="BEIR folder with queries.jsonl and qrels/."),
    click.option("--split", help="Split of --beir: qrels/SPLIT.tsv. [default: the published one, usually test]"),
    click.option("--queries", type=FILE, help="Queries that are not in a BEIR folder (JSONL or TSV)."),
    click.option("--qrels", type=FILE, help="Their judgements (BEIR or TREC format)."),
    click.option(
        "--drop-self/--keep-self", default=None, help="Ignore the document with the query's own id. [default: per set]"
    ),
)

judgement_options = as_record("judged", JudgementOptions, *_OPTIONS)
"""For commands whose queries a model embeds."""

judgement_and_vector_options = as_record(
    "judged",
    JudgementOptions,
    *_OPTIONS,
    click.option(
        "--query-vectors", type=FILE, help="For your own vectors: those of the queries, an .npy file in their order."
    ),
    click.option("--query-vector-field", type=NON_EMPTY, help="Or their key in the queries' JSON lines."),
)
