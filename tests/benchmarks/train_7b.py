"""Training and embedding with a model of Mistral-7B's shape on one big GPU: tokens/s, utilisation, peak memory.

    python tests/benchmarks/train_7b.py [--batch-size 2048] [--chunk 64] [--steps 2]
    python tests/benchmarks/train_7b.py --tiny     # the same code on the CPU, in seconds: two layers, a batch of 8

Weights and texts are random, so nothing is downloaded: 32 layers of width 4,096, bfloat16, LoRA of rank 16 on every
linear layer (41,943,040 weights), non-reentrant checkpointing, queries and passages of 512 tokens, GradCache in chunks.
The model is first saved to a temporary folder (15 GB on disk) and opened like a user's model.

Utilisation, where F is the number of operations of one forward pass per token:

    F = 2 * weights of the linear layers + 2 * layers * width * tokens per text     (attention, halved by causality)
    embedding: F * tokens / seconds / peak
    training: 2 F * tokens / seconds / peak

Training needs a forward pass and, as the base is frozen, the activation half of a backward pass: 2 F. The work actually
done is 4 F, as GradCache and checkpointing each repeat the forward pass; that figure is printed too. The adapters'
operations, below 1 %, are ignored. The peak is what a large bfloat16 product reaches on this GPU, or --peak-tflops.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

TRAINED = 41_943_040  # 16 * the inputs and outputs of 32 layers' linear maps
NEEDED = 70  # GiB: 14.5 GB of weights, and the activations of a chunk; what an 80 GB GPU shows as its own
SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def build(folder: Path, shape: dict[str, int], device: str) -> None:
    """Save a Mistral model with random weights, and a tokenizer whose words are w3, w4, ... to its last token."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModel, MistralConfig, PreTrainedTokenizerFast

    marks = {"<unk>": 0, "<s>": 1, "</s>": 2}
    words = {f"w{n}": n for n in range(len(marks), shape["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel({**marks, **words}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    with torch.device(device):  # drawn there, where it takes seconds
        model = AutoModel.from_config(MistralConfig(**shape, max_position_embeddings=4096), dtype=torch.bfloat16)
    model.save_pretrained(folder)


def random_texts(count: int, tokens: int, vocabulary: int, seed: int) -> list[str]:
    """Texts of so many tokens, the EOS that every text gets counted."""
    ids = np.random.default_rng(seed).integers(3, vocabulary, (count, tokens - 1))
    return [" ".join(f"w{n}" for n in row) for row in ids]


def forward_operations(model: Any, tokens: int) -> float:
    """F of this file's description."""
    import torch

    config = model.config
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    return float(2 * weights + 2 * config.num_hidden_layers * config.hidden_size * tokens)


def measured_peak(device: Any, size: int) -> float:
    """Operations a second of a bfloat16 product of two (size, size) matrices."""
    import torch

    matrix = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    seconds = []
    for _ in range(8):
        began = now(device)
        matrix @ matrix
        seconds.append(now(device) - began)
    return float(2 * size**3 / median(seconds[3:]))


def now(device: Any) -> float:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_gib(device: Any) -> float:
    """Most memory held since the last call on a GPU, since the start elsewhere."""
    import torch

    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return float(peak)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def embedding(embedder: Any, texts: list[str], tokens: int, peak: float) -> dict[str, float]:
    """Passages a second, by the project's own encoding."""
    device = embedder.runtime.device
    embedder.encode_passages(texts[: max(1, len(texts) // 8)])
    began = now(device)
    embedder.encode_passages(texts)
    rate = len(texts) / (now(device) - began)
    return {
        "documents_per_second": rate,
        "tokens_per_second": rate * tokens,
        "utilisation": rate * tokens * forward_operations(embedder.runtime.model, tokens) / peak,
        "peak_gib": peak_gib(device),
    }


def training(embedder: Any, arguments: argparse.Namespace, peak: float) -> dict[str, Any]:
    """Steps of the contrastive loss over the adapters, put together as `searchkit train` does."""
    import torch
    import torch.nn.functional as F

    from searchkit.training.gradcache import cached_backward
    from searchkit.training.loss import info_nce
    from searchkit.training.model import attach_lora, trainable

    runtime, tokens = embedder.runtime, arguments.tokens
    device, operations = runtime.device, forward_operations(runtime.model, tokens)
    model = runtime.model
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # its new name
    enable({"use_reentrant": False})
    model.enable_input_require_grads()
    runtime.model = model = attach_lora(model, 16, None).train()
    if not arguments.tiny and trainable(model) != TRAINED:
        raise SystemExit(f"{trainable(model)} weights are trained, expected {TRAINED}")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def encode(chunk: Sequence[list[int]]) -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            return F.normalize(runtime.pooled(list(chunk), embedder.conventions), dim=-1)

    def step(count: int, seed: int) -> float:
        sides = (random_texts(count, tokens, arguments.shape["vocab_size"], 2 * seed + side) for side in (0, 1))
        groups = [embedder.tokenize(texts) for texts in sides]
        if {len(ids) for group in groups for ids in group} != {tokens}:
            raise SystemExit(f"texts are not {tokens} tokens long; the tokenizer is not as expected")
        loss = cached_backward(encode, groups, partial(info_nce, temperature=0.02), chunk=arguments.chunk)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    step(2 * arguments.chunk, 0)  # warms up
    seconds, losses = [], []
    for number in range(1, arguments.steps + 1):
        began = now(device)
        losses.append(step(arguments.batch_size, number))
        seconds.append(now(device) - began)
        print(f"step {number}: loss {losses[-1]:.3f}, {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
    rate = 2 * arguments.batch_size * tokens / median(seconds)
    return {
        "weights_trained": trainable(model),
        "losses": losses,
        "seconds_per_step": median(seconds),
        "tokens_per_second": rate,
        "utilisation": 2 * rate * operations / peak,
        "utilisation_with_what_is_repeated": 4 * rate * operations / peak,
        "peak_gib": peak_gib(device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--chunk", type=int, default=64, help="texts in the model at once while training")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512, help="of every text")
    parser.add_argument("--documents", type=int, default=1024, help="to embed")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in bfloat16, by its maker")
    parser.add_argument("--tiny", action="store_true", help="two layers on the CPU: is this script sound?")
    arguments = parser.parse_args()
    try:
        import torch
    except ModuleNotFoundError:
        parser.exit(1, "this needs torch: pip install 'searchkit[train]'\n")

    device, arguments.shape = "cpu" if arguments.tiny else "cuda", TINY if arguments.tiny else SHAPE
    if arguments.tiny:
        arguments.batch_size, arguments.chunk, arguments.tokens, arguments.documents = 8, 3, 24, 16
    elif not torch.cuda.is_available() or torch.cuda.mem_get_info()[1] < NEEDED * 2**30:
        print(
            f"nothing measured: this needs a CUDA GPU with {NEEDED} GiB or more, for 7 billion weights in bfloat16 and "
            "the activations of a chunk, and there is none here. --tiny runs the same code on the CPU"
        )
        return
    from searchkit.models.conventions import Conventions
    from searchkit.models.embedder import Embedder

    with tempfile.TemporaryDirectory() as place:
        build(Path(place), arguments.shape, device)
        conventions = Conventions(pooling="last", append_eos=True, max_length=arguments.tokens)
        embedder: Any = Embedder(place, device=device, dtype="bfloat16", conventions=conventions)
    where = embedder.runtime.device
    peak_gib(where)  # what building took is none of it
    given = arguments.peak_tflops
    peak = given * 1e12 if given else measured_peak(where, 512 if arguments.tiny else 8192)
    texts = random_texts(arguments.documents, arguments.tokens, arguments.shape["vocab_size"], 0)
    found = {
        "device": torch.cuda.get_device_name() if where.type == "cuda" else "cpu",
        "shape": arguments.shape,
        "peak_tflops": {"value": peak / 1e12, "by": "its maker" if given else "a bfloat16 product here"},
        **{name: getattr(arguments, name) for name in ("batch_size", "chunk", "steps", "tokens", "documents")},
        "embedding": embedding(embedder, texts, arguments.tokens, peak),
        "training": training(embedder, arguments, peak),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
