"""What indexes to be merged must have in common, and one codebook for all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from searchkit.errors import InputError
from searchkit.indexer.rewriting import rewrite
from searchkit.indexer.store import Store
from searchkit.indexer.vectors.storage import Storage

VECTORS = ("model", "vectors_from", "format")
"""Settings that say what makes the vectors."""

SETTINGS = (*VECTORS, "chunk_tokens", "overlap", "language")
"""Settings of everything that indexes to be merged must have in common."""

_SHOWN = 40


def check_settings(
    folder: Path, mine: Mapping[str, Any], other: Path, theirs: Mapping[str, Any], names: tuple[str, ...] = SETTINGS
) -> None:
    """Raise InputError where two indexes differ in one of some settings."""
    for name in names:
        if (one := _bound(mine, name)) != (two := _bound(theirs, name)):
            raise InputError(
                f"{folder} and {other} differ in {name}: {_differing(mine, name, two)} and "
                f"{_differing(theirs, name, one)}; index both with the same model and options"
            )


def check_similarity(folder: Path, mine: Storage, other: Path, theirs: Storage) -> None:
    """Raise InputError where vectors of two indexes differ in their width or in how they are compared."""
    one, two = mine.similarity, theirs.similarity
    if (one.name, one.dim) != (two.name, two.dim):
        raise InputError(
            f"{folder} holds vectors of {one.dim} numbers compared by {one.name}, {other} of {two.dim} by {two.name}; "
            "they have no common order"
        )


def is_one(mine: Storage, theirs: Storage) -> bool:
    """Whether two indexes store vectors alike, by one codebook, so that codes of one mean the same in the other."""
    exact = mine.plan.recipe == theirs.plan.recipe == "flat"
    checksums = [storage.codebook and storage.codebook.stamp.checksum for storage in (mine, theirs)]
    return (
        mine.plan == theirs.plan
        and checksums[0] == checksums[1]
        and mine.keep_vectors == theirs.keep_vectors
        and (exact or mine.chosen == theirs.chosen)
    )


def take_over(store: Store, source: Store) -> None:
    """Store an index's vectors as another index does, by its codebook, in one commit; nothing where it does already.

    Raises:
        InputError: They hold vectors of different models, or the index has no vectors left to code again.
    """
    mine, theirs = store.storage, source.storage
    check_settings(store.folder, store.database.settings(), source.folder, source.database.settings(), VECTORS)
    check_similarity(store.folder, mine, source.folder, theirs)
    if is_one(mine, theirs):
        return
    parts = store.snapshot().segments
    if not all(part.keeps_vectors for part in parts):
        raise InputError(
            f"{store.folder} keeps no vectors beside its {mine.plan.spelling} codes, and codes made of codes would "
            "silently be worse; index the corpus again, into another folder"
        )
    if parts and theirs.plan.recipe != "flat" and mine.chosen != theirs.chosen:
        raise InputError(
            f"{store.folder} measures distances from other vectors than {source.folder}, so that no code means the "
            "same in both; index the corpus again, into another folder"
        )
    chosen = None if theirs.plan.recipe == "flat" else theirs.chosen
    rewrite(store, source.template(), keep_vectors=theirs.keep_vectors, tuning=theirs.tuning, similarity=chosen)


def _bound(settings: Mapping[str, Any], name: str) -> Any:
    """A setting, without where its model lies: what makes vectors is the same wherever it is installed."""
    value = settings.get(name)
    if name == "model" and isinstance(value, dict):
        return {key: each for key, each in value.items() if key not in ("model", "adapter")}
    return value


def _differing(settings: Mapping[str, Any], name: str, other: Any) -> str:
    """A setting for a message; of models their names, and in what they differ."""
    value = settings.get(name)
    if not isinstance(value, dict) or not isinstance(other, dict):
        return str(value["model"]) if isinstance(value, dict) else _shown(value)
    keys = [key for key, each in _bound(settings, name).items() if other.get(key) != each]
    return f"{value['model']} ({', '.join(f'{key} {_shown(value[key])}' for key in keys)})"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
