"""Types of the columns of a CSV or TSV file, whose cells are all text.

A column has a type only if every cell that is not empty has it and would be written back the same: "007", "+49 30",
"1,234", "NaN" and version numbers stay text. An empty cell of a typed column is null.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from itertools import pairwise

from searchkit.errors import InputError, RowError
from searchkit.indexer.instants import DATE

Value = str | int | float | bool | None

_INTEGER = re.compile(r"-?[1-9][0-9]*|0")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)?(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_BOOLEANS = {"true": True, "false": False}
_EMPTY = ("", "nan", "na", "n/a", "null", "none")  # empty in a column whose type the user named
# Digits that are not quantities: sorted, added or compared they mean nothing, and "1.10" is not 1.1.
_CODE = re.compile(
    r"(phone|telephone|tel|fax|mobile|zip|zipcode|plz|postcode|postal|isbn|issn|ean|gtin|upc|sku|iban|version)",
    re.IGNORECASE,
)
_LONGEST = 64  # characters; a longer cell is text
_SETTLED = 1000  # cells after which a type that fits fewer than nine in ten is given up


def _integer(cell: str) -> int:
    if not _INTEGER.fullmatch(cell) or not -(2**63) <= int(cell) < 2**63:
        raise ValueError
    return int(cell)


def _decimal(cell: str) -> float:
    if not cell[-1:].isdigit() or not _DECIMAL.fullmatch(cell):
        raise ValueError
    value = float(cell)
    if not math.isfinite(value) or Decimal(repr(value)) != Decimal(cell):  # too large, or more digits than fit
        raise ValueError
    return value


def _boolean(cell: str) -> bool:
    try:
        return _BOOLEANS[cell.lower()]
    except KeyError:
        raise ValueError from None


def _date(cell: str) -> str:
    if not DATE.fullmatch(cell):
        raise ValueError
    datetime.fromisoformat(re.sub(r"\.[0-9]+", "", cell))  # fractions of any length are fine
    return cell


_PARSERS: dict[str, Callable[[str], Value]] = {
    "integer": _integer,
    "decimal": _decimal,
    "boolean": _boolean,
    "date": _date,
    "text": str,
}
TYPES = tuple(_PARSERS)
_WANTED = {
    "integer": "an integer such as 1234",
    "decimal": "a decimal number such as 12.5",
    "boolean": "true or false",
    "date": "an ISO date such as 2024-05-01",
}


def convert(name: str, cell: str, kind: str, *, named: bool) -> Value:
    """The value of a cell.

    Args:
        name: The column's, for messages.
        cell: As it is in the file.
        kind: One of TYPES.
        named: The user named the type: a cell that does not fit is a RowError, and "NaN", "NA" and "null" are empty.
    """
    if kind == "text":
        return cell
    stripped = cell.strip()
    if not stripped or (named and stripped.lower() in _EMPTY):
        return None
    try:
        return _PARSERS[kind](stripped)
    except ValueError:
        raise RowError(f'column "{name}" holds "{stripped[:_LONGEST]}", which is not {_WANTED[kind]}') from None


@dataclass
class ColumnGuess:
    """What a column's cells have been so far.

    Args:
        name: Of the column; names such as "phone" and "isbn" are text whatever their cells are.
        cells: Cells that are not empty.
        misfits: For each type that may still be the column's: how many cells do not fit, with the first of them.
    """

    name: str
    cells: int = 0
    misfits: dict[str, tuple[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        words = re.split(r"[^a-zA-Z]+|(?<=[a-z])(?=[A-Z])", self.name)
        if not any(_CODE.fullmatch(word) for word in (*words, *map("".join, pairwise(words)))):
            self.misfits = {kind: (0, "") for kind in TYPES if kind != "text"}

    def see(self, cell: str, location: str) -> None:
        """Take one cell into account."""
        cell = cell.strip()
        if not cell:
            return
        self.cells += 1
        for kind, (count, first) in list(self.misfits.items()):
            try:
                if len(cell) > _LONGEST:
                    raise ValueError
                _PARSERS[kind](cell)
            except ValueError:
                self.misfits[kind] = (count + 1, first or f'"{cell[:_LONGEST]}" at {location}')
                if self.cells > _SETTLED and count > self.cells // 10:
                    del self.misfits[kind]

    @property
    def kind(self) -> str:
        """The type that fits every cell, the narrowest first; "text" if none does or all cells are empty."""
        return next((kind for kind, (count, _) in self.misfits.items() if self.cells and not count), "text")

    @property
    def near_miss(self) -> str:
        """A sentence on a type that all but a few cells have, or ""."""
        if self.kind != "text" or self.cells < 10:
            return ""
        for kind, (count, first) in self.misfits.items():
            if count <= self.cells // 10:
                return (
                    f'column "{self.name}" stays text: {count} of {self.cells} cells, such as {first}, '
                    f"{'is' if count == 1 else 'are'} no {kind}; "
                    f"to reject what does not fit: --column {self.name}:{kind}"
                )
        return ""


def check_types(types: Mapping[str, str], columns: list[str], name: str) -> None:
    """Raise InputError for a type that does not exist or a column that the file does not have."""
    for column, kind in types.items():
        if kind not in TYPES:
            raise InputError(f'column "{column}" cannot be of type "{kind}"; types are {", ".join(TYPES)}')
        if column not in columns:
            raise InputError(
                f'{name}: no column "{column}" to give a type (--column); its columns are '
                + ", ".join(f'"{each}"' for each in columns)
            )
