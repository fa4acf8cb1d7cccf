"""Read queries, judgements and runs: JSON lines, TSV, CSV, BEIR and TREC."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.errors import CorpusError, RowError
from searchkit.readers.lines import existing, gz_or_plain, nonblank_lines, plain_lines
from searchkit.readers.values import check_storable, checked_id, json_object, quoted, typename
from searchkit.records import MOST_GAIN, Judgements, Qrels, Query, Run
from searchkit.tasks import Task, find_task

# Names of columns and keys, in lower case with "_" for "-" and spaces.
_QUERY_IDS = ("_id", "id", "query_id", "queryid", "qid", "query", "topic", "topic_id")
_QUERY_TEXTS = ("text", "query", "query_text", "question", "title", "content")
_DOCUMENT_IDS = (
    "corpus_id", "document_id", "doc_id", "docid", "pid", "passage_id", "did", "document", "doc", "docno", "_id", "id",
)  # fmt: skip
_HIGHEST = float(np.finfo(np.float32).max)
"""Of a run's scores, which trec_eval compares as 32-bit numbers."""
_GAINS = ("score", "relevance", "rel", "label", "gain", "grade", "relevance_label", "judgement", "judgment", "rating")


def read_queries(
    path: Path | str,
    *,
    errors: list[CorpusError] | None = None,
    vectors: np.ndarray | None = None,
    vector_field: str | None = None,
) -> list[Query]:
    """Read queries: JSON lines of "_id" or "id", "text" or "query", optional "instruction"; or a table of id and text.

    A .tsv or .txt file has a tab between the two and no quoting, a .csv file a comma and quotes; either may have a
    header. All may be gzipped.

    Args:
        path: The file.
        errors: Collects an error for each line that is not a query; None raises the first.
        vectors: (n, dim), the vector of every query in order.
        vector_field: Key of the vector in JSON lines, instead.
    """
    path = existing(path)
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    delimiter = {".tsv": "\t", ".txt": "\t", ".csv": ","}.get(suffix, "")
    quoting = delimiter == ","
    queries: dict[str, Query] = {}
    for number, (location, line, fault) in enumerate(nonblank_lines(path)):
        try:
            if fault:
                raise RowError(fault)
            if delimiter:
                quoting = quoting or (number == 0 and _is_quoted(line))
                query = _table_query(line, delimiter, quoting=quoting, first=number == 0)
            else:
                query = _json_query(values := json_object(line))
                if vector_field is not None:
                    query = replace(query, vector=values.get(vector_field))
            if query and query.id in queries:
                raise RowError(f'query id "{query.id}" came before; give every query its own')
        except RowError as error:
            if errors is None:
                raise CorpusError(f"{location}: {error}") from None
            errors.append(CorpusError(f"{location}: {error}"))
        else:
            if query:
                queries[query.id] = query
    if not queries and not errors:
        raise CorpusError(f"{path}: no queries in it")
    found = list(queries.values())
    if vectors is None:
        return found
    if len(vectors) != len(found):
        raise CorpusError(f"{path}: {len(vectors)} vectors for {len(found)} queries; expected one each, in order")
    return [replace(query, vector=row) for query, row in zip(found, vectors, strict=True)]


def read_qrels(path: Path | str) -> Qrels:
    """Read judgements: three columns (query-id, corpus-id, score) as in BEIR, or four as in TREC; maybe gzipped.

    A header is recognised by the names of its columns, which may then come in any order. Scores are integers, "1.0"
    included. A .csv file has commas between columns.
    """
    path = existing(path)
    qrels: Qrels = {}
    width = 0
    columns = (0, -2, -1)  # of the query's id, the document's and the score
    for location, cells in _judgement_rows(path):
        if not width:
            width = len(cells)
            if width not in (3, 4):
                raise CorpusError(
                    f"{location}: {width} columns; judgements have 3 (query-id, corpus-id, score) "
                    "or, as in TREC, 4 (query, 0, document, gain)"
                )
            if header := _header(cells):
                columns = header
                continue
        if len(cells) != width:
            raise CorpusError(f"{location}: {len(cells)} columns where the first line has {width}")
        query, document, score = (cells[column] for column in columns)
        if not query or not document:
            raise CorpusError(f"{location}: the query's or the document's id is empty")
        gain = _gain(score)
        if gain is None:
            advice = "" if qrels else "; if this line is a header, call its columns query-id, corpus-id and score"
            raise CorpusError(f'{location}: the score is "{score}"; it must be an integer, such as 0, 1 or 2{advice}')
        if gain > MOST_GAIN:
            raise CorpusError(
                f"{location}: the score is {score}; the highest possible is {MOST_GAIN}; divide all by the same number"
            )
        known = qrels.setdefault(query, {}).setdefault(document, gain)
        if known != gain:
            raise CorpusError(
                f'{location}: query "{query}" and document "{document}" score {gain} here and {known} before'
            )
    if not qrels:
        raise CorpusError(f"{path}: no judgements in it")
    return qrels


