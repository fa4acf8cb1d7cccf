"""`searchkit info`: what an index holds, or what this machine offers."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from searchkit.cli.options import text_or_json
from searchkit.cli.output import print_json, readable_bytes, say
from searchkit.cli.types import INDEX

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
    "passages", "vectors_from",
}  # fmt: skip
_LABELS = {
    "bytes a document": "bytes per document",
    "code bytes a vector": "code bytes per vector",
    "cells": "IVF lists",
    "exact vectors beside": "exact vectors kept",
    "candidates scored again, times k": "candidates re-ranked, times k",
    "processor": "CPU",
}
"""How text calls what JSON calls otherwise."""

_CHECKSUM = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")  # text shows the first digits, JSON has all of them


@click.command()
@click.argument("index", type=INDEX, required=False)
@text_or_json
def info(index: Path | None, output: str) -> None:
    """Show what INDEX holds and which model built it; without INDEX, describe this machine.

    \b
        searchkit info papers.index
        searchkit info
    """
    facts = _machine() if index is None else _index(index)
    if output == "json":
        print_json(facts)
        return
    facts = {_LABELS.get(name, name): value for name, value in facts.items() if value is not None and value != ""}
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        say(f"{name:<{width}}" + _CHECKSUM.sub(r"\1", str(value)))


def _index(folder: Path) -> dict[str, Any]:
    from searchkit.indexer.keys import metadata_keys
    from searchkit.indexer.store import Store

    with Store(folder) as store:
        documents, passages = store.documents.counts()
        deleted, _ = store.documents.waiting()
        sizes, settings, storage = store.sizes(), store.database.settings(), store.storage
        bare = store.documents.without_vectors()
        keys = metadata_keys(store.documents)
    total = sum(sizes.values())
    model = settings.pop("model")
    if model and "probes" in model:
        model["probes"] = f"{len(model['probes'])} vectors of probe texts"
    return {
        "index": str(folder.resolve()),
        "documents": documents,
        "passages": passages,
        "deleted, waiting for compaction": deleted,
        "size": f"{readable_bytes(total)} ({readable_bytes(total / max(1, documents))} per document)",
        "bytes a document": round(total / max(1, documents)),
        **{f"size of {name}": readable_bytes(size) for name, size in sizes.items()},
        **{f"metadata {name}": f"{key.described}: {', '.join(key.examples)}" for name, key in keys.items()},
        **_storage(storage),
        **{name: value for name, value in settings.items() if name not in _INTERNAL},
        **(_own_vectors(storage, settings, bare) if model is None else _model(model)),
        "computes in": _dtype(),
    }


def _model(model: dict[str, Any]) -> dict[str, Any]:
    return {name if name == "model" else f"model {name}": value for name, value in model.items()}


def _own_vectors(storage: Storage, settings: dict[str, Any], bare: int) -> dict[str, Any]:
    """What is known of vectors that users made."""
    from searchkit.indexer.vectors.similarity import SIMILARITIES

    similarity = storage.similarity
    return {
        "model": "none: vectors come with documents and queries",
        "vectors from": settings["vectors_from"] or "not named",
        "dim": similarity.dim,
        "similarity": f"{similarity.name} ({SIMILARITIES[similarity.name]})",
        "documents without a vector": bare,
    }


def _storage(storage: Storage) -> dict[str, Any]:
    """How vectors are stored and searched."""
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
    """Bytes of a vector's code in an index, not counting graph links, row numbers and shared tables."""
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
    """The precision in which torch models run here."""
    try:
        from searchkit.models.torch_runtime import best_device, choose_dtype

        device = best_device()
        chosen = choose_dtype(device)
    except ModuleNotFoundError:
        return "torch is not installed: ONNX models only, as they were exported"
    why = "native bfloat16" if chosen == "bfloat16" else "no native bfloat16"
    return f"{chosen} on {device} ({why}); ONNX models as they were exported"
