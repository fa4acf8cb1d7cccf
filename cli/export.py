"""`searchkit export`: a model as one file for onnxruntime."""

from __future__ import annotations

from pathlib import Path

import click

from searchkit.cli.output import say
from searchkit.cli.types import NEW_FOLDER


@click.command()
@click.argument("model")
@click.argument("out", type=NEW_FOLDER)
@click.option(
    "--onnx",
    "dtype",
    default="int8",
    show_default=True,
    type=click.Choice(["float32", "int8", "int4"]),
    help="Precision.",
)
def export(model: str, out: Path, dtype: str) -> None:
    """Convert MODEL (a folder or hub id) to an ONNX model in OUT: small, fast to start, runs without torch.

    \b
        searchkit export my-embedder my-embedder-int8
        searchkit index papers/ --index papers.index --model my-embedder-int8
    """
    from searchkit.training.export import compare
    from searchkit.training.export import export as write

    write(model, out, dtype=dtype)
    lowest, mean = compare(model, out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    say(f"{out}: {size / 2**20:.1f} MiB; cosine to {model}: {mean:.4f} on average, {lowest:.4f} at the lowest")
