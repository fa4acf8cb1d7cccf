"""Dates in metadata and in filters as instants: strings that sort as the moments do."""

from __future__ import annotations

import re
import sqlite3
from datetime import UTC, datetime, timedelta

from searchkit.indexer.errors import InputError

DATE = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[T ]([0-9]{2}:[0-9]{2})(?:(:[0-9]{2})(\.[0-9]+)?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OFFSET = 200_000_000_000  # makes the seconds of every year from 0 to 9999 twelve digits long
# The instant of a string as a string that sorts as instants do: seconds since 1970 plus _OFFSET, then the fraction
# without trailing zeros. SQLite rounds to milliseconds, so the fraction is cut out and the zone appended to the rest;
# it takes "12:00" and "2015" for dates and rolls 31 February over, so those are rejected first. NULL for no date.
_ZONE = "CASE WHEN substr(d, -6, 1) IN ('+', '-') THEN substr(d, -6) WHEN d GLOB '*[Zz]' THEN substr(d, -1) ELSE '' END"
INSTANT = (
    "(SELECT CASE WHEN d NOT GLOB '????-??-??' AND (d NOT GLOB '????-??-??[T ]??:*' OR substr(d, -1) <= ' ') THEN NULL "
    "WHEN substr(d, 9, 2) > '28' AND date(substr(d, 1, 10), '+0 days') <> substr(d, 1, 10) THEN NULL "
    f"WHEN substr(d, 20, 1) <> '.' THEN (strftime('%s', d) + {_OFFSET}) || '' "
    f"WHEN julianday(d) THEN (strftime('%s', substr(d, 1, 19) || {_ZONE}) + {_OFFSET}) "
    f"|| rtrim(replace(substr(d, 20), {_ZONE}, ''), '.0 ') END FROM (SELECT {{}} AS d))"
)


def instant_of(db: sqlite3.Connection, text: str) -> str | None:
    """The instant of a stored string, in a form that sorts as instants do; None where it is no date.

    Args:
        db: Any connection: SQLite reads dates, so that conditions that are not SQL agree with those that are.
        text: The string.
    """
    (instant,) = db.execute(f"SELECT {INSTANT.format('?')}", (text,)).fetchone()
    return None if instant is None else str(instant)


def parsed_instant(text: str) -> str:
    """The same of a date in a filter.

    Raises:
        ValueError: It is not of the form of :data:`DATE`, or no such day or time exists.
    """
    match = DATE.fullmatch(text)
    if match is None:
        raise InputError("it is not of the form below")
    day, clock, second, fraction, zone = match.groups()
    moment = datetime.fromisoformat(f"{day}T{clock or '00:00'}{second or ''}{zone or '+00:00'}")
    seconds = (moment - _EPOCH) // timedelta(seconds=1)
    return f"{seconds + _OFFSET}{(fraction or '').rstrip('.0')}"
