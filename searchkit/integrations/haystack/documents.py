"""Haystack's documents as searchkit's and back, equal to what they were.

Text and metadata are stored as those of any index, so that its other tools read, search and filter them. What has no
place there is kept under one metadata key: the exact embedding, a blob, a sparse embedding, a score, a missing text,
and metadata that JSON cannot hold.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml
from haystack import Document
from haystack.dataclasses import ByteStream, SparseEmbedding

from searchkit.errors import InputError
from searchkit.records import Document as StoredDocument
from searchkit.validation import check_metadata, described

KEPT = "_haystack"
"""The metadata key of what has no place elsewhere."""

_NO_TEXT = "-"  # an index needs text or a vector; punctuation is never found


def to_stored(document: Document, *, exact: bool) -> StoredDocument:
    """A document as an index stores it.

    Args:
        document: Of Haystack.
        exact: Keep its embedding as it is, too.

    Raises:
        InputError: Its metadata cannot be kept.
    """
    for name, value, kind in (("meta", document.meta, dict), ("embedding", document.embedding, list | None)):
        if not isinstance(value, kind):
            raise InputError(f"document {document.id!r} cannot be stored: its {name} is {described(value)}")
    content = document.content or ""
    text = content.replace("\0", " ").encode(errors="replace").decode()
    text = text if text.strip() else _NO_TEXT
    extras: dict[str, Any] = {}
    if text != document.content:
        extras["content"] = document.content
    if (blob := document.blob) is not None:
        data = base64.b64encode(blob.data).decode()
        extras["blob"] = {"data": data, "meta": blob.meta, "mime_type": blob.mime_type}
    if document.sparse_embedding is not None:
        extras["sparse_embedding"] = document.sparse_embedding.to_dict()
    if document.score is not None:
        extras["score"] = document.score
    if document.embedding is not None and exact:
        extras["embedding"] = _packed(document)
    metadata, unfit = {}, {}
    for key, value in document.meta.items():
        if key != KEPT and _fits({key: value}):
            metadata[key] = value
        else:
            unfit[key] = value
    if unfit:
        extras["meta"] = unfit
    kept = {name: value for name, value in extras.items() if _fits({name: value})}
    if others := {name: value for name, value in extras.items() if name not in kept}:
        kept["yaml"] = _dumped(document.id, others)
    if kept:
        metadata[KEPT] = kept
    return StoredDocument(document.id, text, metadata=metadata, vector=document.embedding)


def to_haystack(
    id: str,
    text: str,
    title: str,
    metadata: Mapping[str, Any],
    *,
    score: float | None = None,
    embedded: bool = True,
) -> Document:
    """A stored document as it was written; one that other tools wrote has its title in `meta`.

    Args:
        id: Its id.
        text: The text, or a passage of it.
        title: Empty for documents of Haystack.
        metadata: As stored.
        score: Instead of the one that it was written with.
        embedded: Whether its embedding is wanted, where it was kept.
    """
    meta, extras = split(metadata)
    meta |= extras.get("meta", {})
    if title:
        meta.setdefault("title", title)
    blob, sparse = extras.get("blob"), extras.get("sparse_embedding")
    if blob is not None:
        blob = ByteStream(base64.b64decode(blob["data"]), blob["meta"], blob["mime_type"])
    return Document(
        id=id,
        content=extras.get("content", text),
        blob=blob,
        meta=meta,
        score=extras.get("score") if score is None else score,
        embedding=_unpacked(extras["embedding"]) if embedded and "embedding" in extras else None,
        sparse_embedding=None if sparse is None else SparseEmbedding.from_dict(sparse),
    )


def split(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Stored metadata without what is kept under `KEPT`, and that."""
    meta = dict(metadata)
    kept = meta.pop(KEPT, {})
    if not isinstance(kept, dict):  # somebody else's
        return dict(metadata), {}
    if "yaml" in kept:
        kept = {**kept, **yaml.load(kept["yaml"], _Loader)}
    return meta, kept


def _fits(metadata: dict[Any, Any]) -> bool:
    """Whether metadata come back equal from JSON, and filters can read them: tuples and dates do not."""
    try:
        check_metadata(metadata)
    except InputError:
        return False
    return bool(json.loads(json.dumps(metadata)) == metadata)


def _packed(document: Document) -> str:
    """An embedding as base64, in 32 bits a number where that is exact, as it is for those that models make."""
    try:
        row = np.asarray(document.embedding, np.float64)
    except (TypeError, ValueError):
        return ""  # refused with its document
    with np.errstate(over="ignore"):
        kind = "f4" if np.array_equal(row.astype(np.float32), row) else "f8"
    return f"{kind}:{base64.b64encode(row.astype(f'<{kind}').tobytes()).decode()}"


def _unpacked(text: str) -> list[float]:
    kind, _, data = text.partition(":")
    return np.frombuffer(base64.b64decode(data), f"<{kind}").tolist()  # type: ignore[no-any-return]


class _Dumper(yaml.SafeDumper):
    """YAML that tells tuples from lists."""


class _Loader(yaml.SafeLoader):
    """Reads what `_Dumper` wrote, and makes nothing but plain values."""


_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_sequence("!tuple", list(value)))
_Loader.add_constructor("!tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True)))


def _dumped(id: str, values: dict[str, Any]) -> str:
    """Values that JSON cannot hold, as YAML."""
    try:
        text = yaml.dump(values, Dumper=_Dumper)
        read = yaml.load(text, _Loader)
        if read == values or repr(read) == repr(values):  # NaN differs from itself
            return str(text)
    except (yaml.YAMLError, TypeError, ValueError, RecursionError):
        pass
    names = {"meta": "its meta", "blob": "the meta of its blob", "score": "its score"}
    what = " or ".join(names.get(name, name) for name in values)
    found = ", ".join(sorted({described(value) for value in values.get("meta", {}).values()}))
    raise InputError(
        f"document {id!r} cannot be stored: {what} cannot be read back equal{f' ({found})' if found else ''}; expected "
        "strings, numbers, booleans, None, dates, bytes, and lists, tuples, sets and dicts of them"
    )
