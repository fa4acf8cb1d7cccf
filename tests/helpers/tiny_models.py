"""Small random models of real architectures, built from their configs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from texts import TEXTS

if TYPE_CHECKING:
    pass


def build_tokenizer(folder: Path, *, bos: bool = True, eos: bool = True) -> None:
    """A byte-level BPE tokenizer trained on the sentences; `bos` and `eos` say what it puts around a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<unk>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    template = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def build_model(
    folder: Path, kind: str = "mistral", *, seed: int = 0, bos: bool = True, eos: bool = True, layers: int = 2
) -> Path:
    """A random-weight model of a real architecture, 64 wide, as transformers saves it."""
    import torch
    import transformers
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    shared = {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 256,
        # Far from zero, so that texts differ by more than rounding.
        "initializer_range": 0.3,
    }
    decoder = {"num_key_value_heads": 2, "head_dim": 16, "bos_token_id": 1, "eos_token_id": 2}
    names = {"mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}
    if kind in names:
        config = getattr(transformers, f"{names[kind]}Config")(**shared, **decoder)
        model = getattr(transformers, f"{names[kind]}Model")(config)
    elif kind == "roberta":
        # It numbers positions from the padding token's id, and tells padding by it.
        shared |= {"pad_token_id": 0, "max_position_embeddings": 257}
        model = transformers.RobertaModel(transformers.RobertaConfig(**shared))
    elif kind == "xlm-roberta":
        shared |= {"pad_token_id": 0, "max_position_embeddings": 257}
        model = transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**shared))
    elif kind == "mpnet":
        model = transformers.MPNetModel(transformers.MPNetConfig(**shared))
    elif kind == "distilbert":
        own = {"dim": 64, "n_layers": layers, "n_heads": 4, "hidden_dim": 96}
        common = {name: shared[name] for name in ("vocab_size", "max_position_embeddings", "initializer_range")}
        model = transformers.DistilBertModel(transformers.DistilBertConfig(**common, **own))
    elif kind == "nomic":
        model = transformers.NomicBertModel(transformers.NomicBertConfig(**shared))
    elif kind in ("gemma3", "causal-gemma3"):  # as EmbeddingGemma, every token sees all others, or as Gemma
        config = transformers.Gemma3TextConfig(
            **shared, **decoder, use_bidirectional_attention=kind == "gemma3", sliding_window=16,
            layer_types=["sliding_attention", "full_attention" if kind == "gemma3" else "sliding_attention"],
        )  # fmt: skip
        model = transformers.Gemma3TextModel(config)
    else:
        model = BertModel(BertConfig(**shared, is_decoder=kind == "causal-bert"))
    model.save_pretrained(folder)
    # MPNet takes token 1 for padding, which is "<s>" here.
    build_tokenizer(folder, bos=bos and kind != "mpnet", eos=eos)
    return folder
