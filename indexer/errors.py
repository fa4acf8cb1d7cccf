"""The errors a caller can catch, all under `SearchkitError`."""

from __future__ import annotations


class SearchkitError(Exception):
    """What searchkit raises on purpose: the message says what came, what was expected and what to do."""


class InputError(SearchkitError, ValueError):
    """An argument, an option or a file cannot be used as it is."""


class FilterError(InputError):
    """A filter on metadata cannot be understood."""


class StoreError(SearchkitError, ValueError):
    """An index cannot be opened, read or written."""


class DamagedError(StoreError):
    """A part of an index differs from its checksum, is missing, or contradicts another part."""


class BusyError(StoreError):
    """Another process holds the index."""


class MissingExtraError(SearchkitError, ImportError):
    """An optional library is not installed; the message names the extra that brings it."""
