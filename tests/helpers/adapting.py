"""Pairs and settings for adapting an index."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import write_lines
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.records import Document
from searchkit.training.adaptation.config import AdaptConfig


def pairs_of(texts: list[str]) -> list[dict[str, Any]]:
    """Three queries for every note: its beginning, its middle, and its words backwards."""
    rows = []
    for n, text in enumerate(texts):
        words = text.split()
        for query in (words[:5], words[2:6], words[::-1][:6]):
            rows.append({"query": f"{' '.join(query)} {n}", "positive_id": str(n)})
    return rows


def write_notes(folder: Path, model: Path) -> None:
    """An index of thirty notes, and pairs for it."""
    with SearchEngine.create(folder / "notes.index", model=model) as engine:
        engine.add(Document(str(n), text.strip(), title=f"Note {n}") for n, text in enumerate(TEXTS))
    write_lines(folder / "pairs.jsonl", pairs_of(TEXTS))


def copy_notes(place: Path, folder: Path) -> Path:
    """The index and the pairs in another folder, without the run that may have followed."""
    shutil.copytree(place / "notes.index", folder / "notes.index")
    shutil.copy(place / "pairs.jsonl", folder)
    return folder


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def without_extras(patch: pytest.MonkeyPatch) -> None:
    """Adapt without pictures and the out-of-domain score, which take longer than all the rest of a small run."""
    patch.setattr("searchkit.training.log.draw", lambda *_, **__: [])
    patch.setattr("searchkit.training.adaptation.adapt.draw", lambda *_, **__: None)
    patch.setattr("searchkit.training.adaptation.adapt.out_of_domain", lambda embedder: 0.5)


def config_in(folder: Path) -> AdaptConfig:
    return AdaptConfig(folder / "notes.index", (folder / "pairs.jsonl",), folder / "out", held_out=0.4)


def weights_in(folder: Path) -> AdaptConfig:
    """The same, training all weights."""
    return replace(config_in(folder), train="all", steps=8, batch_size=4, learning_rate=3e-3, max_length=200)


def model_of(index: Path) -> str:
    with SearchEngine.open(index) as engine:
        return str(engine.settings["model"]["model"])
