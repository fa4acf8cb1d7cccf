"""Training examples, read from JSON lines."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from searchkit.engine import SearchEngine
from searchkit.errors import CorpusError, RowError
from searchkit.readers.corpus import read_corpus
from searchkit.readers.lines import existing, nonblank_lines
from searchkit.readers.rejects import Rejects
from searchkit.readers.values import check_storable, checked_id, json_object, quoted, typename
from searchkit.records import Document, join_title
from searchkit.searcher import Searcher
from searchkit.tasks import find_task
from searchkit.training.texts import folded


@dataclass(frozen=True, slots=True)
class Example:
    """A query with the passage it should retrieve.

    Args:
        query: Without its instruction.
        positive: The passage to retrieve.
        negatives: Hard negatives, best first; may be empty.
        instruction: The sentence that says what to find; None leaves it to the model, "" is none at all.
        source: Where it comes from; examples of different sources never share a batch.
        positive_id: Id of the document that the positive was looked up from, if any.
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    instruction: str | None = None
    source: str = ""
    positive_id: str | None = field(default=None, compare=False)


def read_examples(
    path: Path | str, *, corpus: Path | str | Searcher | None = None, rejects: Rejects | None = None
) -> Iterator[Example]:
    """Yield the training examples of a JSON-lines file, in its order.

    A row has "query" and "positive", and optionally "negatives" (a list) or "negative", "instruction" or a named
    "task", and "source" (by default the file's name without suffixes). "positive_id" and "negative_ids" stand for
    documents of ``corpus``. Text takes precedence over ids and names: "positive" over "positive_id", "instruction" over
    "task". A negative that a row repeats counts once. Null counts as missing; other keys are ignored.

    Args:
        path: JSON lines, optionally gzipped.
        corpus: Anything ``read_corpus`` reads, the folder of an index, or an open index; only the documents that the
            rows name are held in memory.
        rejects: Where bad rows of both go; None raises on the first.

    Raises:
        CorpusError: At once for a missing path; while reading for bad rows, damaged files, ids without a corpus and a
            file without any example.
    """
    path = existing(path)
    rejects = Rejects() if rejects is None else rejects
    if rejects.path is not None and rejects.path.exists() and rejects.path.samefile(path):
        raise CorpusError(f"{path}: rejected rows would overwrite the examples themselves; choose another file")
    name = str(corpus.name if isinstance(corpus, Searcher) else corpus)
    return _read_examples(path, None if corpus is None else _documents(corpus, rejects), name, rejects)


def _documents(corpus: Path | str | Searcher, rejects: Rejects) -> Iterator[Document]:
    if isinstance(corpus, Searcher):
        return corpus.documents()
    if (Path(corpus) / "index.db").is_file():
        return _of_index(Path(corpus))
    return read_corpus(corpus, rejects=rejects)


def _of_index(folder: Path) -> Iterator[Document]:
    with SearchEngine.open(folder) as engine:
        yield from engine.documents()


def _read_examples(
    path: Path, documents: Iterator[Document] | None, corpus: str, rejects: Rejects
) -> Iterator[Example]:
    texts = {} if documents is None else _texts(documents, _wanted(path), rejects)
    source = Path(path.name.removesuffix(".gz")).stem
    rows = good = 0
    first = ""
    for location, line, fault in nonblank_lines(path):
        rows += 1
        try:
            if fault:
                raise RowError(fault)
            values = json_object(line)
            if documents is None and (ids := _ids(values)):
                raise CorpusError(
                    f'{location}: names document "{ids[0]}", but there is no corpus to look it up in; '
                    "give the corpus that the ids belong to"
                )
            example = _example(values, source, texts, corpus)
        except RowError as error:
            first = first or f"{location}: {error}"
            rejects.refuse(location, str(error), line)
        else:
            good += 1
            yield example
    if not good:
        raise CorpusError(
            f"{path}: no examples in it" + (f"; every row was rejected, the first because: {first}" if rows else "")
        )


