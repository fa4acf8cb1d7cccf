"""Files that tests write."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from searchkit.readers.corpus import Rejects, read_corpus


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


def table(path: Path, columns: dict[str, Any]) -> Path:
    """A Parquet file; the test is skipped without pyarrow."""
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pa.table(columns), path)
    return path


def refused(path: Path, **options: Any) -> tuple[list[str], list[dict[str, str]]]:
    """The ids that were read and the rows that were set aside."""
    rejects_path = path.parent / "refused" / "rows.jsonl"
    rejects_path.parent.mkdir(exist_ok=True)
    with Rejects(rejects_path) as rejects:
        ids = [document.id for document in read_corpus(path, rejects=rejects, **options)]
    entries = [json.loads(line) for line in rejects_path.read_text().splitlines()] if rejects_path.exists() else []
    assert rejects.count == len(entries)
    return ids, entries
