"""Unicode normalisation: one spelling for what reads the same, in texts and in metadata."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

# Default_Ignorable_Code_Point: soft hyphens, joiners, directions, variation selectors, byte order marks.
_IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def normalised(text: str) -> str:
    """NFKC, without the characters that are for layout only."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFKC", _IGNORABLE.sub("", text))


def normalised_key(key: str) -> str:
    """A metadata key, normalised; as it is where it would become empty, or no filter could name it any more."""
    plain = normalised(key)
    return key if not plain or '"' in plain or "\\" in plain else plain


def normalised_metadata(metadata: Any) -> Any:
    """JSON with its keys and strings normalised; values of keys that become equal are put into one list."""
    if isinstance(metadata, str):
        return normalised(metadata)
    # Loops and not comprehensions, each of which would take a level of Python's stack: metadata is up to 500 deep.
    if isinstance(metadata, list):
        items = []
        for item in metadata:
            items.append(normalised_metadata(item))
        return items
    if isinstance(metadata, dict):
        merged: dict[str, Any] = {}
        for key, value in metadata.items():
            key, value = normalised_key(key), normalised_metadata(value)
            merged[key] = [*_listed(merged[key]), *_listed(value)] if key in merged else value
        return merged
    return metadata


def is_normalised(text: str) -> bool:
    """Whether normalising changes nothing; as true of JSON as of the strings in it."""
    return text.isascii() or (unicodedata.is_normalized("NFKC", text) and not _IGNORABLE.search(text))


def strict_json(metadata: str) -> str:
    """Metadata as JSON proper: NaN and Infinity, which earlier versions stored, become null."""
    return _written(json.loads(metadata, parse_constant=lambda _: None))


def is_strict(metadata: str) -> bool:
    """Whether metadata is JSON proper, without NaN and Infinity."""
    found: list[str] = []
    json.loads(metadata, parse_constant=found.append)
    return not found


def is_filterable(metadata: str) -> bool:
    """Whether filters can read stored metadata as they are: JSON proper, and normalised. Sometimes wrongly False."""
    return is_normalised(metadata) and not ("NaN" in metadata or "Infinity" in metadata)


def filterable(metadata: str) -> str:
    """Stored metadata as filters read them: JSON proper, and normalised."""
    if is_filterable(metadata):
        return metadata
    return _written(normalised_metadata(json.loads(metadata, parse_constant=lambda _: None)))


def _written(metadata: Any) -> str:
    return json.dumps(metadata, ensure_ascii=False, sort_keys=True)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
