"""Files that tests write."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any


def write(path: Path, content: str | bytes) -> Path:
    """A file with this content, in UTF-8, compressed where its name ends in .gz; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def saved(document: Any) -> bytes:
    """What a document of an office library writes."""
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()
