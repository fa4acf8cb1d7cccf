"""Check that the fields of a settings record have the types it declares."""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from searchkit.errors import InputError


def check_types(record: Any) -> None:
    """Raise InputError on the first field of a dataclass whose value is of another type than declared."""
    for name, hint in get_type_hints(type(record)).items():
        value = getattr(record, name)
        if not _fits(value, hint):
            expected = str(hint) if get_args(hint) else hint.__name__
            raise InputError(f"{name} is {value!r}; expected {expected.replace('pathlib.', '')}")


def _fits(value: object, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    arguments = get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if get_origin(hint) is Mapping:
        return isinstance(value, Mapping) and all(_fits(item, arguments[1]) for item in value.values())
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if hint is float else hint)