def _ids(values: dict[str, Any]) -> list[object]:
    """The ids that have to be looked up for a row."""
    ids = []
    if values.get("positive") is None and values.get("positive_id") is not None:
        ids.append(values["positive_id"])
    if values.get("negatives") is None and values.get("negative") is None:
        negatives = values.get("negative_ids")
        ids += negatives if isinstance(negatives, list) else []
    return ids


def _wanted(path: Path) -> set[str]:
    """Every id that the rows of a file refer to."""
    wanted: set[str] = set()
    for _, line, fault in nonblank_lines(path):
        try:
            values = {} if fault else json_object(line)
        except RowError:
            continue  # reported when the rows themselves are read
        wanted.update(str(id) for id in _ids(values) if isinstance(id, str | int))
    return wanted


def _texts(documents: Iterator[Document], wanted: Collection[str], rejects: Rejects) -> dict[str, str]:
    texts: dict[str, str] = {}
    for document in documents:
        if document.id in wanted:
            text = join_title(document.title, document.text)
            if texts.setdefault(document.id, text) != text:
                rejects.refuse(document.place, f'document id "{document.id}" is repeated with another text')
    return texts


def _example(values: dict[str, Any], source: str, texts: Mapping[str, str], corpus: str) -> Example:
    if values.get("query") is None:
        raise RowError(f'no "query" among {quoted(values)}')
    query = _text("query", values["query"])
    positive_id = None
    if values.get("positive") is not None:
        positive = _text("positive", values["positive"])
    elif values.get("positive_id") is not None:
        positive = _looked_up("positive_id", values["positive_id"], texts, corpus)
        positive_id = str(values["positive_id"])
    else:
        raise RowError(f'no "positive" and no "positive_id" among {quoted(values)}')
    negatives = tuple(dict.fromkeys(_negatives(values, texts, corpus)))
    if folded(query) == folded(positive):
        raise RowError("the query is its own positive; nothing can be learned from it")
    if negatives and folded(positive) in map(folded, negatives):
        raise RowError("a negative is the positive itself; one of them is wrong")
    source = _text("source", values.get("source") or source)
    return Example(query, positive, negatives, _instruction(values), source, positive_id)


def _negatives(values: dict[str, Any], texts: Mapping[str, str], corpus: str) -> list[str]:
    single, many, ids = (values.get(name) for name in ("negative", "negatives", "negative_ids"))
    if single is not None and many is not None:
        raise RowError('both "negatives" and "negative"; give one of them')
    if single is not None:
        return [_text("negative", single)]
    name, items = ("negative_ids", ids) if many is None else ("negatives", many)
    if items is None:
        return []
    if not isinstance(items, list):
        raise RowError(f"{name} is {typename(items)}; it must be a list")
    if many is not None:
        return [_text("a negative", item) for item in items]
    return [_looked_up(name, item, texts, corpus) for item in items]


def _instruction(values: dict[str, Any]) -> str | None:
    instruction, task = values.get("instruction"), values.get("task")
    if instruction is not None:
        return _text("instruction", instruction, blank=True)
    if task is None:
        return None
    if (known := find_task(_text("task", task))) is None:
        raise RowError(f'no task is called "{task}"; write its sentence as "instruction"')
    return known.instruction


def _text(name: str, value: object, *, blank: bool = False) -> str:
    if not isinstance(value, str):
        raise RowError(f"{name} is {typename(value)}; it must be a string")
    check_storable(name, value)
    text = value.strip()
    if not text and not blank:
        raise RowError(f"{name} is blank")
    return text


def _looked_up(name: str, value: object, texts: Mapping[str, str], corpus: str) -> str:
    try:
        id = checked_id(value)
    except RowError as error:
        raise RowError(f"{name}: {error}") from None
    if id not in texts:
        raise RowError(f'{name}: no document "{id}" in {corpus}')
    return _text(f'document "{id}"', texts[id])
