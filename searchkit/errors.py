"""The exceptions a caller can catch, all derived from `SearchkitError`."""

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
    "AnswerError",
    "BusyError",
    "CorpusError",
    "DamagedError",
    "ExtractionError",
    "FilterError",
    "InputError",
    "MissingExtraError",
    "RejectedRowError",
    "RemoteError",
    "RowError",
    "SearchkitError",
    "StoreError",
]


class CorpusError(InputError):
    """A corpus, a file of queries or a file of judgements cannot be read; the message names file and line."""


class RejectedRowError(CorpusError):
    """A row of a corpus cannot be used, and no file for rejects was given."""


class RowError(InputError):
    """A single row cannot be used; the reader that catches it adds file and line."""


class ExtractionError(InputError):
    """No text can be extracted from a file."""


class RemoteError(SearchkitError):
    """The server of a model over the wire cannot be reached, or gave no usable answer; what was done so far is kept."""


class AnswerError(InputError):
    """A language model's answer cannot be used.

    Args:
        reason: A few words; rejected answers are counted by it.
        detail: The message.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
