"""The model that an index is bound to: loaded with the settings it was built with; any other model is rejected."""

from __future__ import annotations

import os
from collections.abc import Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from searchkit.errors import RemoteError, StoreError
from searchkit.models.conventions import Conventions, fingerprint
from searchkit.models.embedder import DEFAULT_MODEL, Embedder
from searchkit.models.remote.address import RemoteModel, is_remote, parse_remote
from searchkit.models.remote.runtime import RemoteRuntime, check_probes, decode_probes
from searchkit.validation import check_optional_text, check_text, checked_path, whole_number

NO_MODEL = (
    "{} holds vectors that its users made and has no model to embed texts with: give vectors with queries and "
    "documents (vector= and vectors= in Python; --vector, --vectors and --vector-field on the command line), or search "
    "with mode lexical"
)


FREE = frozenset({"model", "adapter", "instruction_shift"})
"""What may differ: a model may move, and how queries follow an instruction leaves the vectors of passages alone."""


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model that is not loaded yet: what the caller chose; the index knows the rest."""

    model: str | Path | None
    adapter: str | Path | None
    device: str | None
    dtype: str
    threads: int | None

    @property
    def named(self) -> bool:
        """Whether the caller named a model or an adapter."""
        return self.model is not None or self.adapter is not None

    def load(self, identity: dict[str, Any]) -> Embedder:
        """Load the model, and make sure that it is the one that the index was built with.

        Args:
            identity: What the index stores about its model.

        Raises:
            StoreError: It cannot be loaded, or differs.
        """
        try:
            embedder = Embedder(
                self.model or bound_name(identity),
                adapter=self.adapter or (None if self.model else identity["adapter"]),
                device=self.device,
                dtype=self.dtype,
                threads=self.threads,
                dim=identity["dim"],
                force_dim=True,
                # From the index: the model's folder may have other conventions by now.
                conventions=Conventions(
                    **{f.name: identity[f.name] for f in fields(Conventions) if f.name in identity}
                ),
            )
        except ValueError as error:
            raise StoreError(
                f"the index was built with {identity['model']}, which cannot be loaded: {error}. "
                "If the model has moved, name its folder with --model"
            ) from error
        check_model(identity, embedder)
        return embedder


def chosen_model(
    model: Embedder | str | Path | None,
    adapter: str | Path | None,
    device: str | None,
    dtype: str,
    threads: int | None,
) -> Embedder | ModelChoice:
    """The model that the caller of `open` gave, or what is needed to load it.

    Raises:
        InputError: An argument is of another type, or `threads` is below 1.
    """
    check_optional_text("device", device)
    check_text("dtype", dtype)
    if threads is not None:
        threads = whole_number("threads", threads, 1)
    for name, value in {"model": model, "adapter": adapter}.items():
        if not isinstance(value, str | Embedder | None):
            checked_path(name, value)
    return model if isinstance(model, Embedder) else ModelChoice(model, adapter, device, dtype, threads)


def located(identity: dict[str, Any], index: Path) -> dict[str, Any]:
    """What an index stores about its model, with the folders where model and adapter are now.

    An index stores absolute paths. A folder inside the index's, or beside it, is found there too, by the end of its
    path and the checksum of its weights, so that both may be moved or copied together.

    Args:
        identity: As it is stored.
        index: The index folder.
    """
    weights = {"model": "weights", "adapter": "adapter_weights"}
    moved = {
        name: _located(Path(identity[name]), index.resolve(), identity[weights[name]])
        for name in weights
        if identity.get(name) and Path(identity[name]).is_absolute() and weights[name] in identity
    }
    return identity | moved


def _located(stored: Path, index: Path, weights: str) -> str:
    ends = [Path(*stored.parts[n:]) for n in range(1, len(stored.parts))]
    # Path.is_dir() raises where one may not look.
    near = [place for base in (index.parent, index) for end in ends if os.path.isdir(place := base / end)]
    if stored in near:
        return str(stored)
    return str(next((place for place in near if _has_weights(place, weights)), stored))


def _has_weights(folder: Path, weights: str) -> bool:
    try:
        return fingerprint(folder) == weights
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # something else is there
        return False


def bound_name(identity: dict[str, Any]) -> str | RemoteModel:
    """The name of an index's model, marked as the index's where it is an address: see `RemoteModel.api_key`."""
    name = str(identity["model"])
    return parse_remote(name, stored=True) if is_remote(name) else name


def check_model(bound: dict[str, Any], embedder: Embedder) -> None:
    """Raise StoreError, naming the differences, unless a model is the one that an index was built with.

    A model on a server passes at any address if the vectors of the probe texts are the same.
    """
    defaults = {field.name: field.default for field in fields(Conventions) if field.default is not None}
    # Settings that earlier versions did not have are not in their indexes.
    bound, loaded = defaults | bound, defaults | embedder.identity()
    named = set(FREE)
    if "probes" in bound and isinstance(embedder.runtime, RemoteRuntime):
        try:
            check_probes(decode_probes(bound["probes"]), embedder.runtime.probes, embedder.name)
        except RemoteError as error:
            raise StoreError(str(error)) from error
        named.add("probes")
    if details := _differences(bound, loaded, named):
        if bound["model"] == loaded["model"] == DEFAULT_MODEL and bound.get("weights") != loaded.get("weights"):
            raise StoreError(
                f"the index was built with the built-in model of another version of searchkit, whose vectors differ "
                f"({details}); index the documents again (searchkit dump writes out those of the index), or search "
                "with the version that built it"
            )
        other = "its present version" if bound["model"] == loaded["model"] else loaded["model"]
        raise StoreError(
            f"the index was built with {bound['model']}, which differs from {other} ({details}); "
            "search with the model it was built with, or build another index"
        )


def differences(bound: dict[str, Any], other: dict[str, Any]) -> str:
    """In what a model differs from one that an index is bound to, by what two indexes store of them; "" for nothing."""
    defaults = {field.name: field.default for field in fields(Conventions) if field.default is not None}
    return _differences(defaults | bound, defaults | other, FREE)


def _differences(bound: dict[str, Any], other: dict[str, Any], named: Set[str]) -> str:
    keys = [key for key in bound.keys() | other.keys() if key not in named and bound.get(key) != other.get(key)]
    return "; ".join(f"{key}: index {_short(bound.get(key))}, model {_short(other.get(key))}" for key in sorted(keys))


def _short(value: object) -> str:
    """A value of a model's identity; a dozen digits tell checksums apart."""
    if isinstance(value, list):
        return f"{len(value)} vectors of probe texts"
    return repr(value[:12] if isinstance(value, str) and len(value) == 64 else value)
