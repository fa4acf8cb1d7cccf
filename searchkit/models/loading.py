"""A model by its name: where it is, what computes, by which conventions, and what tells it from others."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from searchkit.errors import InputError
from searchkit.models.conventions import (
    MODULES,
    Conventions,
    code_fingerprint,
    conventions_of,
    fingerprint,
    is_embedder,
)  # fmt: skip
from searchkit.models.framing import frame_of
from searchkit.models.location import family_name, find_adapter, find_model
from searchkit.models.remote.address import RemoteModel, is_remote, parse_remote
from searchkit.models.remote.runtime import RemoteRuntime, encode_probes
from searchkit.models.runtime import Runtime, load_errors, load_runtime

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to compute.

    Args:
        name: As an index records it.
        runtime: What computes.
        conventions: Those of its settings, its family, or whoever loads it.
        frame: The special tokens before and after every text.
        folder: Its files; None if they are on a server.
        adapter: Those of its adapter, if it has one.
    """

    name: str
    runtime: Runtime
    conventions: Conventions
    frame: tuple[list[int], list[int]]
    folder: Path | None = None
    adapter: Path | None = None
    adapter_name: str | None = None

    @property
    def files(self) -> Path:
        """The folder; InputError if there is none."""
        if self.folder is None:
            raise InputError(f"the files of {self.name} are on its server; this needs them here: name a model folder")
        return self.folder

    def width(self, dim: int | None, *, force: bool) -> int:
        """How wide vectors are that keep `dim` leading dimensions; InputError if the model was not trained for it."""
        full, smallest = self.runtime.hidden_size, self.conventions.smallest_dim
        width = dim or full
        if not 1 <= width <= full:
            raise InputError(f"dim is {dim}; {self.name} gives vectors of {full} dimensions, so 1 to {full}")
        if width < full and not force and (smallest is None or width < smallest):
            trained = f"down to {smallest} dimensions" if smallest else "at its full width only"
            raise InputError(
                f"dim is {dim} but {self.name} was trained {trained}, and truncating it further costs quality; "
                "force it with --force-dim if you have measured that"
            )
        return width

    def fingerprints(self) -> dict[str, Any]:
        """Of its files, or of what its server computes, as an index records them."""
        if isinstance(self.runtime, RemoteRuntime):
            return {"probes": encode_probes(self.runtime.probes)}
        found = {"weights": fingerprint(self.files)}
        if getattr(self.runtime, "own_code", False):
            found["code"] = code_fingerprint(self.files)
        if self.adapter is not None:
            found["adapter_weights"] = fingerprint(self.adapter)
        return found


def load_model(
    model: str | Path | RemoteModel,
    *,
    adapter: str | Path | None,
    device: str | None,
    dtype: str,
    threads: int | None,
    conventions: Conventions | None,
) -> LoadedModel:
    """Load a model; arguments and errors are those of :class:`searchkit.models.embedder.Embedder`."""
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; expected 1 or more, or None to leave it to the runtime")
    if is_remote(str(model)):
        remote = model if isinstance(model, RemoteModel) else parse_remote(str(model))
        if adapter is not None or dtype != "auto":
            came = "an adapter" if adapter is not None else f"dtype {dtype}"
            raise InputError(f"{came} came with {remote}; what its server computes with is set there")
        server = RemoteRuntime(remote, threads)
        return LoadedModel(str(remote), server, conventions or server.conventions(), frame=([], []))
    folder, name = find_model(str(model))
    adapter_folder, adapter_name = (None, None) if adapter is None else find_adapter(str(adapter))
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        with load_errors(name):
            base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        raise InputError(f"{name} is an adapter, not a model; use --model {base} --adapter {name}")
    runtime = load_runtime(folder, name, adapter_folder, device, dtype, threads)
    settings, family = settings_of(folder, adapter_folder), family_name(name)
    if runtime.decoder and not (conventions or adapter or is_embedder(settings, family)):
        _warn_untrained(name)
    with load_errors(name):
        conventions = conventions or conventions_of(settings, family, decoder=runtime.decoder)
    frame = frame_of(runtime, conventions, name)
    return LoadedModel(name, runtime, conventions, frame, folder, adapter_folder, adapter_name)


def settings_of(folder: Path, adapter: Path | None) -> Path:
    """Where a model's settings are: an adapter written by `searchkit train` has its own, which may differ from them."""
    return adapter if adapter and (adapter / MODULES).is_file() else folder


@cache  # one warning per model
def _warn_untrained(name: str) -> None:
    logger.warning(
        "%s is a language model that was not trained to embed, so its vectors search poorly. "
        "Train it first: searchkit train PAIRS --base %s --out OUT",
        name, name,
    )  # fmt: skip
