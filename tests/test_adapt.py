"""The whole loop, on a model of two layers and thirty notes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXTS

from searchkit.engine import SearchEngine
from searchkit.records import Document
from searchkit.training.adapt import AdaptConfig, adapt

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def pairs_of(texts: list[str]) -> list[dict[str, Any]]:
    """Three queries for every note: its beginning, its middle, and its words backwards."""
    rows = []
    for n, text in enumerate(texts):
        words = text.split()
        for query in (words[:5], words[2:6], words[::-1][:6]):
            rows.append({"query": f"{' '.join(query)} {n}", "positive_id": str(n)})
    return rows


def write_lines(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def indexed(mistral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapt")
    with SearchEngine.create(folder / "notes.index", model=mistral) as engine:
        engine.add(Document(str(n), text.strip(), title=f"Note {n}") for n, text in enumerate(TEXTS))
    write_lines(folder / "pairs.jsonl", pairs_of(TEXTS))
    return folder


@pytest.fixture
def config(indexed: Path, tmp_path: Path) -> AdaptConfig:
    shutil.copytree(indexed, tmp_path, dirs_exist_ok=True)
    return AdaptConfig(
        tmp_path / "notes.index", (tmp_path / "pairs.jsonl",), tmp_path / "out", held_out=0.4, steps=12, batch_size=4,
        learning_rate=3e-3, max_length=200, lora_rank=0,
    )  # fmt: skip


def bound_to(index: Path) -> str:
    with SearchEngine.open(index) as engine:
        return str(engine.settings["model"]["model"])


class Told:
    """Remembers which stages had something to do."""

    def __init__(self) -> None:
        self.did: list[str] = []

    def __call__(self, stage: str, needed: bool) -> None:
        self.did += [stage] if needed else []


def test_every_stage_leaves_a_file_to_look_at_and_the_report_says_what_judged(config: AdaptConfig) -> None:
    told = Told()
    report = adapt(config, on_stage=told)
    assert told.did == ["pairs", "mine", "general", "train", "export", "index", "evaluate"]
    assert report.pairs == {"read": 90, "trained_on": 54, "held_out": 36, "set_aside": 0}
    assert (report.judged_by, report.own_judgements) == ("held-out pairs", False)
    there = {file.name for file in config.out.iterdir()}
    assert {"pairs.kept.jsonl", "mined.jsonl", "general.jsonl", "model", "report.json", "changes.png"} <= there
