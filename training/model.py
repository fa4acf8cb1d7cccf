"""The model under training: loaded, made trainable, and saved so that this project and others can load it."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from searchkit.errors import InputError
from searchkit.models.conventions import conventions_of, dense_folders, is_embedder
from searchkit.models.embedder import Embedder
from searchkit.models.location import family_name, find_model
from searchkit.models.onnx_runtime import MODEL_FILE
from searchkit.models.runtime import load_errors
from searchkit.models.torch_runtime import BASE_CONFIG, TorchRuntime, is_decoder, quiet, sees_ahead
from searchkit.training.config import TrainConfig
from searchkit.training.export import unpack
from searchkit.training.files import read_json, write_json
from searchkit.training.layout import write_layout

# What config.json has to say. transformers reads `is_decoder` for encoders such as BERT and, from 5.2 on, `is_causal`
# for decoders; sentence-transformers uses the same file.
ATTENTION: dict[str, dict[str, bool]] = {
    "causal": {"is_causal": True, "is_decoder": True},
    "bidirectional": {"is_causal": False, "is_decoder": False},
}


def lay_out(config: TrainConfig, work: Path) -> None:
    """Write into `work` those of the base's files that have to differ: unpacked weights, a changed config.json.

    One of several processes calls this, before any of them calls `prepare`.

    Args:
        config: As for `prepare`.
        work: Folder for the files; its former content is removed.
    """
    shutil.rmtree(work, ignore_errors=True)
    folder, _ = find_model(config.base)
    if (folder / MODEL_FILE).is_file():
        unpack(folder, work / "unpacked")
        folder = work / "unpacked"
    if config.attention:
        base = work / "base"
        base.mkdir(parents=True)
        for file in folder.iterdir():
            (base / file.name).symlink_to(file.resolve())
        values = read_json(folder / "config.json")
        (base / "config.json").unlink()
        write_json(base / "config.json", {**values, **ATTENTION[config.attention], "use_cache": False})


def prepare(config: TrainConfig, work: Path, *, device: str | None = None) -> Embedder:
    """The base model as an embedder with float32 weights.

    Args:
        config: Names the base, and how pooling, EOS, attention, queries and length differ from the base's own.
        work: The folder that `lay_out` wrote to.
        device: Where the weights go; None takes the best device available.

    Raises:
        InputError: The model does not support the requested attention.
    """
    from transformers import AutoConfig

    folder, name = find_model(config.base)
    if (folder / MODEL_FILE).is_file():
        folder = work / "unpacked"
    family = family_name(name)  # the base's, not the copy's; another attention does not change the pooling
    with load_errors(name):
        decoder = is_decoder(AutoConfig.from_pretrained(folder))
        conventions = conventions_of(folder, family, decoder=decoder)
    conventions = replace(conventions, pooling=config.pooling or conventions.pooling)
    # The tokenizer of a language model does not append EOS, and without it the last token is just any word. An embedder
    # that is trained further keeps what it was trained with.
    by_default = decoder and conventions.pooling == "last" and not is_embedder(folder, family)
    append_eos = (by_default or conventions.append_eos) if config.append_eos is None else config.append_eos
    conventions = replace(conventions, append_eos=append_eos)
    if config.attention:
        folder = work / "base"
    embedder = Embedder(folder, dtype="float32", device=device, conventions=conventions)
    if config.attention and sees_ahead(torch_model(embedder)) != (config.attention == "bidirectional"):
        raise InputError(
            f"this version of transformers cannot make {type(torch_model(embedder)).__name__} {config.attention}; "
            "keep the base's attention, or choose another base"
        )
    embedder.conventions = replace(
        conventions,
        query_repeats=config.query_repeats or conventions.query_repeats,
        max_length=min(config.max_length, embedder.runtime.longest or config.max_length),
    )
    return embedder


def make_trainable(model: Any, config: TrainConfig) -> Any:
    """Switch off dropout, attach adapters or freeze what is not trained; returns the model to train."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if config.gradient_checkpointing:
        # Reentrant checkpointing loses the gradient where the inputs need none, as under LoRA.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # its new name
        enable({"use_reentrant": False})
        model.enable_input_require_grads()
    if config.lora_rank:
        model = attach_lora(model, config.lora_rank, config.lora_alpha)
        model.peft_config["default"].base_model_name_or_path = find_model(config.base)[1]
        return model
    for parameter in model.get_input_embeddings().parameters():
        parameter.requires_grad = False  # a small dataset would move its own words away from all others
    for name, parameter in model.named_parameters():
        if name.startswith("pooler."):
            parameter.requires_grad = False
    return model


def attach_lora(model: Any, rank: int, alpha: int | None) -> Any:
    """Attach LoRA adapters to all linear layers, and freeze everything else.

    Args:
        model: A transformers model.
        rank: Rank of the adapters.
        alpha: Scale of the adapters; None is twice the rank.

    Raises:
        InputError: The model has no linear layers.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    names = sorted({name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)})
    names = [name for name in names if not name.startswith("pooler.")]
    if not names:
        raise InputError(f"{type(model).__name__} has no linear layers for adapters; train all weights: --rank 0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft and transformers warn about each other's old names
        adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, target_modules=names))
    # peft silently skips names that it does not find.
    expected, actual = rank * _widths(adapted), trainable(adapted)
    if actual != expected:
        raise InputError(f"the adapters have {actual} weights, expected {expected}; some layers were not adapted")
    return adapted


def _widths(adapted: Any) -> int:
    """The sum of inputs and outputs of all linear layers, with or without an adapter."""
    import torch

    return sum(
        module.in_features + module.out_features
        for name, module in adapted.named_modules()
        if isinstance(module, torch.nn.Linear) and "lora_" not in name and "pooler." not in name
    )


def torch_model(embedder: Embedder) -> Any:
    """The transformers model behind an embedder.

    Raises:
        InputError: It is an exported model.
    """
    if not isinstance(embedder.runtime, TorchRuntime):
        raise InputError(f"{embedder.name} is an exported model; use the model it was exported from")
    return embedder.runtime.model


def trainable(model: Any) -> int:
    """The number of weights that get a gradient."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def save(
    embedder: Embedder,
    out: Path,
    *,
    card: str,
    default_instruction: str | None,
    dims: tuple[int, ...],
    attention: str | None = None,
) -> None:
    """Write a folder that loads here and in sentence-transformers: weights, tokenizer, pooling, prompts, card.

    Adapters are merged into the weights, and also saved in ``adapter/``, with the same settings. Dense modules, which
    are not trained, go along as they are.

    Args:
        embedder: The trained model.
        out: Folder to write.
        card: Text of README.md.
        default_instruction: For queries without an instruction from now on; None gives them none.
        dims: Matryoshka widths that were trained.
        attention: A key of :data:`ATTENTION` if the base's own was changed; saved with the adapter.
    """
    model: Any = torch_model(embedder)
    dense = dense_folders(embedder.settings_folder)
    out.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "merge_and_unload"):
        # embeddings are never trained here; by default peft asks the hub whether the base has others
        model.save_pretrained(out / "adapter", save_embedding_layers=False)
        write_layout(embedder, out / "adapter", default_instruction=default_instruction, dims=dims, dense=dense)
        if attention:
            write_json(out / "adapter" / BASE_CONFIG, ATTENTION[attention])
        model = model.merge_and_unload()
    with quiet():
        model.save_pretrained(out)
    (out / "README.md").write_text(card, encoding="utf-8")
    write_layout(embedder, out, default_instruction=default_instruction, dims=dims, dense=dense)
