"""Checks of what callers pass in: one for each kind of value, whichever way it comes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from operator import index
from os import PathLike
from pathlib import Path

from searchkit.errors import InputError
from searchkit.records import Document, Query

MAX_DEPTH = 500
"""Levels of metadata: SQLite, which filters read it with, takes no more than 1000."""


def check_document(document: object) -> None:
    """Raise InputError unless a document can be stored and filtered as it is.

    The message does not say which document: callers know its place, line or id.
    """
    if not isinstance(document, Document):
        raise InputError(f"{described(document)} came in place of a document; expected searchkit.Document(id, text)")
    for name in ("id", "title", "text", "place"):
        check_text(name, getattr(document, name))
    if not document.id.strip():
        raise InputError("the id is empty")
    if not document.text.strip() and not document.title.strip() and document.vector is None:
        raise InputError("there is neither text nor title")
    for name in ("id", "title", "text"):
        value = getattr(document, name)
        if "\0" in value:
            raise InputError(f"{name} holds a NUL byte at character {value.index(chr(0))}; remove it")
    check_metadata(document.metadata)
    if not isinstance(document.incidental, tuple | list):
        raise InputError(f"incidental is {described(document.incidental)}; expected a tuple of metadata keys")


def check_metadata(metadata: object) -> None:
    """Raise InputError unless metadata is a JSON object that SQLite reads as Python wrote it."""
    if not isinstance(metadata, dict):
        raise InputError(f"metadata is {described(metadata)}; expected a dict, {{}} for none")
    stack: list[tuple[str, object, int]] = [("", metadata, 1)]
    while stack:  # not recursive: metadata may nest deeper than Python's stack, or contain itself
        path, value, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise InputError(f"metadata is nested too deeply to store, more than {MAX_DEPTH} levels; flatten it")
        if isinstance(value, dict):
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise InputError(f"metadata holds the key {described(key)}{_at(path)}; keys must be strings")
                check_text("metadata", key)
                stack.append((f"{path}.{key}" if path else key, inner, depth + 1))
        elif isinstance(value, list | tuple):
            stack += [(f"{path}[{n}]", inner, depth + 1) for n, inner in enumerate(value)]
        else:
            _check_scalar(path, value)


def _check_scalar(path: str, value: object) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        check_text("metadata", value)
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise InputError(f"metadata holds an integer beyond 64 bits{_at(path)}; write it as a string")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"metadata holds NaN or Infinity{_at(path)}, which JSON cannot express; use null")
    else:
        raise InputError(
            f"metadata holds {described(value)}{_at(path)}; expected a string, a number, a boolean, None, "
            "or a list or dict of them"
        )


def _at(path: str) -> str:
    return f' under "{path if len(path) <= 60 else path[:60] + "..."}"' if path else ""


def check_text(name: str, value: object) -> None:
    """Raise InputError unless a value is a string that UTF-8 can store."""
    if not isinstance(value, str):
        raise InputError(f"{name} is {described(value)}; expected a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that is not UTF-8
            byte = f"\\x{code - 0xDC00:02x}"
            raise InputError(f"{name} holds the byte {byte}, which is not UTF-8; check the encoding") from None
        raise InputError(
            f"{name} holds the lone surrogate \\u{code:04x}, which UTF-8 cannot store; remove it"
        ) from None


def checked_queries(queries: object) -> list[Query]:
    """Queries as records: strings become queries without an instruction of their own.

    Raises:
        InputError: They are not a list of strings and queries, or one of them has no text.
    """
    if isinstance(queries, str | Query) or not isinstance(queries, Iterable):
        raise InputError(f"queries is {described(queries)}; expected a list of strings or of searchkit.Query")
    checked = []
    for number, query in enumerate(queries, start=1):
        if isinstance(query, str):
            query = Query("", query)
        if not isinstance(query, Query):
            raise InputError(f"query {number} is {described(query)}; expected a string or a searchkit.Query")
        check_text("the text of a query", query.text)
        if not query.text.strip() and query.vector is None:
            raise InputError("a query is empty; write what to search for")
        check_optional_text("instruction", query.instruction)
        checked.append(query)
    return checked


def checked_batch(name: str, texts: object) -> list[str]:
    """Texts for a model, as a list; InputError where they are not strings that UTF-8 can store."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise InputError(f"{name} is {described(texts)}; expected a list of strings")
    checked = list(texts)
    for number, text in enumerate(checked):
        check_text(f"{name}[{number}]", text)
    return checked


def check_optional_text(name: str, value: object) -> None:
    """Raise InputError unless a value is None or a string that UTF-8 can store."""
    if value is not None:
        check_text(name, value)


def checked_ids(ids: object) -> list[str]:
    """Ids of documents, each once, in order; InputError where they are not a list of strings."""
    return checked_texts("ids", ids, 'of ids, such as ["17"]', each="id")


def checked_texts(name: str, values: object, expected: str = "of strings", *, each: str = "") -> list[str]:
    """Strings, each once, in order; InputError where they are not a list of strings that UTF-8 can store."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"{name} is {described(values)}; expected a list {expected}")
    checked = list(values)
    for value in checked:
        check_text(each or f"one of {name}", value)
    return list(dict.fromkeys(checked))


def whole_number(name: str, value: object, least: int, most: int | None = None) -> int:
    """Return an integer, numpy's too, in a range; InputError where it is anything else."""
    expected = f"{least} or more" if most is None else f"{least} to {most}"
    try:
        number = None if isinstance(value, bool) else index(value)  # type: ignore[arg-type]  # that is what it checks
    except TypeError:
        number = None
    if number is None:
        raise InputError(f"{name} is {described(value)}; expected a whole number, {expected}")
    if number < least or (most is not None and number > most):
        raise InputError(f"{name} is {number}; expected {expected}")
    return number


def check_share(name: str, value: object) -> None:
    """Raise InputError unless a value is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise InputError(f"{name} is {described(value)}; expected 0 to 1")


def checked_path(name: str, value: object) -> Path:
    """Return a path; InputError where it is neither a string nor a path."""
    if not isinstance(value, str | PathLike):
        raise InputError(f"{name} is {described(value)}; expected a path")
    if "\0" in str(value):
        raise InputError(f"{name} holds a NUL byte; expected a path")
    return Path(value)


def described(value: object) -> str:
    """A value as messages show it: itself where it is short and plain, else its type."""
    if value is None or isinstance(value, bool | int | float | str):
        try:
            text = repr(value)
        except ValueError:  # more digits than Python writes
            text = "a very large integer"
        return text if len(text) <= 60 else f"{text[:60]}..."
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    name = f"numpy.{kind.__name__}" if package == "numpy" else kind.__name__  # numpy has a "bool" of its own
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
