"""Options for vectors that users made: where they are, and what they are called after."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from searchkit.cli.options import CorpusOptions, as_record
from searchkit.cli.types import FILE, NON_EMPTY
from searchkit.errors import CorpusError, InputError

if TYPE_CHECKING:
    import numpy as np

    from searchkit.writer import Writer


@dataclass(frozen=True, slots=True)
class VectorOptions:
    """Where the vectors of a corpus are, if no model makes them."""

    vector_field: str | None
    vectors: Path | None
    vectors_from: str | None

    def __post_init__(self) -> None:
        if self.vector_field and self.vectors:
            raise click.UsageError("--vectors cannot be combined with --vector-field")
        if self.vectors_from and not self.given:
            raise click.UsageError(
                "--vectors-from needs --vectors FILE or --vector-field NAME, which say where they are"
            )

    @property
    def given(self) -> bool:
        """Whether vectors come with the documents."""
        return self.vector_field is not None or self.vectors is not None

    def rows(self, corpus: str, reading: CorpusOptions) -> np.ndarray | None:
        """The vectors of a file, once it is sure that the corpus has as many rows; None where they are in the rows."""
        if self.vectors is None:
            if self.vector_field is not None and corpus != "-":
                self.width(corpus, reading, None)  # a misspelt field would take the vectors of all documents away
            return None
        from searchkit.readers.arrays import check_count, read_array
        from searchkit.readers.corpus import ReadReport, Rejects, kind_of

        if corpus == "-" or kind_of(corpus, reading.kind) == "files":
            raise click.UsageError(
                "--vectors goes with rows, whose order is known: .jsonl, .csv, .tsv, .parquet or a BEIR folder"
            )
        rows, rejects, report = read_array(self.vectors), Rejects(), ReadReport()
        check_count(reading.read(corpus, rejects, report), rejects, report, rows)
        return rows

    def width(self, corpus: str, reading: CorpusOptions, rows: np.ndarray | None) -> int:
        """The width of the vectors, by the first there is."""
        from searchkit.readers.corpus import ReadReport, Rejects

        if rows is not None:
            return int(rows.shape[1])
        if corpus == "-":
            raise click.UsageError("standard input is read once: say how wide its vectors are, with --dim")
        for document in reading.read(corpus, Rejects(Path(os.devnull)), ReadReport(), self.vector_field):
            if document.vector is not None:
                try:
                    return len(document.vector)
                except TypeError:
                    raise CorpusError(f"{document.place}: {self.vector_field} is no list of numbers") from None
        raise CorpusError(f'{corpus}: no row has a vector under "{self.vector_field}"')


vector_options = as_record(
    "own",
    VectorOptions,
    click.option("--vector-field", type=NON_EMPTY, help="Key or column of vectors that you made, instead of a model."),
    click.option("--vectors", type=FILE, help="Or an .npy file with a vector for every row of CORPUS, in order."),
    click.option(
        "--vectors-from", type=NON_EMPTY, help="A name for what made them; another one is refused from then on."
    ),
)


def check_given(engine: Writer, own: VectorOptions) -> None:
    """Raise InputError, before any work, where an index takes vectors and none come."""
    if not engine.has_model and not own.given:
        raise InputError(
            f"{engine.name} holds vectors that its users made and has no model: say where those of the "
            "documents are, with --vector-field NAME or --vectors FILE.npy; a document may lack one"
        )
