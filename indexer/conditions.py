"""SQL conditions over one row of the table `documents`, put together out of parts with their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any


@dataclass(frozen=True, slots=True)
class Condition:
    """A boolean SQL expression over one row of `documents`: 0 or 1, never NULL.

    Args:
        sql: The expression, with a "?" for each parameter; columns are named without their table.
        parameters: In the order of the question marks.
        where: The filter that it was compiled from.
    """

    sql: str
    parameters: tuple[str | int | float, ...] = ()
    where: Mapping[str, Any] | None = field(default=None, compare=False)


def filled(template: str, *parts: Condition, parameters: tuple[str | int | float, ...] = ()) -> Condition:
    """SQL with the parts in place of each {}, and their parameters in the same order, before other ones."""
    inner = chain.from_iterable(part.parameters for part in parts)
    return Condition(template.format(*(part.sql for part in parts)), (*inner, *parameters))


@dataclass(frozen=True, slots=True)
class _Joined(Condition):
    """Conditions in parentheses, joined by AND or OR."""

    word: str = ""


def joined(word: str, parts: list[Condition]) -> Condition:
    """Conditions joined by AND or OR; none at all hold."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Condition("1")
    # Conditions joined by the same word need no parentheses, of which SQLite's parser has room for few.
    inner = [part.sql[1:-1] if isinstance(part, _Joined) and part.word == word else part.sql for part in parts]
    return _Joined(
        f"({f' {word} '.join(inner)})", tuple(chain.from_iterable(part.parameters for part in parts)), word=word
    )


def negated(condition: Condition) -> Condition:
    """The opposite."""
    return filled("NOT {}", condition)  # NOT binds less tightly than comparisons and more tightly than AND
