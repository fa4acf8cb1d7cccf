"""The language model that the experiment starts from, whole or its first layers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from searchkit.errors import InputError
from searchkit.models.conventions import is_embedder
from searchkit.models.location import family_name, find_model
from searchkit.new_folder import new_folder


def language_model(base: str) -> Path:
    """The folder of a language model.

    Raises:
        InputError: It is an embedder already.
    """
    folder, name = find_model(base)
    if is_embedder(folder, family_name(name)):
        raise InputError(f"{name} embeds already; the experiment starts from a language model (see import-gguf)")
    return folder


def first_layers(folder: Path, out: Path, layers: int) -> None:
    """Write a language model without its later layers and without its head.

    Raises:
        InputError: It has fewer layers, or keeps them elsewhere.
    """
    from transformers import AutoModel

    from searchkit.models.torch_runtime import quiet

    model: Any
    with quiet():
        model = AutoModel.from_pretrained(folder, dtype="auto")
        if not hasattr(model, "layers") or len(model.layers) < layers:
            have = f"{len(model.layers)} layers" if hasattr(model, "layers") else "no list of layers"
            raise InputError(f"{folder} has {have}, so its first {layers} cannot be taken")
        model.layers = model.layers[:layers]
        model.config.num_hidden_layers = layers
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = model.config.layer_types[:layers]
    with new_folder(out) as new:
        with quiet():
            model.save_pretrained(new)
        for file in folder.iterdir():
            if file.is_file() and not (new / file.name).exists() and file.suffix not in (".safetensors", ".bin"):
                shutil.copy2(file, new / file.name)
