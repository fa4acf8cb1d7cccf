"""An index that folds accents does so in every part that reads words, and after every kind of rebuilding."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from forked import Words

from searchkit.engine import SearchEngine
from searchkit.errors import StoreError
from searchkit.evaluation.evaluate import evaluate
from searchkit.records import Document, Judgements, Query
from searchkit.repair import repair
from searchkit.sync import sync

DOCUMENTS = [
    Document("theatre", "Le théâtre a rouvert."),
    Document("forest", "La forêt brûle."),
    Document("x", "Rien."),
]
ANSWERS = {"theatre": ["theatre"], "théâtre": ["theatre"], "foret": ["forest"], "brule": ["forest"]}


def answers(engine: SearchEngine) -> dict[str, list[str]]:
    return {query: [hit.id for hit in engine.search(query, mode="lexical")] for query in ANSWERS}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with SearchEngine.create(tmp_path / "x.index", model=Words(), language="french+fold") as engine:
        engine.add(DOCUMENTS)
        assert answers(engine) == ANSWERS
    return tmp_path / "x.index"


def test_it_is_a_setting_of_the_index(folder: Path) -> None:
    with SearchEngine.open(folder, model=Words(), writable=True) as engine:
        assert engine.settings["language"] == "french+fold"
        sync(engine, [*DOCUMENTS[:2], Document("new", "Un pêcheur.")])
        assert [hit.id for hit in engine.search("pecheurs", mode="lexical")] == ["new"]
        engine.delete(["new"])
        engine.compact()
        assert answers(engine) == ANSWERS
    with pytest.raises(StoreError, match=r"built with language french\+fold, now it is french"):
        SearchEngine.create(folder, model=Words(), language="french", exist_ok=True)
    with SearchEngine.create(folder, model=Words(), exist_ok=True) as engine:
        assert answers(engine) == ANSWERS


def test_a_repaired_lexical_index_folds_as_before(folder: Path) -> None:
    shutil.rmtree(folder / "lexical")
    report = repair(folder)
    assert any("lexical" in part for part in report.done)
    with SearchEngine.open(folder, model=Words()) as engine:
        assert answers(engine) == ANSWERS


def test_the_baseline_reads_the_same_words(folder: Path) -> None:
    queries = [Query(query, query) for query in ANSWERS]
    judgements = Judgements("", queries, {query: {ids[0]: 1} for query, ids in ANSWERS.items()})
    with SearchEngine.open(folder, model=Words()) as engine:
        for result in evaluate(engine, judgements, modes=["lexical", "rank-bm25"]):
            assert result.metrics["mrr@10"] == 1


def test_without_it_accents_count(tmp_path: Path) -> None:
    with SearchEngine.create(tmp_path / "x.index", model=Words(), language="french") as engine:
        engine.add(DOCUMENTS)
        assert answers(engine) == {**ANSWERS, "theatre": [], "foret": [], "brule": []}
