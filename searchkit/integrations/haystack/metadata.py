"""What Haystack asks about the metadata of documents: types, ranges and different values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from haystack import Document


def key_of(name: str) -> str:
    """A field without "meta." before it."""
    return name.removeprefix("meta.")


def field_types(documents: Iterable[Document]) -> dict[str, dict[str, str]]:
    """The type of each key's values: "boolean", "int", "float", "keyword", or "keyword" where they differ."""
    types: dict[str, set[str]] = {}
    for document in documents:
        for key, value in document.meta.items():
            if value is not None:
                name = {bool: "boolean", int: "int", float: "float"}.get(type(value), "keyword")
                types.setdefault(key, set()).add(name)
    numbers = {"int", "float"}
    return {
        key: {"type": min(found) if len(found) == 1 else "float" if found == numbers else "keyword"}
        for key, found in types.items()
    }


def extremes(documents: Iterable[Document], name: str) -> dict[str, Any]:
    """The least and the greatest value of a key; None where there is none, or values have no common order."""
    values = [document.meta.get(key_of(name)) for document in documents]
    values = [value for value in values if isinstance(value, int | float | str)]
    try:
        return {"min": min(values, default=None), "max": max(values, default=None)}
    except TypeError:
        return {"min": None, "max": None}


def different(documents: Iterable[Document], name: str) -> list[Any]:
    """The different values of a key, 1, 1.0, "1" and True among them, by how they are written."""
    values: dict[str, Any] = {}
    for document in documents:
        if (value := document.meta.get(key_of(name))) is not None:
            written = json.dumps(value, sort_keys=True, default=repr)
            values.setdefault(written, value)
    return sorted(values.values(), key=lambda value: (str(value), type(value).__name__))


def page_of(values: Sequence[Any], search_term: str | None, start: int, size: int) -> tuple[list[Any], int]:
    """Some of the values that contain a term, and how many there are."""
    found = [value for value in values if not search_term or search_term.lower() in str(value).lower()]
    return found[start : start + size], len(found)


def different_counts(documents: Sequence[Document], names: Sequence[str]) -> dict[str, int]:
    """How many different values each key has."""
    return {key_of(name): len(different(documents, name)) for name in names}
