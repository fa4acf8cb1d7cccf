"""Queries of the user's own: those that set the tone, and those that no example may repeat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from searchkit.errors import CorpusError
from searchkit.readers.judgements import read_beir_split, read_queries
from searchkit.readers.lines import existing, json_lines
from searchkit.readers.values import quoted
from searchkit.tasks import find_task

_SAMPLES = 1000  # queries that are read from a file of samples


def read_samples(file: Path) -> list[str]:
    """The first queries of a file of pairs, or of queries in BEIR's format."""
    samples = []
    for location, values in json_lines(existing(file)):
        text = values.get("query") or values.get("text")
        if not isinstance(text, str) or not text.strip():
            raise CorpusError(f'{location}: expected a query as "query" or "text"; the keys are {quoted(values)}')
        samples.append(text)
        if len(samples) == _SAMPLES:
            break
    if not samples:
        raise CorpusError(f"{file}: no queries in it")
    return samples


def read_evaluation_queries(sources: Sequence[str]) -> Iterator[str]:
    """The queries of BEIR folders, given as FOLDER or FOLDER:SPLIT, and of files."""
    for source in sources:
        folder, _, split = source.rpartition(":")
        if Path(source).is_file():
            queries = read_queries(source)
        elif Path(source).is_dir():
            task = find_task(Path(source).name)
            queries = read_beir_split(source, task.split if task else "test")[0]
        else:
            queries = read_beir_split(folder or source, split or "test")[0]
        yield from (query.text for query in queries)
