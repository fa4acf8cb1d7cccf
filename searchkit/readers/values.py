"""Checks of single values: JSON objects, ids, and text that can be stored."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NoReturn

from searchkit.errors import InputError, RowError
from searchkit.validation import check_text


def json_object(text: str, what: str = "the row") -> dict[str, Any]:
    """Parse a JSON object, or raise RowError; `what` names the text in the message."""
    text = text.rstrip()  # otherwise an error at the end is counted from the next line
    try:
        value = _JSON.decode(text)
    except json.JSONDecodeError as error:
        advice = "; it ends too early: an object belongs on one line" if error.pos >= len(text) else ""
        reason = error.msg.removesuffix(" at")  # as in "Unterminated string starting at"
        raise RowError(f"{what} is not JSON: {reason} at column {error.colno}{advice}") from None
    except InputError as error:
        raise RowError(f"{what} is not JSON: {error}") from None
    except ValueError:  # Python converts no number of more than 4,300 digits
        raise RowError(f"{what} holds a number of thousands of digits; write it as a string") from None
    except RecursionError:
        raise RowError(f"{what} is nested too deeply to read; flatten it") from None
    if not isinstance(value, dict):
        raise RowError(f"{what} is {typename(value)}; it must be a JSON object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise InputError(f"{name} is not a JSON number")


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):  # json would keep the last, and lose the others without a word
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise InputError(f'the key "{twice}" comes more than once in an object')
    return values


_LONG_NAME = 60  # characters

_JSON = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unrepeated)


def checked_id(value: object) -> str:
    """Return an id as a string, or raise RowError."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(f"id is {typename(value)}; it must be a string or an integer")
    if not str(value).strip():
        raise RowError("empty id")
    return str(value)


def check_storable(name: str, value: str) -> None:
    """Raise RowError if the value cannot be stored as UTF-8."""
    try:
        check_text(name, value)
    except InputError as error:
        raise RowError(str(error)) from None


def is_integer(text: str) -> bool:
    """Whether the text is an integer in ASCII digits; int() also accepts "1_000"."""
    return re.fullmatch(r"[+-]?[0-9]+", text) is not None


def typename(value: object) -> str:
    """What JSON calls the type of a value, with its article."""
    names: dict[type, str] = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a decimal number",
        str: "a string",
        dict: "an object",
        list: "a list",
    }
    return names.get(type(value), type(value).__name__)


def quoted(names: Iterable[str]) -> str:
    """The first dozen names, each in double quotes; a long one, as where a file is read as the wrong kind, is cut."""
    names = [f'"{name if len(name) <= _LONG_NAME else name[: _LONG_NAME - 1] + "…"}"' for name in names]
    return ", ".join(names[:12] + ["..."] * (len(names) > 12)) or "nothing"
