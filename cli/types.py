"""Types of single options and arguments."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import click

from searchkit.errors import InputError

_LARGEST = 1_000_000


class _Target(click.Path):
    """A file or folder to write; refused now if it could not be written after the work."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        existing = path
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        if existing != path and not existing.is_dir():
            self.fail(f"{path} cannot be written: {existing} is a file, not a folder", param, ctx)
        if not os.access(existing, os.W_OK):
            self.fail(f"{path} cannot be written: no permission to write to {existing}", param, ctx)
        return _named(path)


def _named(folder: Path) -> Path:
    """A folder that is called "." or ".." by its own name, from which the names of files beside it are made."""
    return folder.resolve() if folder.name in ("", "..") else folder


class Finite(click.FloatRange):
    """A number in a range, neither NaN nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class _NonEmpty(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Text that is not empty."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not str(value).strip():
            self.fail("it is empty", param, ctx)
        return str(value)


class ListOf(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.3
    """Values separated by commas, as a tuple.

    Args:
        kind: What each value is: str, or int for whole numbers from 1 to a million.
        example: Shown when a value is not of that kind.
        choices: Gives the only values allowed; called when the option is used.
    """

    name = "list"

    def __init__(self, kind: type[str] | type[int], example: str, choices: Callable[[], Sequence[str]] | None = None):
        self.kind, self.example, self.choices = kind, example, choices

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        texts = [text.strip() for text in value.split(",") if text.strip()]
        if not texts:
            self.fail(f"{value!r} is empty; expected a list such as {self.example}", param, ctx)
        if self.choices and (unknown := [text for text in texts if text not in self.choices()]):
            self.fail(f"no {', '.join(map(repr, unknown))}; expected some of {', '.join(self.choices())}", param, ctx)
        if self.kind is int and not all(text.isdecimal() and 0 < int(text) <= _LARGEST for text in texts):
            limits = f"from 1 to {_LARGEST:,}"
            self.fail(f"{value!r} is not a list of whole numbers such as {self.example}, {limits}", param, ctx)
        return tuple(dict.fromkeys(map(self.kind, texts)))


def _evaluation_modes() -> Sequence[str]:
    from searchkit.evaluation.evaluate import EVALUATION_MODES

    return EVALUATION_MODES


def _metrics() -> Sequence[str]:
    from searchkit.metrics import METRICS

    return METRICS


class _Index(click.Path):
    """The folder of an index; one in object storage is refused with what to do."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from searchkit.object_storage import is_url
        from searchkit.remote.address import is_milvus

        if is_milvus(value):
            self.fail(
                "this command works on an index folder; what it changes goes to Milvus by: searchkit push", param, ctx
            )
        if is_url(value):
            self.fail(
                f"{value}: an index is not used where it lies in object storage; copy it here first: "
                f"searchkit merge {value} --index papers.index",
                param,
                ctx,
            )
        return _named(Path(os.fsdecode(super().convert(value, param, ctx))))


class _Place(_Index):
    """An index folder, or the address of a collection in Milvus."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from searchkit.remote.address import MilvusAddress, is_milvus, parse_milvus

        if isinstance(value, MilvusAddress):
            return value
        if not is_milvus(value):
            return super().convert(value, param, ctx)
        try:
            return parse_milvus(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


class _OrUrl(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """The URL of what else is a folder here."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from searchkit.object_storage import is_url

        return value if is_url(value) else super().convert(value, param, ctx)


class _IndexOrUrl(_OrUrl, _Index):
    """The folder of an index, or the URL of one."""


class _NewFolderOrUrl(_OrUrl, _Target):
    """A folder to make, or a URL to put one at."""


NON_EMPTY = _NonEmpty()
INDEX = _Index(exists=True, file_okay=False, path_type=Path)
INDEX_OR_URL = _IndexOrUrl(exists=True, file_okay=False, path_type=Path)
NEW_FOLDER_OR_URL = _NewFolderOrUrl(file_okay=False, path_type=Path)
PLACE = _Place(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = _Target(dir_okay=False, path_type=Path)
NEW_FOLDER = _Target(file_okay=False, path_type=Path)
MODES = ("dense", "lexical", "hybrid")
EVALUATION_MODES = ListOf(str, "dense,hybrid", _evaluation_modes)
METRICS = ListOf(str, "ndcg@10,recall@100", _metrics)
NAMES = ListOf(str, "scifact,nfcorpus")
RECIPES = ListOf(str, "int8,pq:48+rerank")
