"""The exceptions a caller can catch, all derived from `SearchkitError`."""

from __future__ import annotations

from pathlib import Path

REPAIR = "repair the index with: searchkit check INDEX --repair"
REBUILD = "build the index again"


class SearchkitError(Exception):
    """Base of every error raised on purpose: the message says what came, what was expected and what to do."""


class InputError(SearchkitError, ValueError):
    """An argument, an option or a file cannot be used as it is."""


class FilterError(InputError):
    """A metadata filter cannot be parsed."""


class StoreError(SearchkitError, ValueError):
    """An index cannot be opened, read or written."""


class DamagedError(StoreError):
    """Part of an index is missing, differs from its checksum, or contradicts another part.

    Args:
        path: The damaged file.
        damage: What is wrong with it, as the end of a sentence: "is missing".
        advice: What to do about it.
        repairable: Whether `searchkit check --repair` can do something about it.
    """

    def __init__(self, path: Path, damage: str, advice: str = REPAIR, *, repairable: bool = True) -> None:
        super().__init__(f"{path} {damage}; {advice}")
        self.path, self.damage, self.advice, self.repairable = path, damage, advice, repairable


class BusyError(StoreError):
    """Another process is writing to the index."""


class MissingExtraError(SearchkitError, ImportError):
    """An optional library is not installed; the message names the extra that installs it."""
