"""Build the indexes of this folder and record what they answer.

Run once, with the code of commit 8f035db, the last before files moved into folders:

    PYTHONPATH=CHECKOUT:CHECKOUT/tests python make.py

Never run it again to make a failing test pass: the files stand for the indexes that users have.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from forked import Words

from searchkit.engine import SearchEngine
from searchkit.ranking import SearchOptions
from searchkit.records import Document, Hit

HERE = Path(__file__).parent
RECIPES = {"flat": "flat", "int8": "int8"}
QUERIES = ["green tea and the kettle", "why does bread rise", "the sun", "zymurgy"]
OPTIONS: dict[str, dict[str, Any]] = {
    "dense": {"mode": "dense"},
    "lexical": {"mode": "lexical"},
    "hybrid": {"mode": "hybrid", "fusion": "weighted"},
    "rrf": {"mode": "hybrid", "fusion": "rrf", "rrf_k": 20},
    "dense filtered": {"mode": "dense", "where": {"year": {"$gte": 2015}}},
    "lexical filtered": {"mode": "lexical", "where": {"tags": {"$in": ["tea", "sky"]}}},
    "hybrid filtered": {
        "mode": "hybrid",
        "fusion": "weighted",
        "where": {"$or": [{"year": {"$lt": 2012}}, {"author.name": "Ada Löwe"}]},
    },
}
SENTENCES = [
    "Green tea is poured from the kettle at eighty degrees.",
    "Bread rises because yeast makes gas in the dough.",
    "A comet's tail always points away from the sun.",
    "Interest on the loan is paid every month.",
    "The orchestra tunes to the oboe before the concert.",
    "Bees tell each other where flowers are by dancing.",
    "Sailors found their latitude from the height of the sun.",
]


class ExactWords(Words):
    """Vectors whose components are multiples of 1/256: their inner products are exact on every processor."""

    def encode_passages(self, passages: Sequence[str], on_batch: Callable[[int], None] | None = None) -> np.ndarray:
        return np.asarray(np.round(super().encode_passages(passages, on_batch) * 256) / 256, dtype=np.float32)


def notes(start: int, stop: int) -> list[Document]:
    """Documents of one to five passages, with metadata of every JSON type."""
    made = []
    for n in range(start, stop):
        text = " ".join(SENTENCES[(n + m) % len(SENTENCES)] for m in range(1 + n % 4))
        metadata = {
            "year": 2005 + n,
            "tags": ["tea", "sky", "money"][n % 3 :],
            "author": {"name": "Ada Löwe" if n % 2 else "Bo"},
            "share": n / 8,
            "open": n % 2 == 0,
            "none": None,
        }
        made.append(Document(f"note-{n}", text, title=f"Note {n}" if n % 5 else "", metadata=metadata))
    return made


def build(folder: Path, recipe: str) -> None:
    """Two segments, an update, deletions, and documents of several passages."""
    with SearchEngine.create(folder, model=ExactWords(), chunk_tokens=16, overlap=4) as engine:
        engine.add(notes(0, 14))
        if recipe != "flat":
            engine.store_as(recipe, keep_vectors=True)
        engine.add(
            [*notes(14, 22), Document("note-3", "It was rewritten: zymurgy.", "Note 3", {"year": 2024})], update=True
        )
        engine.delete(["note-5", "note-15"])


def change(folder: Path) -> None:
    """What a user does next: add, update, delete, compact."""
    with SearchEngine.open(folder, model=ExactWords(), writable=True) as engine:
        engine.add([Document("new", "A kettle for tea.", metadata={"year": 2016}), *notes(5, 6)])
        engine.add([Document("note-2", "The sun, again.", "Note 2", {"year": 2017})], update=True)
        engine.delete(["note-6"], where={"year": 2018})
        engine.compact()


def answers(folder: Path) -> dict[str, Any]:
    """Every hit of every query, and every document."""
    results: dict[str, Any] = {}
    with SearchEngine.open(folder, model=ExactWords()) as engine:
        for name, options in OPTIONS.items():
            rankings = engine.search_many(QUERIES, k=12, options=SearchOptions(**options))
            results[name] = [[listed(hit) for hit in hits] for hits in rankings]
        results["documents"] = [[d.id, d.title, d.text, d.metadata] for d in engine.documents()]
    return results


def listed(hit: Hit) -> list[Any]:
    """A hit without its texts."""
    return [hit.id, hit.score, hit.rank, hit.start, hit.stop, hit.title, hit.metadata.get("year")]


if __name__ == "__main__":
    for name, recipe in RECIPES.items():
        build(HERE / name, recipe)
        recorded = {"built": answers(HERE / name)}
        shutil.copytree(HERE / name, HERE / "changed")
        change(HERE / "changed")
        recorded["changed"] = answers(HERE / "changed")
        shutil.rmtree(HERE / "changed")
        (HERE / f"{name}.json").write_text(json.dumps(recorded, ensure_ascii=False), encoding="utf-8")
        for spare in [*(HERE / name).rglob("*.lock"), *(HERE / name).glob("index.db-*")]:
            spare.unlink()
