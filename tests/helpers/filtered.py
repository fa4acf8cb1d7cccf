"""Whether filters are true of documents: by SQLite, and by an evaluator in plain Python."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from datetime import datetime
from fractions import Fraction
from typing import Any

from searchkit.indexer.filters import compile_filter

Found = Callable[..., list[bool]]


def select(db: sqlite3.Connection, where: dict[str, Any], *metadata: dict[str, Any]) -> list[bool]:
    """Of each metadata, stored with the ids "0", "1", ... and titles "t0", "t1", ..., whether the filter is true."""
    db.execute("DELETE FROM documents")
    rows = [(n, str(n), f"t{n}", json.dumps(one, ensure_ascii=False)) for n, one in enumerate(metadata)]
    db.executemany("INSERT INTO documents VALUES (?, ?, ?, ?)", rows)
    condition = compile_filter(where)
    found = [
        value for (value,) in db.execute(f"SELECT {condition.sql} FROM documents ORDER BY doc", condition.parameters)
    ]
    assert set(found) <= {0, 1}  # NULL would make NOT wrong
    return [bool(value) for value in found]


def connect() -> sqlite3.Connection:
    """A database with an empty table of documents."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("CREATE TABLE documents (doc INTEGER PRIMARY KEY, id TEXT, title TEXT, metadata TEXT)")
    return db


# An evaluator in plain Python, of the semantics that the docstring of searchkit.indexer.filters gives


def holds(where: dict[str, Any], document: dict[str, Any]) -> bool:
    return all(entry_holds(key, value, document) for key, value in where.items())


def entry_holds(key: str, value: Any, document: dict[str, Any]) -> bool:
    if key == "$not":
        return not holds(value, document)
    if key in ("$and", "$or", "$nor"):
        results = [holds(part, document) for part in value]
        return {"$and": all(results), "$or": any(results), "$nor": not any(results)}[key]
    if not isinstance(value, dict) or "$date" in value:
        value = {"$eq": value}
    values = reached(document, [re.sub(r"\\(.)", r"\1", part) for part in re.findall(r"(?:\\.|[^.\\])+", key)])
    return all(operator_holds(operator, operand, values) for operator, operand in value.items())


def reached(document: dict[str, Any], parts: list[str]) -> list[Any]:
    values: list[Any] = [document]
    for part in parts:
        inner = [item for value in values for item in (value if isinstance(value, list) else [value])]
        values = [item[part] for item in inner if isinstance(item, dict) and part in item]
    return values


def operator_holds(operator: str, operand: Any, values: list[Any]) -> bool:
    if operator == "$exists":
        return operand == bool(values)
    if operator == "$not":
        return not all(operator_holds(*item, values) for item in operand.items())
    if operator in ("$ne", "$nin"):
        return not operator_holds({"$ne": "$eq", "$nin": "$in"}[operator], operand, values)
    if operator == "$in":
        return any(operator_holds("$eq", one, values) for one in operand)
    if operand is None and not values:
        return True
    elements = [element for value in values for element in (value if isinstance(value, list) else [value])]
    return any(compares(operator, element, operand) for element in elements)


def compares(operator: str, value: Any, operand: Any) -> bool:
    if isinstance(operand, dict):
        value, operand = instant(value), instant(operand["$date"])
        if value is None:
            return False
    elif kind(value) != kind(operand):
        return False
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        value = float(value)
    return {
        "$eq": lambda: value == operand,
        "$gt": lambda: value > operand,
        "$gte": lambda: value >= operand,
        "$lt": lambda: value < operand,
        "$lte": lambda: value <= operand,
    }[operator]()


def kind(value: Any) -> type:
    return float if type(value) is int else type(value)


def instant(text: Any) -> Fraction | None:
    """Seconds since 1970, None for what is no date."""
    form = r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(?:(?<=:\d\d:\d\d)(\.\d+))?(Z|[+-]\d\d:\d\d)?)?"
    if not isinstance(text, str) or not (match := re.fullmatch(form, text, re.ASCII)):
        return None
    day, clock, fraction, zone = match.groups()
    try:
        seconds = Fraction(
            int((datetime.fromisoformat(f"{day} {clock or '00:00'}") - datetime(1970, 1, 1)).total_seconds())
        )
    except ValueError:  # 31 February
        return None
    if zone and zone != "Z":
        seconds -= int(zone[0] + "1") * (int(zone[1:3]) * 3600 + int(zone[4:]) * 60)
    return seconds + Fraction(fraction or 0)
