"""Indexes of format 3 that version 0.1.0 built before its files moved into folders answer as they did, to the bit."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

from searchkit import Document, SearchEngine
from searchkit.check import check
from searchkit.indexer import lexical
from searchkit.indexer.analysis import LETTERS, PAIRS
from searchkit.indexer.store import Store

DATA = Path(__file__).parent.parent / "data" / "format3"
MAKE = runpy.run_path(str(DATA / "make.py"))


@pytest.fixture(params=["flat", "int8"])
def recipe(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path, recipe: str) -> Path:
    return shutil.copytree(DATA / recipe, tmp_path / "old.index")


@pytest.fixture
def recorded(recipe: str) -> dict[str, Any]:
    return dict(json.loads((DATA / f"{recipe}.json").read_text("utf-8")))


def test_an_old_index_is_sound_and_gives_the_answers_it_gave(folder: Path, recorded: dict[str, Any]) -> None:
    assert [finding for finding in check(folder) if not finding.ok] == []
    with Store(folder) as store:
        assert len(store.snapshot().segments) == 2
        assert len(store.snapshot().dead) > 2
    assert MAKE["answers"](folder) == recorded["built"]
    assert recorded["built"]["dense"] != recorded["changed"]["dense"]


def test_an_old_index_that_is_changed_and_compacted_gives_the_answers_it_gave(
    folder: Path, recorded: dict[str, Any]
) -> None:
    MAKE["change"](folder)
    assert MAKE["answers"](folder) == recorded["changed"]
    assert [finding for finding in check(folder) if not finding.ok] == []


def test_compacting_an_index_of_pairs_lets_it_find_single_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setitem(lexical._TOKENIZERS, LETTERS, lexical._TOKENIZERS[PAIRS])
        earlier.setattr(lexical, "_terms_of", lambda folder: PAIRS)
        with SearchEngine.create(tmp_path / "old.index", dim=8, language="none") as engine:
            engine.add([Document("cat", "黒猫が好き"), Document("dog", "犬が好き")], vectors=[None, None])
    with SearchEngine.open(tmp_path / "old.index", writable=True) as engine:
        assert engine.search("猫", mode="lexical") == []
        assert [hit.id for hit in engine.search("黒猫", mode="lexical")] == ["cat"]
        engine.compact()
        assert [hit.id for hit in engine.search("猫", mode="lexical")] == ["cat"]
