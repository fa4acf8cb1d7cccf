"""Language models from GGUF files, llama.cpp's format, written as folders that transformers loads."""

from __future__ import annotations

import json
import math
from collections import Counter
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from searchkit.errors import InputError, MissingExtraError
from searchkit.models.gguf_header import Header, damaged, read_header
from searchkit.models.gguf_tokenizer import build_tokenizer, tokenizer_settings
from searchkit.new_folder import check_new, new_folder

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma3")
"""Decoders whose conversion is tested; SmolLM and most Mistral models call themselves llama in GGUF."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What a GGUF file held.

    Args:
        architecture: As the file names it.
        layers: Number of decoder layers.
        width: Of a hidden state, and so of a vector.
        vocabulary: Number of tokens.
        quantisation: The type of most weights, as Q4_1.
        bos: The token that begins every text; None without.
        eos: The end-of-sequence token; None without.
    """

    architecture: str
    layers: int
    width: int
    vocabulary: int
    quantisation: str
    bos: str | None
    eos: str | None


def import_gguf(file: Path, out: Path) -> Imported:
    """Write the model of a GGUF file as a transformers folder: weights in float16, config, tokenizer, chat template.

    The tokenizer is made from the file's vocabulary, merges and pre-tokenizer and checked against them. OUT gets its
    name when it is complete.

    Args:
        file: The file; of a split one, all parts joined by llama-gguf-split.
        out: A new folder.

    Raises:
        InputError: It is no GGUF file, is truncated, or holds what cannot be converted; or OUT exists.
        MissingExtraError: The package gguf, or torch, is not installed.
    """
    check_new(out)
    header = read_header(file)
    values = header.values
    _check(file, values, [tensor.name for tensor in header.tensors])
    kinds = Counter(kind for kind, tensor in zip(_kinds(file, header), header.tensors, strict=True) if tensor.shape[1:])
    tokenizer = build_tokenizer(values, str(file))
    with new_folder(out) as folder:
        config = _write_model(file, values, folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = tokenizer_settings(values)
        (folder / "tokenizer_config.json").write_text(
            json.dumps(settings, indent=1, ensure_ascii=False) + "\n", "utf-8"
        )
    return Imported(
        architecture=values["general.architecture"], layers=config.num_hidden_layers, width=config.hidden_size,
        vocabulary=tokenizer.get_vocab_size(), quantisation=kinds.most_common(1)[0][0],
        bos=settings.get("bos_token") if settings["add_bos_token"] else None, eos=settings.get("eos_token"),
    )  # fmt: skip


def _kinds(file: Path, header: Header) -> list[str]:
    """The type of every tensor, by name; InputError if one is unknown here or reaches past the end of the file."""
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"reading {file} needs {error.name}: pip install 'searchkit[gguf]'", name=error.name
        ) from error
    size, kinds = file.stat().st_size, []
    for tensor in header.tensors:
        try:
            kind = GGMLQuantizationType(tensor.kind)
        except ValueError as error:
            raise InputError(
                f"{file} is quantised in a way that the installed gguf does not know ({error}); use a file in F16, "
                "Q8_0, Q6_K, Q5_K, Q4_K or Q4_0, or a newer gguf"
            ) from error
        block, width = GGML_QUANT_SIZES[kind]
        end = header.weights + tensor.start + math.prod(tensor.shape) // block * width
        if end > size:
            raise damaged(file, f"{tensor.name} ends at byte {end}")
        kinds.append(kind.name)
    return kinds


def _check(file: Path, values: dict[str, Any], tensors: list[str]) -> None:
    """Refuse what would be converted wrongly, or not at all, and say what it is."""
    architecture = values.get("general.architecture")
    if values.get("general.type", "model") != "model":
        raise InputError(
            f"{file} is of type {values['general.type']!r}, not a model; import the model that it belongs to"
        )
    if values.get("split.count", 0) > 1:
        raise InputError(
            f"{file} is one of {values['split.count']} parts; join them first: llama-gguf-split --merge FIRST JOINED"
        )
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{file} holds a model of architecture {architecture!r}; those that can be imported are "
            f"{', '.join(ARCHITECTURES)}"
        )
    if not tensors:
        raise InputError(f"{file} holds a vocabulary and no weights; use the model's own file")
    scaling = values.get(f"{architecture}.rope.scaling.type", "none")
    if "rope_freqs.weight" in tensors or scaling not in ("none", ""):
        raise InputError(
            f"{file} scales its rotary embedding ({scaling if scaling != 'none' else 'rope_freqs.weight'}), which "
            "transformers does not read from GGUF; its vectors of long texts would be wrong. Use the model's "
            "safetensors"
        )


def _write_model(file: Path, values: dict[str, Any], out: Path) -> Any:
    """Write weights and config through transformers' reader, and return the config."""
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from searchkit.models.torch_runtime import quiet
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"importing {file} needs {error.name}: pip install 'searchkit[gguf]'", name=error.name
        ) from error
    causal: Any = AutoModelForCausalLM
    with quiet(), redirect_stderr(StringIO()):  # a bar of its own, which no setting switches off
        place: dict[str, Any] = {"pretrained_model_name_or_path": file.absolute().parent, "gguf_file": file.name}
        try:
            config = AutoConfig.from_pretrained(**place)
            # transformers reads it for some architectures only.
            if key_length := values.get(f"{values['general.architecture']}.attention.key_length"):
                config.head_dim = key_length
            model, loaded = causal.from_pretrained(
                **place, config=config, dtype=torch.float16, output_loading_info=True
            )
        except NotImplementedError as error:  # gguf's, for a type that it cannot dequantise
            raise InputError(
                f"{file} is quantised in a way that gguf cannot undo ({error}); use another file"
            ) from error
        except (ValueError, KeyError, IndexError, RuntimeError) as error:  # whatever a strange file makes it stumble at
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"{file} cannot be read by transformers ({type(error).__name__}: {reason}); use another file"
            ) from error
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise InputError(f"{file} lacks {len(missing)} of the model's weights, such as {missing[0]}; use another file")
    if not all(bool(torch.isfinite(weights).all()) for weights in model.parameters()):
        raise InputError(f"{file} has weights that are not finite in float16; it is damaged, or needs another format")
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights that are written are not quantised
    model.hf_quantizer = None
    if hasattr(config, "_model_name_or_path"):
        del config._model_name_or_path  # the file's title
    with quiet():
        model.save_pretrained(out)
    return config
