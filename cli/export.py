"""`searchkit export`: a model as one file for onnxruntime."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("model")
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--onnx", "dtype", default="int8", show_default=True, type=click.Choice(["float32", "int8"]))
def export(model: str, out: Path, dtype: str) -> None:
    """Write MODEL to OUT for onnxruntime: quick to start, small, no torch needed to run it.

    \b
        searchkit export my-embedder my-embedder-int8 --onnx int8
        searchkit index papers/ --index papers.index --model my-embedder-int8
    """
    from searchkit.training.export import compare
    from searchkit.training.export import export as write

    write(model, out, dtype=dtype)
    least, mean = compare(model, out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    click.echo(f"{out}: {size / 2**20:.1f} MiB; cosine with {model}: {mean:.4f} on average, {least:.4f} at least")
