"""Read queries, judgements and runs: JSON lines, TSV, BEIR and TREC."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

from searchkit.errors import CorpusError, RowError
from searchkit.readers.lines import (
    check_storable,
    checked_id,
    existing,
    is_integer,
    json_object,
    plain_lines,
    quoted,
    typename,
)
from searchkit.records import Judgements, Qrels, Query, Run
from searchkit.tasks import Task, find_task

_QUERY_ID_NAMES = ("id", "_id", "qid", "query-id", "query_id", "queryid")


def read_queries(path: Path | str) -> list[Query]:
    """Read queries: JSON lines of "_id" or "id", "text" or "query", maybe "instruction"; or .tsv lines id<TAB>text."""
    path = existing(path)
    tabs = path.name.lower().removesuffix(".gz").endswith((".tsv", ".txt"))
    queries: dict[str, Query] = {}
    for place, line in plain_lines(path):
        try:
            query = _tsv_query(line) if tabs else _json_query(json_object(line))
        except RowError as error:
            raise CorpusError(f"{place}: {error}") from None
        if tabs and not queries and query.id.lower() in _QUERY_ID_NAMES and query.text.lower() in ("text", "query"):
            continue  # a header
        if query.id in queries:
            raise CorpusError(f'{place}: query id "{query.id}" came before; give every query its own')
        queries[query.id] = query
    if not queries:
        raise CorpusError(f"{path}: no queries in it")
    return list(queries.values())


def read_qrels(path: Path | str) -> Qrels:
    """Read judgements: BEIR's query-id, corpus-id, score under a header, or TREC's four columns without one."""
    path = existing(path)
    qrels: Qrels = {}
    width = 0
    for place, line in plain_lines(path):
        columns = line.split("\t") if line.count("\t") in (2, 3) else line.split()  # an id between tabs may hold spaces
        columns = [column.strip() for column in columns]
        if not width:
            width = len(columns)
            if width not in (3, 4):
                raise CorpusError(
                    f"{place}: {width} columns; judgements have 3 (query-id, corpus-id, score) "
                    "or, as in TREC, 4 (query, 0, document, gain)"
                )
            if columns[0].lower() in _QUERY_ID_NAMES and not is_integer(columns[-1]):
                continue  # the header
        if len(columns) != width:
            raise CorpusError(f"{place}: {len(columns)} columns where the first line has {width}")
        query, document, gain = columns[0], columns[-2], columns[-1]
        if not query or not document:
            raise CorpusError(f"{place}: the query's or the document's id is empty")
        if not is_integer(gain):
            raise CorpusError(f'{place}: the score is "{gain}"; it must be an integer, such as 0, 1 or 2')
        known = qrels.setdefault(query, {}).setdefault(document, int(gain))
        if known != int(gain):
            raise CorpusError(
                f'{place}: query "{query}" and document "{document}" score {gain} here and {known} before'
            )
    if not qrels:
        raise CorpusError(f"{path}: no judgements in it")
    return qrels


def read_run(path: Path | str) -> Run:
    """Read a TREC run: lines of query, Q0, document, rank, score, system. Scores decide the order, ranks do not."""
    path = existing(path)
    run: Run = {}
    for place, line in plain_lines(path):
        columns = line.split()
        if len(columns) != 6:
            raise CorpusError(
                f"{place}: {len(columns)} columns; a TREC run has 6 (query, Q0, document, rank, score, system)"
            )
        query, document = columns[0], columns[2]
        try:
            score = float(columns[4])
        except ValueError:
            score = float("nan")
        if not isfinite(score):
            raise CorpusError(f'{place}: the score is "{columns[4]}"; it must be a finite number')
        if document in run.setdefault(query, {}):
            raise CorpusError(f'{place}: document "{document}" came before for query "{query}"')
        run[query][document] = score
    if not run:
        raise CorpusError(f"{path}: nothing was found by this run; it is empty")
    return run


def read_beir_split(folder: Path | str, split: str) -> tuple[list[Query], Qrels]:
    """Return the judged queries of a BEIR folder's split, in file order, and their judgements."""
    folder = existing(folder)
    judgements = folder / "qrels" / f"{split}.tsv"
    if not judgements.is_file():
        there = ", ".join(sorted(file.stem for file in (folder / "qrels").glob("*.tsv"))) or "none"
        raise CorpusError(f'{folder}: no split "{split}" ({judgements} is not there); splits there: {there}')
    qrels = read_qrels(judgements)
    queries = [query for query in read_queries(folder / "queries.jsonl") if query.id in qrels]
    if lost := sorted(qrels.keys() - {query.id for query in queries}):
        raise CorpusError(
            f"{judgements}: {len(lost)} judged queries are not in {folder / 'queries.jsonl'}, "
            f"such as {quoted(lost[:3])}; the two files do not belong together"
        )
    return queries, qrels


def read_judgements(folder: Path | str, *, split: str | None = None, task: Task | None = None) -> Judgements:
    """Read a split of a BEIR folder with the rules its published figures follow: split, instruction and drop_self.

    Args:
        folder: Holds queries.jsonl and qrels/.
        split: Another split than the published one, which is "test" for an unknown set.
        task: The rules; None looks them up by the folder's name.
    """
    task = task or find_task(Path(folder).resolve().name)
    split = split or (task.split if task else "test")
    queries, qrels = read_beir_split(folder, split)
    name = f"{folder}, {split}"
    return (
        Judgements(name, queries, qrels, task.instruction, task.drop_self) if task else Judgements(name, queries, qrels)
    )


def _tsv_query(line: str) -> Query:
    id, _, text = (part.strip() for part in line.partition("\t"))
    if not id or not text:
        raise RowError("expected an id, a tab and the query's text")
    return Query(id, text)


def _json_query(values: dict[str, Any]) -> Query:
    id = next((values[key] for key in ("_id", "id") if key in values), None)
    text = next((values[key] for key in ("text", "query") if key in values), None)
    instruction = values.get("instruction")
    if id is None or text is None:
        raise RowError(f'expected "_id" or "id", and "text" or "query"; the keys are {quoted(values)}')
    if not isinstance(text, str) or not text.strip():
        raise RowError(
            "the query's text is blank" if isinstance(text, str) else f"text is {typename(text)}, not a string"
        )
    if instruction is not None and not isinstance(instruction, str):
        raise RowError(f"instruction is {typename(instruction)}; it must be a string")
    for name, value in (("id", id := checked_id(id)), ("text", text), ("instruction", instruction or "")):
        check_storable(name, value)
    return Query(id, text, instruction)
