"""Small real models, built here from configs, and a corpus of thirty passages."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network fails at once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from searchkit.embedder import Embedder
from searchkit.records import Document

if TYPE_CHECKING:
    from searchkit.training.config import TrainConfig

SENTENCES = [
    "The bridge over the river was closed for repairs.",
    "Bread rises because yeast makes gas.",
    "A comet's tail always points away from the sun.",
    "Interest on the loan is paid every month.",
    "The orchestra tunes to the oboe.",
    "Bees tell each other where flowers are by dancing.",
    "A vaccine trains the immune system without the illness.",
    "The library lends tools as well as books.",
    "Salt lowers the freezing point of water.",
    "Sailors found their latitude from the height of the sun.",
]
TEXTS = [f"{sentence} {note}" for note in ("", "It is so.", "Nobody knew why.") for sentence in SENTENCES]


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


def build_model(folder: Path, kind: str = "mistral", *, seed: int = 0, bos: bool = True, eos: bool = True) -> Path:
    """A two-layer random-weight model of a real architecture, 64 wide, as transformers saves it."""
    import torch
    from transformers import BertConfig, BertModel, MistralConfig, MistralModel, Qwen3Config, Qwen3Model

    torch.manual_seed(seed)
    shared = {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 256,
        # Far from zero, so that texts differ by more than rounding.
        "initializer_range": 0.3,
    }
    decoder = {"num_key_value_heads": 2, "head_dim": 16, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "mistral":
        model = MistralModel(MistralConfig(**shared, **decoder))
    elif kind == "qwen3":
        model = Qwen3Model(Qwen3Config(**shared, **decoder))
    else:
        model = BertModel(BertConfig(**shared))
    model.save_pretrained(folder)
    build_tokenizer(folder, bos=bos, eos=eos)
    return folder


@pytest.fixture(scope="session")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("models") / "tiny-mistral", "mistral")


@pytest.fixture(scope="session")
def embedder(mistral: Path) -> Embedder:
    return Embedder(mistral, device="cpu", dtype="float32")


@pytest.fixture
def documents() -> list[Document]:
    return [Document(str(n), text, title=f"Note {n}", metadata={"n": n}) for n, text in enumerate(TEXTS)]


@pytest.fixture
def vectors() -> np.ndarray:
    """(40, 16) float32 unit rows."""
    rows = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training examples, all with one instruction, and a bad row."""
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [
        {"query": " ".join(text.split()[:5]), "positive": text, "negatives": [TEXTS[-1 - n]], "instruction": "Find it"}
        for n, text in enumerate(SENTENCES)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not json\n")
    return file


@pytest.fixture
def config(mistral: Path, pairs: Path, tmp_path: Path) -> TrainConfig:
    """A training run of a second or two, in eight steps."""
    from searchkit.training.config import TrainConfig

    return TrainConfig(
        sources=(str(pairs),), base=str(mistral), out=str(tmp_path / "out"), epochs=4, batch_size=5, chunk=64,
        learning_rate=1e-2, temperature=0.1, lora_rank=4, max_length=64, precision="float32",
    )  # fmt: skip
