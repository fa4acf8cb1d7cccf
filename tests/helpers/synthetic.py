"""Synthesis against the stand-in server."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from fake_llm import FakeLLM, Reply, echoing, phrase
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.records import Document
from searchkit.training.synthesis.synthesize import SynthesizeConfig


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def config(server: FakeLLM, folder: Path, **changes: Any) -> SynthesizeConfig:
    values = {"out": str(folder / "pairs.jsonl"), "model": "m", "base_url": server.url, "count": 60, "backoff": 0.01}
    return SynthesizeConfig(**{**values, **changes})


def add_topics(engine: SearchEngine) -> None:
    """Thirty topics of their own words, so that the words alone find a passage again."""
    rng = random.Random(7)
    engine.add(Document(f"d{n}", f"{phrase(rng, 30)} {TEXTS[n]}", title=f"Note {n}") for n in range(30))


def grading(asked: dict[str, Any], seen: int, headers: dict[str, str]) -> Reply:
    """Queries of a passage's words; then 3 for the passage that has most of them, and for the others 0 or 1 in turn."""
    text = asked["messages"][-1]["content"]
    if asked["response_format"]["json_schema"]["name"] != "grades":
        return echoing(asked, seen, headers)
    query = set(text.partition("The query: ")[2].partition("\n")[0].split())
    passages = [part.partition("\n</passage>")[0] for part in text.split("<passage number=")[1:]]
    shared = [len(query & set(passage.split())) for passage in passages]
    grades = [3 if count == max(shared) and count > 3 else int(number % 2) for number, count in enumerate(shared)]
    return Reply(json.dumps({"grades": [{"passage": n, "grade": grade} for n, grade in enumerate(grades, 1)]}))
