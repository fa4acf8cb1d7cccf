"""The rows of `corpora/kinds`: topics with a passage of every kind, and instructions in many words."""

from __future__ import annotations

from typing import Any

from searchkit.readers.corpus import corpus_folder
from searchkit.readers.lines import json_lines


def kinds_rows(name: str) -> list[dict[str, Any]]:
    """A file: "topics", "dev" (topics too, for development) or "instructions"."""
    return [row for _, row in json_lines(corpus_folder("kinds") / f"{name}.jsonl")]


def worded_instructions(split: str) -> list[dict[str, Any]]:
    """The instructions in many words, for "train" or for "dev"."""
    return [row for row in kinds_rows("instructions") if row["split"] == split]
