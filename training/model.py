"""The model under training: made ready, given adapters, saved so that this project and others load it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from searchkit.embedder import Embedder, find_model
from searchkit.prompts import E5_TEMPLATE
from searchkit.runtime_onnx import MODEL_FILE
from searchkit.runtime_torch import TorchRuntime
from searchkit.training.config import TrainConfig
from searchkit.training.export import unpack

_POOLING_NAMES = {"last": "lasttoken", "cls": "cls", "mean": "mean", "weighted-mean": "weightedmean", "max": "max"}
_OLD_POOLING_KEYS = {
    "lasttoken": "pooling_mode_lasttoken",
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "max": "pooling_mode_max_tokens",
}


def prepare(config: TrainConfig, work: Path) -> Embedder:
    """The base model as an embedder whose weights, in float32, can be trained.

    Args:
        config: Names the base, and how its pooling, attention and length differ from the base's own.
        work: Folder for a copy of the base where its files must differ.
    """
    folder, _ = find_model(config.base)
    if (folder / MODEL_FILE).is_file():
        unpack(folder, work / "unpacked")
        folder = work / "unpacked"
    if config.causal:
        folder = _causal_copy(folder, work / "causal")
    embedder = Embedder(folder, dtype="float32")
    conventions = embedder.conventions
    longest = min(config.max_length, embedder.runtime.longest or config.max_length)
    embedder.conventions = replace(conventions, pooling=config.pooling or conventions.pooling, max_length=longest)
    return embedder


def _causal_copy(folder: Path, copy: Path) -> Path:
    """The same model with a config that says decoder; in transformers that masks what comes after a token."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config.update(is_decoder=True, use_cache=False)
    (copy / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return copy


def attach_lora(model: Any, rank: int, alpha: int | None) -> Any:
    """Put LoRA adapters on all linear layers, and nothing else to train.

    Args:
        model: A transformers model.
        rank: Of every adapter.
        alpha: Scales them; None is twice the rank.

    Raises:
        ValueError: The model has no linear layers to adapt.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    names = sorted({name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)})
    names = [name for name in names if not name.startswith("pooler.")]
    if not names:
        raise ValueError(f"{type(model).__name__} has no linear layers to put adapters on; train all weights: --rank 0")
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, target_modules=names))
    # A name that peft did not find would stay as it was without a word.
    expected = rank * _widths(adapted)
    found = trainable(adapted)
    if found != expected:
        raise ValueError(f"adapters have {found} weights, expected {expected}; some layers were not adapted")
    return adapted


def _widths(adapted: Any) -> int:
    """Inputs and outputs of all linear layers, with an adapter or without."""
    import torch

    return sum(
        module.in_features + module.out_features
        for name, module in adapted.named_modules()
        if isinstance(module, torch.nn.Linear) and "lora_" not in name and "pooler." not in name
    )


def torch_model(embedder: Embedder) -> Any:
    """The transformers model behind an embedder; raises ValueError when it is an exported one."""
    if not isinstance(embedder.runtime, TorchRuntime):
        raise ValueError(f"{embedder.name} is an exported model; use the model it was exported from")
    return embedder.runtime.model


def trainable(model: Any) -> int:
    """How many weights get a gradient."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def save(embedder: Embedder, out: Path, *, card: str, default_instruction: str | None, dims: tuple[int, ...]) -> None:
    """Write a folder that loads here and in sentence-transformers: weights, tokenizer, pooling, prompts, card.

    Adapters are merged into the weights, and kept beside them in ``adapter/``.

    Args:
        embedder: The trained model.
        out: Folder to write.
        card: Text of README.md.
        default_instruction: What a query without an instruction is given from now on; None gives it none.
        dims: Matryoshka widths it was trained for.
    """
    model: Any = torch_model(embedder)
    conventions = embedder.conventions
    out.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(out / "adapter")
        model = model.merge_and_unload()
    model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (embedder.folder / name).is_file():
            shutil.copy2(embedder.folder / name, out / name)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": n,
            "name": str(n),
            "path": "" if n == 0 else f"{n}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for n, kind in enumerate(kinds)
    ]
    pooling = _POOLING_NAMES[conventions.pooling]
    _write(out / "modules.json", modules)
    (out / "1_Pooling").mkdir(exist_ok=True)
    _write(
        out / "1_Pooling" / "config.json",
        {"word_embedding_dimension": embedder.dim, **{key: name == pooling for name, key in _OLD_POOLING_KEYS.items()}},
    )
    (out / "2_Normalize").mkdir(exist_ok=True)
    _write(out / "sentence_bert_config.json", {"max_seq_length": conventions.max_length, "do_lower_case": False})
    template = (conventions.instructed or E5_TEMPLATE).partition("{query}")[0]
    query = template.replace("{instruction}", default_instruction) if default_instruction else conventions.query_prefix
    settings: dict[str, Any] = {"prompts": {"query": query, "document": conventions.document_prefix}}
    if dims:
        settings["matryoshka_dims"] = sorted({*dims, embedder.dim})
    _write(out / "config_sentence_transformers.json", settings)
    (out / "README.md").write_text(card, encoding="utf-8")


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
