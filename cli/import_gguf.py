"""`searchkit import-gguf`: a language model from llama.cpp's format to a folder for training."""

from __future__ import annotations

from pathlib import Path

import click

from searchkit.cli.output import say
from searchkit.cli.types import NEW_FOLDER


@click.command("import-gguf")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=NEW_FOLDER)
def import_gguf(file: Path, out: Path) -> None:
    """Convert the language model in FILE (GGUF) to a transformers folder OUT, with its tokenizer.

    For Llama, SmolLM, Mistral, Qwen and Gemma models in any common quantisation. Weights become float16. A language
    model searches poorly until it is trained.

    \b
        searchkit import-gguf SmolLM2-135M-Instruct.Q8_0.gguf smollm2
        searchkit train pairs.jsonl --base smollm2 --out my-embedder
    """
    from searchkit.models.gguf import import_gguf as convert

    found = convert(file, out)
    size = sum(each.stat().st_size for each in out.iterdir())
    say(
        f"{out}: {found.architecture}, {found.layers} layers of width {found.width}, {found.quantisation} to float16, "
        f"{size / 2**20:.0f} MiB; {found.vocabulary} tokens, BOS {found.bos or 'none'}, EOS {found.eos or 'none'}"
    )
