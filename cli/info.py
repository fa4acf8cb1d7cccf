"""`searchkit info`: what is in an index, what this machine offers."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from searchkit.cli.shared import INDEX, readable_bytes

_LIBRARIES = (
    "faiss-cpu",
    "faiss-gpu",
    "onnxruntime",
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "tantivy",
    "numpy",
)


@click.command()
@click.argument("index", type=INDEX, required=False)
@click.option("--format", "output", default="text", show_default=True, type=click.Choice(["text", "json"]))
def info(index: Path | None, output: str) -> None:
    """Show what INDEX holds and which model it is bound to; without INDEX, what this machine offers."""
    facts = _machine() if index is None else _index(index)
    if output == "json":
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        click.echo(f"{name:<{width}}{value}")


def _index(folder: Path) -> dict[str, Any]:
    from searchkit.indexer.store import Store

    with Store(folder) as store:
        documents, passages = store.counts()
        sizes, settings = store.sizes(), store.settings()
    total = sum(sizes.values())
    model = settings.pop("model")
    return {
        "index": str(folder.resolve()),
        "documents": documents,
        "passages": passages,
        "size": f"{readable_bytes(total)} ({readable_bytes(total / max(1, documents))} a document)",
        **{f"size of {name}": readable_bytes(size) for name, size in sizes.items()},
        **settings,
        **{name if name == "model" else f"model {name}": value for name, value in model.items()},
        "computes in": _dtype(),
    }


def _machine() -> dict[str, Any]:
    libraries = {}
    for name in _LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            libraries[name] = "not installed"
    return {
        "searchkit": version("searchkit"),
        "python": platform.python_version(),
        "processor": platform.machine(),
        **libraries,
        "computes in": _dtype(),
    }


def _dtype() -> str:
    """What models that are not exported would compute in."""
    try:
        from searchkit.runtime_torch import best_device, choose_dtype

        device = best_device()
        chosen = choose_dtype(device)
    except ModuleNotFoundError:
        return "no torch here: exported models only, as they were exported"
    why = "native here" if chosen == "bfloat16" else "no native bfloat16 here"
    return f"{chosen} on {device} ({why}); exported models as they were exported"
