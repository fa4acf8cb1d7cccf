"""Deleting, updating and compacting."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from searching import LEXICAL, ids
from texts import TEXTS

from searchkit.check import check
from searchkit.engine import SearchEngine
from searchkit.indexer.conditions import Condition
from searchkit.indexer.lexical import LexicalIndex
from searchkit.models.embedder import Embedder
from searchkit.ranking import MODES, SearchOptions, as_mode
from searchkit.records import Document


@pytest.fixture
def notes(tmp_path: Path, embedder: Embedder, documents: list[Document]) -> Iterator[SearchEngine]:
    with SearchEngine.create(tmp_path / "notes.index", model=embedder) as made:
        made.add(documents)
        yield made


@pytest.mark.parametrize("mode", MODES)
def test_deleted_documents_disappear_from_results_immediately(notes: SearchEngine, mode: str) -> None:
    options = SearchOptions(mode=as_mode(mode))
    assert notes.delete(["3", "x", "3"], where={"n": {"$lt": 2}}) == (3, ["x"])
    left = [str(n) for n in range(30) if n not in (0, 1, 3)]
    for _ in range(2):
        assert len(notes) == 27
        assert sorted(ids(notes.search("note", k=100, options=options)), key=int) == left
        notes.compact()
    assert notes.delete(["3"]) == (0, ["3"])


@pytest.mark.parametrize("mode", MODES)
def test_an_updated_document_replaces_the_old_one(notes: SearchEngine, mode: str) -> None:
    options = SearchOptions(mode=as_mode(mode))
    report = notes.add([Document("3", "A note on zymurgy"), Document("4", TEXTS[4], "Note 4", {"n": 4})], update=True)
    assert (report.documents, report.updated, report.unchanged) == (1, 1, 1)
    for _ in range(2):
        hits = {hit.id: hit.text for hit in notes.search("zymurgy note", k=100, options=options)}
        assert (len(hits), hits["3"]) == (30, "A note on zymurgy")
        notes.compact()


@pytest.mark.parametrize("mode", MODES)
def test_a_filter_holds_in_every_mode(notes: SearchEngine, mode: str) -> None:
    options = SearchOptions(mode=as_mode(mode), where={"n": {"$gte": 12, "$lt": 20}})
    assert sorted(ids(notes.search("note", k=100, options=options)), key=int) == [str(n) for n in range(12, 20)]
    assert notes.search("note", options=SearchOptions(mode=as_mode(mode), where={"n": 99})) == []


def test_the_matches_of_a_filter_are_read_once_a_commit(notes: SearchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Condition] = []
    passing = notes.store.passing
    monkeypatch.setattr(
        notes.store, "passing", lambda condition, *rest: (read.append(condition), passing(condition, *rest))[1]
    )
    options = [SearchOptions(where={"n": {"$lt": n}}) for n in range(1, 11)]
    for _ in range(2):
        assert len(notes.search("note", k=100, options=options[4])) == 5
    assert len(read) == 1
    notes.delete(["3"])
    assert len(notes.search("note", k=100, options=options[4])) == 4
    assert len(read) == 2
    for n, option in enumerate(options, 1):  # more than are cached
        assert len(notes.search("note", k=100, options=option)) == n - (n > 3)
    assert len(notes.search("note", k=100, options=options[0])) == 1


def test_a_reader_stays_in_its_commit_until_a_compaction_moves_it_to_a_newer_one(
    notes: SearchEngine, embedder: Embedder, documents: list[Document]
) -> None:
    with SearchEngine.open(notes.store.folder, model=embedder) as reader:
        assert len(reader.search("note", k=100)) == 30
        notes.delete(["3"])
        assert len(reader.search("note", k=100)) == 30  # as it was opened
        notes.compact()  # and that commit cannot be shown any more
        assert "3" not in ids(reader.search("note", k=100))
        assert len(reader) == 29
    with SearchEngine.open(notes.store.folder, model=embedder) as late:
        notes.delete(["4"])
        notes.compact()
        for mode in MODES:  # nothing was opened before the files went
            assert len(late.search("note", k=100, options=SearchOptions(mode=as_mode(mode)))) == 28


def test_compacting_where_nothing_was_deleted_merges_segments_alone(notes: SearchEngine) -> None:
    notes.add([Document("late", "A late note")])
    lexical, segments = notes.snapshot.lexical, notes.snapshot.segments
    before = ids(notes.search("note", k=100))
    assert (len(segments), notes.compact()) == (2, 0)
    assert (len(notes.snapshot.segments), notes.snapshot.lexical) == (1, lexical)
    assert ids(notes.search("note", k=100)) == before
    commit = notes.snapshot.generation
    assert (notes.compact(), notes.snapshot.generation) == (0, commit)
    notes.delete(["late"])
    notes.compact()
    assert notes.snapshot.lexical != lexical


@pytest.mark.parametrize("linked", [True, False])
def test_compacting_after_few_deletions_changes_the_lexical_index_and_builds_none(
    notes: SearchEngine, linked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("not permitted")

    if not linked:
        monkeypatch.setattr(os, "link", refuse)

    def scores() -> dict[str, float]:
        return {hit.id: hit.score for hit in notes.search("the sun and the note", k=30, options=LEXICAL)}

    before = scores()
    notes.delete(["3"])
    with monkeypatch.context() as patch:
        patch.setattr(LexicalIndex, "add", refuse)
        notes.compact()
    assert scores() == {id: score for id, score in before.items() if id != "3"}
    assert [finding for finding in check(notes.store.folder) if not finding.ok] == []
    notes.add([Document("late", "A late note about the sun")])
    assert "late" in ids(notes.search("the sun", k=30, options=LEXICAL))
    notes.delete(["4", "5"])  # with the one before, a tenth
    notes.compact()
    assert notes._lexical.index_of(notes.snapshot).deleted == 0
    assert len(notes.search("note", k=30, options=LEXICAL)) == 28


def test_segments_without_deleted_passages_stay_as_they_are(
    notes: SearchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = notes.snapshot.segments
    notes.add([Document("late", "A late note")])
    notes.delete(["late"])
    notes.compact()
    assert [segment.entry for segment in notes.snapshot.segments] == [first.entry]
    assert len(notes.search("note", k=100)) == 30


@pytest.mark.parametrize("before", [True, False])
def test_erasing_leaves_nothing_of_deleted_documents_in_any_file(notes: SearchEngine, before: bool) -> None:
    def holding(word: str) -> list[str]:
        files = (file for file in notes.store.folder.rglob("*") if file.is_file())
        return sorted(file.name for file in files if word.encode() in file.read_bytes())

    def counted() -> int:
        index = notes._lexical.index_of(notes.snapshot)
        return int(index._index.searcher().doc_freq("text", "xylophon"))  # deleted passages included

    private = Document("private", "Our xylophone is for sale", metadata={"owner": "Quetzalcoatl"})
    notes.add([private, Document("other", "Another note")])
    notes.search("xylophone")
    notes.delete(["private"])
    if before:
        notes.compact()
        assert counted() == 1
    notes.compact(erase=True)
    assert counted() == 0
    assert len(notes.search("note", k=100, options=LEXICAL)) == 31
    notes.close()
    assert holding("xylophon") + holding("Quetzalcoatl") == []


def test_a_copy_without_hidden_files_is_compacted(notes: SearchEngine, tmp_path: Path) -> None:
    notes.search("bread", options=LEXICAL)
    copy = tmp_path / "copy.index"
    shutil.copytree(notes.store.folder, copy, ignore=shutil.ignore_patterns(".*"))
    with SearchEngine.open(copy, writable=True) as engine:
        engine.delete(["0"])
        engine.compact()
        assert len(engine.search("note", k=100, options=LEXICAL)) == len(notes) - 1
        engine.add([Document("new", "bread and salt")])
        assert "new" in ids(engine.search("bread", options=LEXICAL))
    assert [finding for finding in check(copy) if not finding.ok] == []


def test_an_index_can_be_emptied_compacted_and_filled_again(notes: SearchEngine) -> None:
    notes.delete(where={})
    assert (len(notes), notes.search("note")) == (0, [])
    assert notes.compact() == 30
    assert notes.search("note") == []
    notes.add([Document("0", "A new note")])
    assert ids(notes.search("note")) == ["0"]
