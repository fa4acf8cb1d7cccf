"""`searchkit info`: what is in an index, what this machine offers."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.options import INDEX, readable_bytes

if TYPE_CHECKING:
    from searchkit.indexer.vectors.recipes import Plan
    from searchkit.indexer.vectors.storage import Storage

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
_INTERNAL = {
    "storage",
    "seal", "tombstones", "contents", "compacted", "lexical", "lexical_files", "next_row", "next_doc", "documents",
    "passages",
}  # fmt: skip


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
    from searchkit.indexer.keys import metadata_keys
    from searchkit.indexer.store import Store

    with Store(folder) as store:
        documents, passages = store.documents.counts()
        deleted, _ = store.documents.waiting()
        sizes, settings, storage = store.sizes(), store.database.settings(), store.storage
        keys = metadata_keys(store.documents)
    total = sum(sizes.values())
    model = settings.pop("model")
    return {
        "index": str(folder.resolve()),
        "documents": documents,
        "passages": passages,
        "deleted, waiting for compaction": deleted,
        "size": f"{readable_bytes(total)} ({readable_bytes(total / max(1, documents))} a document)",
        "bytes a document": round(total / max(1, documents)),
        **{f"size of {name}": readable_bytes(size) for name, size in sizes.items()},
        **{f"metadata {name}": f"{key.described}: {', '.join(key.examples)}" for name, key in keys.items()},
        **_storage(storage),
        **{name: value for name, value in settings.items() if name not in _INTERNAL},
        **{name if name == "model" else f"model {name}": value for name, value in model.items()},
        "computes in": _dtype(),
    }


def _storage(storage: Storage) -> dict[str, Any]:
    """How vectors are stored, and how hard they are searched."""
    from searchkit.indexer.vectors.recipes import RECIPES

    plan, tuning = storage.plan, storage.tuning
    recipe = RECIPES[plan.recipe]
    facts = {
        "recipe": f"{plan.spelling} ({recipe.about})",
        "code bytes a vector": code_bytes(plan),
        "cells": plan.lists,
        "exact vectors beside": "" if recipe.faithful else "half precision" if storage.keep_vectors else "no",
        "probes": tuning.probes if plan.lists else 0,
        "ef": tuning.ef if recipe.graph else 0,
        "candidates scored again, times k": tuning.rerank,
    }
    return {name: value for name, value in facts.items() if name and value}


def code_bytes(plan: Plan) -> int:
    """Bytes that a vector's code takes in an index, without its graph, its row and what all vectors share."""
    bits = (plan.dim + 7) // 8
    return {
        "flat": 4 * plan.dim,
        "fp16": 2 * plan.dim,
        "hnsw": 2 * plan.dim,
        "cagra": 4 * plan.dim,
        "int8": plan.dim,
        "ivf-int8": plan.dim,
        "rabitq": bits + 8,  # two float32 corrections
        "binary": bits,
    }.get(plan.recipe, plan.code)


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
        from searchkit.models.torch_runtime import best_device, choose_dtype

        device = best_device()
        chosen = choose_dtype(device)
    except ModuleNotFoundError:
        return "no torch here: exported models only, as they were exported"
    why = "native here" if chosen == "bfloat16" else "no native bfloat16 here"
    return f"{chosen} on {device} ({why}); exported models as they were exported"
