"""The errors a caller can catch, all under `SearchkitError`."""

from __future__ import annotations

from searchkit.indexer.errors import (
    BusyError,
    DamagedError,
    FilterError,
    InputError,
    MissingExtraError,
    SearchkitError,
    StoreError,
)

__all__ = [
    "BadAnswer",
    "BadRow",
    "BusyError",
    "CorpusError",
    "DamagedError",
    "FilterError",
    "InputError",
    "MissingExtraError",
    "SearchkitError",
    "StoreError",
    "Unreadable",
]


class CorpusError(InputError):
    """A corpus, queries or judgements cannot be read; the message names file and line."""


class BadRow(InputError):
    """One row cannot be used; the reader adds where it stands."""


class Unreadable(InputError):
    """No text can be taken out of a file."""


class BadAnswer(InputError):
    """What a language model wrote cannot be used.

    Args:
        reason: In a few words, by which such answers are counted.
        detail: The message.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