def read_run(path: Path | str) -> Run:
    """Read a TREC run: lines of query, Q0, document, rank, score, system. Scores decide the order, ranks do not."""
    path = existing(path)
    run: Run = {}
    for location, line in plain_lines(path):
        columns = line.split()
        if len(columns) != 6:
            raise CorpusError(
                f"{location}: {len(columns)} columns; a TREC run has 6 (query, Q0, document, rank, score, system)"
            )
        query, document = columns[0], columns[2]
        try:
            score = float(columns[4])
        except ValueError:
            score = float("nan")
        if not abs(score) <= _HIGHEST:  # NaN too
            raise CorpusError(f'{location}: the score is "{columns[4]}"; it must be a finite 32-bit number')
        if document in run.setdefault(query, {}):
            raise CorpusError(f'{location}: document "{document}" came before for query "{query}"')
        run[query][document] = score
    if not run:
        raise CorpusError(f"{path}: the run is empty")
    return run


def read_beir_split(
    folder: Path | str, split: str, *, vectors: np.ndarray | None = None, vector_field: str | None = None
) -> tuple[list[Query], Qrels]:
    """Return the judged queries of a BEIR folder's split, in file order, and their judgements; files may be gzipped.

    Vectors are given as to `read_queries`, for all queries of the file.
    """
    folder = existing(folder)
    judgements = gz_or_plain(folder / "qrels" / f"{split}.tsv")
    if not judgements.is_file():
        splits = {file.name.removesuffix(".gz").removesuffix(".tsv") for file in (folder / "qrels").glob("*.tsv*")}
        listed = ", ".join(sorted(splits)) or "none"
        raise CorpusError(f'{folder}: no split "{split}" ({judgements} does not exist); splits there: {listed}')
    qrels = read_qrels(judgements)
    file = gz_or_plain(folder / "queries.jsonl")
    queries = read_queries(file, vectors=vectors, vector_field=vector_field)
    queries = [query for query in queries if query.id in qrels]
    if missing := sorted(qrels.keys() - {query.id for query in queries}):
        raise CorpusError(
            f"{judgements}: {len(missing)} judged queries are not in {file}, "
            f"such as {quoted(missing[:3])}; the two files do not belong together"
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


def _table_query(line: str, delimiter: str, *, quoting: bool, first: bool) -> Query | None:
    """The query of a line; None for a header."""
    cells = _cells(line, delimiter) if quoting else line.partition(delimiter)[::2]
    id, text = (cells[0].strip(), cells[1].strip()) if len(cells) == 2 else ("", "")
    if not id or not text:
        raise RowError(
            f"expected an id, a {'comma' if delimiter == ',' else 'tab'} and the query's text; "
            "a file of plain queries, one a line, is read from standard input by searchkit search"
        )
    if first and _name(id) in _QUERY_IDS and _name(text) in _QUERY_TEXTS:
        return None
    return Query(id, text)


def _judgement_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    commas = path.name.lower().removesuffix(".gz").endswith(".csv")
    quoting: bool | None = None
    for location, line in plain_lines(path):
        if quoting is None:
            if line.lstrip().startswith(("{", "[")):
                raise CorpusError(
                    f"{location}: JSON; judgements are a table of query-id, corpus-id and score, with tabs between them"
                )
            quoting = _is_quoted(line)
        tabs = line.count("\t") in (2, 3)  # an id between tabs may hold spaces
        try:
            if commas or quoting:
                cells = _cells(line, "," if commas else "\t")
            else:
                cells = line.split("\t") if tabs else line.split()
        except RowError as error:
            raise CorpusError(f"{location}: {error}") from None
        yield location, [cell.strip() for cell in cells]


def _is_quoted(line: str) -> bool:
    """Whether every cell between tabs is in quotes, as R and some spreadsheets write them."""
    return all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in line.strip().split("\t"))


def _cells(line: str, delimiter: str = ",") -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise RowError(f"broken quotes: {error}") from None


def _header(cells: list[str]) -> tuple[int, int, int] | None:
    """The columns of the query's id, the document's and the score, if the line names them and is no judgement."""
    names = [_name(cell) for cell in cells]
    if _gain(cells[-1]) is not None or not (names[0] in _QUERY_IDS or names[-1] in _GAINS):
        return None
    columns = [
        next((position for name in known for position, each in enumerate(names) if each == name), None)
        for known in (_QUERY_IDS[2:], _DOCUMENT_IDS, _GAINS)
    ]
    query, document, gain = columns
    if query is None or document is None or gain is None or len(set(columns)) < 3:
        return 0, len(cells) - 2, len(cells) - 1
    return query, document, gain


def _name(cell: str) -> str:
    return cell.strip().lower().replace("-", "_").replace(" ", "_")


def _gain(text: str) -> int | None:
    """A score as an integer; None for what is none, such as "0.5", "1_000" or "high"."""
    whole, _, fraction = text.partition(".")
    digits = whole.removeprefix("-").removeprefix("+")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 1000) or fraction.strip("0"):
        return None
    return int(whole)


def _json_query(values: dict[str, Any]) -> Query:
    id = next((values[key] for key in ("_id", "id", "query-id", "query_id", "qid") if key in values), None)
    text = next((values[key] for key in ("text", "query", "question") if key in values), None)
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
