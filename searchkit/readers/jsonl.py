"""Rows of JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from searchkit.errors import CorpusError, RowError
from searchkit.readers.lines import Lines, name_of, open_bytes
from searchkit.readers.rows import Fields, ReadReport, Row, has_no_ids, id_key, numbered_id
from searchkit.readers.values import json_object, quoted


def jsonl_rows(path: Path, encoding: str, fields: Fields, report: ReadReport) -> Iterator[Row]:
    """Yield the rows of a file of JSON lines. If the first has no id, all are numbered.

    Raises:
        CorpusError: The file is one JSON array, or no row has the id or text that `fields` names.
    """
    has = {"id": False, "text": False, "vector": fields.vector is None}
    name = "stdin" if path == Path("-") else path.name
    number, numbered = 0, None
    missing = set(fields.metadata or ())
    with open_bytes(path) as stream:
        lines = Lines(stream, name_of(path), encoding)
        location = lines.begin()
        for line in lines:
            if line.strip():
                number += 1
                if number == 1:
                    _check_first(line.lstrip("\ufeff \t").rstrip(), location, path)
                try:
                    values, fault = ({}, lines.fault) if lines.fault else (json_object(line.lstrip("\ufeff")), "")
                except RowError as error:
                    values, fault = {}, str(error)
                if number == 1 and not fault and not {id_key(values, fields), fields.text} & values.keys():
                    _check_wrapped(values, location, path)
                if not fault and fields.text in values:
                    if numbered is None:
                        numbered = has_no_ids(values, fields)
                    if numbered and not has_no_ids(values, fields):
                        fault = (
                            f'has an "{id_key(values, fields)}", but the first row has none, so that rows are '
                            "numbered; give all rows one, or none"
                        )
                        values = {}
                    elif numbered:
                        values = {"id": numbered_id(name, number), **values}
                        report.numbered = report.numbered or values["id"]
                has["id"] |= bool(fault) or id_key(values, fields) in values
                has["text"] |= bool(fault) or fields.text in values
                has["vector"] |= bool(fault) or fields.vector in values
                missing -= {*values, *(inner if isinstance(inner := values.get("metadata"), dict) else ())}
                yield Row(location, values, lines.raw, fault)
            location = lines.begin()
    for option, wanted in (("id", fields.id), ("text", fields.text), ("vector", fields.vector)):
        if number and not has[option]:
            raise CorpusError(f'{name_of(path)}: no row has "{wanted}"; name the key to use with --{option}-field')
    if number and missing:
        report.remarks.append(
            f"{name_of(path)}: no row has {quoted(sorted(missing))} to keep as metadata (--metadata-field)"
        )


def _check_first(line: str, location: str, path: Path) -> None:
    """Raise CorpusError if the first line shows that the file is JSON, and not JSON lines."""
    if line.startswith("["):
        raise CorpusError(
            f"{location}: one JSON array, where one object per line is expected; "
            f"convert it: jq -c '.[]' {path} > {_new_name(path)}"
        )
    if line == "{":
        raise CorpusError(
            f"{location}: a JSON object over several lines, where one object per line is expected; "
            f"convert it: jq -c . {path} > {_new_name(path)}"
        )


def _check_wrapped(values: dict[str, Any], location: str, path: Path) -> None:
    """Raise CorpusError if the first object is no row, but has a list of rows in it, as exports have."""
    for key, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            raise CorpusError(
                f'{location}: one JSON object around a list, "{key}", where one object per line is expected; '
                f"convert it: jq -c '.[\"{key}\"][]' {path} > {_new_name(path)}"
            )


def _new_name(path: Path) -> str:
    """A name for the converted file; never the file itself, which the shell would empty first."""
    return f"{path.stem}.jsonl" if path.suffix != ".jsonl" else f"{path.stem}-lines.jsonl"
