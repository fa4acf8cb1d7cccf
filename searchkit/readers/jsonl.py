"""Rows of JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from searchkit.errors import CorpusError, RowError
from searchkit.readers.lines import Lines, name_of, open_bytes
from searchkit.readers.rows import Fields, ReadReport, Row, has_no_ids, id_key, numbered_id
from searchkit.readers.values import json_object


def jsonl_rows(path: Path, encoding: str, fields: Fields, report: ReadReport) -> Iterator[Row]:
    """Yield the rows of a file of JSON lines. If the first has no id, all are numbered.

    Raises:
        CorpusError: The file is one JSON array, or no row has the id or text that `fields` names.
    """
    has = {"id": False, "text": False}
    name = "stdin" if path == Path("-") else path.name
    number, numbered = 0, None
    with open_bytes(path) as stream:
        lines = Lines(stream, name_of(path), encoding)
        location = lines.begin()
        for line in lines:
            if line.strip():
                number += 1
                if number == 1 and line.lstrip("\ufeff \t").startswith("["):
                    raise CorpusError(
                        f"{location}: one JSON array, where one object per line is expected; "
                        f"convert it: jq -c '.[]' {path} > {path.stem}.jsonl"
                    )
                try:
                    values, fault = ({}, lines.fault) if lines.fault else (json_object(line.lstrip("\ufeff")), "")
                except RowError as error:
                    values, fault = {}, str(error)
                if not fault and fields.text in values:
                    if numbered is None:
                        numbered = has_no_ids(values, fields)
                    if numbered and not has_no_ids(values, fields):
                        key = id_key(values, fields)
                        values, fault = {}, f'has an "{key}", but the first row has none, so that rows are numbered'
                    elif numbered:
                        values = {"id": numbered_id(name, number), **values}
                        report.numbered = report.numbered or values["id"]
                has["id"] |= bool(fault) or id_key(values, fields) in values
                has["text"] |= bool(fault) or fields.text in values
                yield Row(location, values, lines.raw, fault)
            location = lines.begin()
    for option, key in (("id", fields.id), ("text", fields.text)):
        if number and not has[option]:
            raise CorpusError(f'{name_of(path)}: no row has "{key}"; name the key to use with --{option}-field')
