"""Rows that did not become documents, kept in a file with the reason."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TextIO

from searchkit.errors import RejectedRowError
from searchkit.records import Document


@dataclass
class Rejects:
    """Rows that did not become documents.

    Args:
        path: Receives JSON lines of {"place", "reason", "row"}, replacing those of an earlier run; created with the
            first rejected row. A row is kept whole. None makes the first bad row a RejectedRowError.
    """

    path: Path | None = None
    count: int = field(default=0, init=False)
    first: str = field(default="", init=False)
    _file: TextIO | None = field(default=None, init=False, repr=False)

    def refuse(self, location: str, reason: str, row: object = "") -> None:
        """Reject a bad row, or raise RejectedRowError if there is no file to keep it in."""
        if self.path is None:
            raise RejectedRowError(f"{location}: {reason}") from None
        self.set_aside(location, reason, row)

    def refuse_document(self, document: Document, reason: str) -> None:
        """Reject a document that an index cannot store, as `SearchEngine.add` calls `on_refused`."""
        self.refuse(document.place or f"id {document.id!r}", reason, document.as_row())

    def set_aside(self, location: str, reason: str, row: object = "") -> None:
        """Count a row that the user cannot repair, and write it to the file if there is one; never raises."""
        if self.path is not None:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # Line by line, so that a killed run leaves whole lines; lone surrogates come out as JSON escapes.
                self._file = open(  # noqa: SIM115  close() closes it
                    self.path, "a" if self.count else "w", encoding="utf-8", errors="backslashreplace", buffering=1
                )
            entry = {"place": location, "reason": reason, "row": _as_text(row)}
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.count += 1
        self.first = self.first or f"{location}: {reason}"

    def summary(self, rows: int) -> str:
        """How many of so many rows were rejected, and the first of them."""
        return f"{self.count} of {rows}, the first {self.first}"

    def close(self) -> None:
        """Close the file; a later row reopens it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Rejects:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _as_text(row: object) -> str:
    if isinstance(row, bytes):
        row = row.decode("utf-8", "backslashreplace")
    elif not isinstance(row, str):
        row = json.dumps(row, ensure_ascii=False, default=repr)
    return row.rstrip("\r\n")
