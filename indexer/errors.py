"""The exceptions a caller can catch, all derived from `SearchkitError`."""

from __future__ import annotations


class SearchkitError(Exception):
    """Base of every error raised on purpose: the message says what came, what was expected and what to do."""


class InputError(SearchkitError, ValueError):
    """An argument, an option or a file cannot be used as it is."""


class FilterError(InputError):
    """A metadata filter cannot be parsed."""


class StoreError(SearchkitError, ValueError):
    """An index cannot be opened, read or written."""


class DamagedError(StoreError):
    """Part of an index is missing, differs from its checksum, or contradicts another part."""


class BusyError(StoreError):
    """Another process is writing to the index."""


class MissingExtraError(SearchkitError, ImportError):
    """An optional library is not installed; the message names the extra that installs it."""
