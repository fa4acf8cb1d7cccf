"""Small random rerankers of both kinds."""

from __future__ import annotations

from pathlib import Path

from tiny_models import build_tokenizer


def build_reranker(folder: Path, kind: str = "bert", *, labels: int = 1, marks: bool = True, seed: int = 0) -> Path:
    """A two-layer model: `bert`, `roberta` or `qwen3` as a classifier, `qwen3-lm` as one that answers yes or no."""
    import torch
    import transformers
    from transformers import AutoTokenizer

    build_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if marks:
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "yes", "no"], special_tokens=True)
        tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    shared = {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "num_labels": labels,
    }
    if kind.startswith("qwen3"):
        config = transformers.Qwen3Config(**shared, num_key_value_heads=2, head_dim=16)
        config.max_position_embeddings = 1024
        name = "Qwen3ForCausalLM" if kind == "qwen3-lm" else "Qwen3ForSequenceClassification"
    elif kind == "roberta":
        config = transformers.RobertaConfig(**shared | {"pad_token_id": 2, "max_position_embeddings": 259})
        name = "RobertaForSequenceClassification"
    else:
        config = transformers.BertConfig(**shared, pad_token_id=2)
        name = "BertForSequenceClassification"
    config.pad_token_id = tokenizer.pad_token_id
    getattr(transformers, name)(config).save_pretrained(folder)
    return folder
