"""Does an imported GGUF file give llama.cpp's tokens and vectors, and transformers' vectors?

    python tests/benchmarks/gguf_agreement.py FILE.gguf [--corpus nfcorpus/] [--texts 400]

Needs llama-cpp-python for what is compared to llama.cpp. Texts are the passages of `corpora/intents`, the first of
another corpus, and odd ones; vectors, at EOS, are compared for five of them and for a text of some 550 tokens: in
float32 to transformers', and to llama.cpp's, which multiplies quantised weights by activations in 8 bits.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from searchkit.models.batches import unit_rows
from searchkit.models.conventions import Conventions
from searchkit.models.embedder import Embedder
from searchkit.models.gguf import import_gguf
from searchkit.readers.corpus import corpus_folder, read_corpus

LONGEST = 1024
ODD = [
    "Hello world! 123",
    "  multiple   spaces\n\nand 2024's <|im_end|>",
    "naïve 東京 🙂 Привет мир ٣٤",
    "\ttab\r\n  x 12  34",
    "I'LL we'll DON'T",
    "x = f(a,b) // 3.14e-10\n\n\n  return  ",
]


def tokens(file: Path, embedder: Embedder, texts: list[str]) -> dict[str, int] | str:
    """How many texts are split alike."""
    try:
        from llama_cpp import Llama
    except ModuleNotFoundError:
        return "not compared: pip install llama-cpp-python"
    model: Any = Llama(str(file), vocab_only=True, verbose=False)
    theirs = [model.tokenize(text.encode(), add_bos=False, special=True) for text in texts]
    tokenizer: Any = embedder.runtime.tokenizer
    ours = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    return {"texts": len(texts), "equal": sum(a == b for a, b in zip(ours, theirs, strict=True))}


def llama_cosines(file: Path, embedder: Embedder, texts: list[str]) -> list[float] | str:
    """Of each text's vector to the one by llama.cpp, which shares no code with transformers."""
    try:
        from llama_cpp import LLAMA_POOLING_TYPE_LAST, Llama
    except ModuleNotFoundError:
        return "not compared: pip install llama-cpp-python"
    model: Any = Llama(
        str(file), embedding=True, pooling_type=LLAMA_POOLING_TYPE_LAST, n_ctx=LONGEST, n_batch=LONGEST,
        n_ubatch=LONGEST, n_threads=1, verbose=False,
    )  # fmt: skip
    model.tokenize = partial(model.tokenize, special=True)  # `embed` would read the mark at the end as letters
    eos = embedder.runtime.tokenizer.id_to_token(embedder.runtime.eos_id)
    rows = unit_rows(np.array([model.embed(text + eos) for text in texts]))
    return [round(float(value), 4) for value in (embedder.encode_passages(texts) * rows).sum(1)]


def cosines(file: Path, embedder: Embedder, texts: list[str]) -> list[float]:
    """Of each text's vector to the one by transformers alone."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(file.absolute().parent, gguf_file=file.name, dtype=torch.float32)
    with torch.inference_mode():
        states = [model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] for ids in embedder.tokenize(texts)]
    return [float(value) for value in (embedder.encode_passages(texts) * unit_rows(np.stack(states))).sum(1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--texts", type=int, default=400, help="of that corpus")
    arguments = parser.parse_args()
    texts = [document.text for document in read_corpus(corpus_folder("intents"))] + ODD
    if arguments.corpus:
        texts += [document.text for document in islice(read_corpus(arguments.corpus), arguments.texts)]
    with tempfile.TemporaryDirectory() as place:
        found = import_gguf(arguments.file, Path(place) / "model")
        conventions = Conventions(pooling="last", append_eos=True, max_length=LONGEST)
        embedder = Embedder(Path(place) / "model", device="cpu", dtype="float32", conventions=conventions)
        split = tokens(arguments.file, embedder, texts)
        compared = [*texts[:5], " ".join(texts[5:13])]  # the last one is longer than Gemma's window of attention
        near = cosines(arguments.file, embedder, compared)
        beside = llama_cosines(arguments.file, embedder, compared)
    print(
        json.dumps(
            {
                "architecture": found.architecture,
                "tokens": split,
                "least_cosine": round(min(near), 6),
                "llama_cpp_cosines": beside,
            }
        )
    )


if __name__ == "__main__":
    main()
