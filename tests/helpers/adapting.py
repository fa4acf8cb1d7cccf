"""Pairs and settings for adapting an index."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from searchkit.engine import SearchEngine
from searchkit.training.adaptation.config import AdaptConfig


def pairs_of(texts: list[str]) -> list[dict[str, Any]]:
    """Three queries for every note: its beginning, its middle, and its words backwards."""
    rows = []
    for n, text in enumerate(texts):
        words = text.split()
        for query in (words[:5], words[2:6], words[::-1][:6]):
            rows.append({"query": f"{' '.join(query)} {n}", "positive_id": str(n)})
    return rows


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
