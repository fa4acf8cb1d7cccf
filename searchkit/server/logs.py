"""Log lines as JSON: one object a line, so that nothing a client sends can look like another line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from fastapi import Request


class JsonFormatter(logging.Formatter):
    """A record as a JSON object; `extra={"fields": {...}}` adds to it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        row = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            row["traceback"] = self.formatException(record.exc_info)
        return json.dumps(row, ensure_ascii=True, default=str)


def log_as_json(level: int = logging.INFO) -> None:
    """Send the log of this process to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    ours = logging.getLogger("searchkit")  # a command shows its warnings as notes; a service logs them
    ours.handlers.clear()
    ours.propagate = True


def note(request: Request, **fields: object) -> None:
    """Add fields to the log line of a request."""
    request.scope.setdefault("log", {}).update(fields)
