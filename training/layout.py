"""A model's settings in the layout of sentence-transformers, which say how the model is to be used."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.models.conventions import MODULES, SETTINGS, Conventions
from searchkit.models.embedder import Embedder
from searchkit.training.files import read_json, write_json

_POOLING_NAMES = {"last": "lasttoken", "cls": "cls", "mean": "mean", "weighted-mean": "weightedmean", "max": "max"}
_OLD_POOLING_KEYS = {
    "lasttoken": "pooling_mode_lasttoken",
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "max": "pooling_mode_max_tokens",
}


def write_layout(
    embedder: Embedder,
    out: Path,
    *,
    default_instruction: str | None,
    dims: tuple[int, ...] | None = None,
    dense: Sequence[Path] = (),
) -> None:
    """Write the tokenizer, pooling, lengths and prompts of an embedder; modules.json, which marks it as complete, last.

    Args:
        embedder: Has the settings.
        out: Folder to write into.
        default_instruction: For queries without an instruction; None gives them none.
        dims: Matryoshka widths besides the full one; None takes the embedder's.
        dense: Folders of its Dense modules, which are copied.
    """
    conventions = embedder.conventions
    out.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(embedder, out)
    pooling = _POOLING_NAMES[conventions.pooling]
    (out / "1_Pooling").mkdir(exist_ok=True)
    width = read_json(dense[0] / "config.json")["in_features"] if dense else embedder.dim
    config = {"word_embedding_dimension": width}
    config |= {key: name == pooling for name, key in _OLD_POOLING_KEYS.items()}
    if not conventions.pool_prompt:
        config["include_prompt"] = False
    write_json(out / "1_Pooling" / "config.json", config)
    for number, folder in enumerate(dense, 2):
        shutil.copytree(folder, out / f"{number}_Dense", dirs_exist_ok=True)
    (out / f"{2 + len(dense)}_Normalize").mkdir(exist_ok=True)
    write_json(out / "sentence_bert_config.json", {"max_seq_length": conventions.max_length, "do_lower_case": False})
    template = conventions.instructed.partition("{query}")[0]
    query = template.replace("{instruction}", default_instruction) if default_instruction else conventions.query_prefix
    settings: dict[str, Any] = {"prompts": {"query": query, "document": conventions.document_prefix}}
    if conventions.instructed != Conventions().instructed and not default_instruction:
        settings["instructed"] = conventions.instructed  # a prompt does not show it
    if conventions.append_eos or conventions.pooling == "last":  # takes precedence over the table of families
        settings["append_eos"] = conventions.append_eos
    if conventions.query_repeats > 1:
        settings["query_repeats"] = conventions.query_repeats
    if dims is None:
        dims = (conventions.smallest_dim,) if conventions.smallest_dim else ()
    if dims:
        settings["matryoshka_dims"] = sorted({*dims, embedder.dim})
    write_json(out / SETTINGS, settings)
    write_modules(out, len(dense))


def write_linear(matrix: np.ndarray, folder: Path) -> None:
    """Write a linear map as a Dense module of sentence-transformers.

    Args:
        matrix: (inputs, outputs) float32.
        folder: A new folder.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    weights = {"linear.weight": np.ascontiguousarray(matrix.T)}
    save_file(weights, str(folder / "model.safetensors"), {"format": "pt"})
    inputs, outputs = matrix.shape
    config = {"in_features": inputs, "out_features": outputs, "bias": False}
    write_json(folder / "config.json", {**config, "activation_function": "torch.nn.modules.linear.Identity"})


def write_modules(out: Path, dense: int) -> None:
    """Write modules.json of a model with some Dense modules."""
    kinds = ("Transformer", "Pooling", *["Dense"] * dense, "Normalize")
    modules = [
        {
            "idx": n,
            "name": str(n),
            "path": "" if n == 0 else f"{n}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for n, kind in enumerate(kinds)
    ]
    write_json(out / MODULES, modules)


def _write_tokenizer(embedder: Embedder, out: Path) -> None:
    """Write the tokenizer's files, changed if the model needs special tokens that the tokenizer does not add."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (embedder.settings_folder / name).is_file():
            shutil.copy2(embedder.settings_folder / name, out / name)
    file = out / "tokenizer_config.json"
    settings = read_json(file) if file.is_file() else {}
    changes = _padding(embedder, settings, out)
    tokenizer = embedder.runtime.tokenizer
    probe = "a b"
    if tokenizer.encode(probe, add_special_tokens=True).ids != embedder.tokenize([probe])[0]:
        from tokenizers import Tokenizer
        from tokenizers.processors import TemplateProcessing

        tokenizer = Tokenizer.from_str(tokenizer.to_str())  # the embedder's own stays as it is
        before, after = ([str(tokenizer.id_to_token(id)) for id in marks] for marks in embedder.frame)
        template = [*before, "$A", *after]
        marks = [(mark, tokenizer.token_to_id(mark)) for mark in {*template} - {"$A"}]
        tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=marks)
        tokenizer.save(str(out / "tokenizer.json"))
        # Tokenizers of the Llama kind follow this flag, not tokenizer.json.
        changes["add_eos_token"] = embedder.frame[1][-1:] == [embedder.runtime.eos_id]
    if changes:
        write_json(file, {**settings, **changes})


def _padding(embedder: Embedder, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """A padding token where the tokenizer names none, as Mistral's and Llama's: sentence-transformers needs one.

    Which one does not matter, since padding is masked.
    """
    special = out / "special_tokens_map.json"
    named = settings.get("pad_token") or (read_json(special).get("pad_token") if special.is_file() else None)
    id = embedder.runtime.eos_id
    token = None if named or id is None else embedder.runtime.tokenizer.id_to_token(id)
    return {"pad_token": token} if token else {}
