from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from texts import SENTENCES, TEXTS

from searchkit.check import check
from searchkit.engine import SearchEngine
from searchkit.errors import StoreError
from searchkit.indexer import repair as tables
from searchkit.indexer.database import settings_checksum
from searchkit.indexer.store import Store
from searchkit.indexer.vectors.recipes import RECIPES
from searchkit.indexer.vectors.segments import all_rows, write_segment
from searchkit.models.embedder import Embedder
from searchkit.ranking import MODES, SearchOptions
from searchkit.records import Document
from searchkit.repair import Repair, repair


@cache
def model() -> Embedder:
    """The built-in model, loaded once: it starts faster than any that needs torch."""
    return Embedder("builtin")


QUERIES = ["why does bread rise", "the sun"]


def notes(start: int, stop: int) -> list[Document]:
    return [Document(str(n), TEXTS[n], title=f"Note {n}", metadata={"n": n}) for n in range(start, stop)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two segments, one document cut into passages, two documents deleted. No test changes it."""
    folder = tmp_path_factory.mktemp("check") / "notes.index"
    with SearchEngine.create(folder, model=model(), chunk_tokens=40) as engine:
        engine.add([*notes(0, 15), Document("long", " ".join(SENTENCES), metadata={"n": 99})])
        engine.add(notes(15, 30))
        engine.delete(["3", "21"])
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "notes.index")


def answers(folder: Path) -> list[list[tuple[str, int, float]]]:
    with SearchEngine.open(folder, model=model()) as engine:
        return [
            [(hit.id, hit.start, hit.score) for hit in hits]
            for mode in MODES[:2]
            for hits in engine.search_many(QUERIES, k=40, options=SearchOptions(mode=mode))
        ]


def damaged(folder: Path) -> dict[str, str]:
    return {finding.part: finding.damage for finding in check(folder) if not finding.ok}


def flip(file: Path, at: int = -20) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0x55
    file.write_bytes(content)


def sql(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / "index.db")) as db, db:
        for statement in statements:
            db.execute(statement)


def segment_files(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"segments/*/{name}"))


def store_as(folder: Path, recipe: str, **options: Any) -> None:
    with SearchEngine.open(folder, model=model(), writable=True) as engine:
        engine.store_as(recipe, **options)


def repaired(folder: Path) -> Repair:
    report = repair(folder)
    assert report.findings == check(folder)
    assert damaged(folder) == {}
    return report


# Checking


def test_an_undamaged_index_has_no_findings_and_is_left_as_it_is(folder: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in [folder / "index.db", *folder.glob("segments/*/*")]}
    findings = check(folder)
    parts = ["index.db", "settings", "documents", "segments/000001", "segments/000002", "lexical"]
    assert [(finding.part, finding.damage) for finding in findings] == [(part, "") for part in parts]
    assert findings[2].note == "29"
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert repair(folder).done == []


def test_an_empty_index_is_undamaged(tmp_path: Path) -> None:
    SearchEngine.create(tmp_path / "x", model=model()).close()
    assert [finding.part for finding in check(tmp_path / "x")] == ["index.db", "settings", "documents", "lexical"]
    assert damaged(tmp_path / "x") == {}
    assert repair(tmp_path / "x").done == []


@pytest.mark.parametrize(
    ("damage", "part", "said"),
    [
        (lambda f: flip(segment_files(f, "dense.faiss")[0]), "segments/000001", "dense.faiss is damaged"),
        (lambda f: segment_files(f, "docs.i64")[1].unlink(), "segments/000002", "docs.i64 is missing"),
        (lambda f: sql(f, "UPDATE documents SET text = 'x' WHERE id = '7'"), "documents", "checksums: 7"),
        (lambda f: sql(f, "UPDATE passages SET stop = 5 WHERE row = 2"), "documents", "checksums: 2"),
        (lambda f: sql(f, "DELETE FROM passages WHERE row = 4"), "documents", "checksums: 4"),
        (lambda f: sql(f, "INSERT INTO passages VALUES (900, 2, 0, 1)"), "documents", "1 passages belong to none"),
        (lambda f: sql(f, "UPDATE settings SET value = '30' WHERE key = 'documents'"), "settings", "their checksum"),
        (lambda f: sql(f, "UPDATE segments SET count = 3 WHERE first_row = 0"), "settings", "their checksum"),
        (lambda f: sql(f, "UPDATE documents SET deleted = 0 WHERE id = '3'"), "settings", "deletions differ"),
        (lambda f: flip(next(f.glob("lexical/*/*.store"))), "lexical", "damaged (its checksum differs)"),
        (lambda f: next(f.glob("lexical/*/*.term")).unlink(), "lexical", "is missing"),
        (lambda f: (f / "last.commit").unlink(), "last.commit", "commits lost with"),
    ],
)
def test_damage_is_reported_for_the_right_part(
    folder: Path, damage: Callable[[Path], None], part: str, said: str
) -> None:
    damage(folder)
    assert said in damaged(folder)[part]


def test_an_unreadable_database_is_reported_and_not_repaired(folder: Path) -> None:
    (folder / "index.db").write_bytes(b"no database at all, but long enough " * 100)
    (finding,) = check(folder)
    assert finding.part == "index.db"
    assert "build the index again, or restore index.db from a copy" in finding.damage
    with pytest.raises(StoreError, match=r"cannot be read .*or restore index\.db from a copy"):
        repair(folder)


def test_a_folder_that_is_not_an_index_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not an index"):
        check(tmp_path)
    with pytest.raises(StoreError, match="is not an index"):
        repair(tmp_path)


def test_an_index_that_is_being_written_is_not_repaired(folder: Path) -> None:
    with Store(folder, writable=True), pytest.raises(StoreError, match="is being written by process"):
        repair(folder)


def test_wrong_vectors_are_detected_and_embedded_again(folder: Path) -> None:
    before = answers(folder)
    with Store(folder, writable=True) as store:
        entries = [segment.entry for segment in tables.named_segments(store)]
        rows, docs = tables.passage_rows(store, 0, entries[1].first_row)
        wrong = np.full((len(rows), store.storage.plan.dim), np.nan, np.float32)
        bad = write_segment(
            folder / "segments", store.backend, store.template(), [wrong], docs, rows, keep_vectors=True
        )
        tables.replace_damaged(store, [bad, entries[1]])
    assert damaged(folder) == {"segments/000003": "vectors are not finite or not of unit length"}
    assert any("embedded again" in done for done in repaired(folder).done)
    assert answers(folder) == before


# Repairing: the index answers as before


FLAT_DAMAGE: dict[str, Callable[[Path], None]] = {
    "documents of rows": lambda f: segment_files(f, "docs.i64")[0].unlink(),
    "vectors": lambda f: flip(segment_files(f, "dense.faiss")[1]),
    "a segment": lambda f: shutil.rmtree(f / "segments" / "000001"),
    "all segments": lambda f: shutil.rmtree(f / "segments"),
    "lexical index": lambda f: flip(next(f.glob("lexical/*/*.store"))),
    "whole lexical index": lambda f: shutil.rmtree(f / "lexical"),
    "a count": lambda f: sql(f, "UPDATE settings SET value = '12' WHERE key = 'passages'"),
    "a deletion": lambda f: sql(f, "UPDATE documents SET deleted = 0 WHERE id = '3'"),
    "a document deleted": lambda f: sql(f, "UPDATE documents SET deleted = 1 WHERE id = '4'"),
    "a stray passage": lambda f: sql(f, "INSERT INTO passages VALUES (900, 2, 0, 1)"),
}


@pytest.mark.parametrize("kind", FLAT_DAMAGE)
def test_a_repaired_flat_index_returns_equal_answers(folder: Path, kind: str) -> None:
    before = answers(folder)
    FLAT_DAMAGE[kind](folder)
    assert damaged(folder) != {}
    report = repaired(folder)
    assert report.done
    assert report.lost == []
    assert answers(folder) == before


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        *((recipe, name) for recipe in ("int8", "rabitq", "binary") for name in ("dense.faiss", "vectors.f16")),
        *((recipe, "dense.faiss") for recipe in ("fp16", "hnsw")),
        *((recipe, "docs.i64") for recipe in ("int8", "binary", "hnsw")),
    ],
)
def test_a_compressed_index_is_rebuilt_from_what_it_keeps(folder: Path, recipe: str, name: str) -> None:
    store_as(folder, recipe)
    before = answers(folder)
    for file in segment_files(folder, name):
        flip(file)
    report = repaired(folder)
    source = "dense.faiss" if RECIPES[recipe].faithful else "vectors.f16"
    assert any("embedded again" in done for done in report.done) == (name == source)
    after = answers(folder)
    if name != "vectors.f16":
        assert after == before
    for was, now in zip(before, after, strict=True):
        assert {each[0] for each in was} == {each[0] for each in now}
        np.testing.assert_allclose(sorted(each[2] for each in was), sorted(each[2] for each in now), atol=0.01)


@pytest.mark.parametrize("name", ["dense.faiss", "docs.i64"])
def test_codes_without_vectors_are_kept_if_possible(folder: Path, name: str) -> None:
    store_as(folder, "int8", keep_vectors=False)
    before = answers(folder)
    flip(segment_files(folder, name)[0])
    again = any("embedded again" in done for done in repaired(folder).done)
    assert again == (name == "dense.faiss")
    for was, now in zip(before, answers(folder), strict=True):
        assert [each[:2] for each in was] == [each[:2] for each in now]


def test_a_compacted_segment_gets_its_rows_back(folder: Path) -> None:
    with SearchEngine.open(folder, model=model(), writable=True) as engine:
        engine.compact()
    before = answers(folder)
    (file,) = segment_files(folder, "rows.i64")
    flip(file)
    assert "rows.i64 is damaged" in "".join(damaged(folder).values())
    assert not any("embedded" in done for done in repaired(folder).done)
    assert answers(folder) == before


@pytest.mark.parametrize("recipe", ["int8", "rabitq"])
def test_a_lost_codebook_is_taken_from_a_segment(folder: Path, recipe: str) -> None:
    store_as(folder, recipe)
    before = answers(folder)
    flip(next(folder.glob("codebooks/*")))
    assert set(damaged(folder)) == {"codebook"}
    assert [done.rstrip("0123456789") for done in repaired(folder).done] == ["codebook: taken from segments/"]
    assert answers(folder) == before
    with SearchEngine.open(folder, model=model(), writable=True) as engine:
        engine.add([Document("new", "Yeast, again.")])
        assert engine.search("yeast again", k=1)[0].id == "new"


def test_a_codebook_lost_with_all_its_codes_is_trained_again(folder: Path) -> None:
    store_as(folder, "int8")
    before = answers(folder)
    for file in [*folder.glob("codebooks/*"), *segment_files(folder, "dense.faiss")]:
        flip(file)
    assert "codebook: recipe int8 trained again" in repaired(folder).done
    with Store(folder) as store:
        assert store.storage.plan.recipe == "int8"
    for was, now in zip(before, answers(folder), strict=True):
        np.testing.assert_allclose([each[2] for each in was], [each[2] for each in now], atol=0.02)


LOST = {
    "title": "UPDATE documents SET title = CAST(x'ff' AS TEXT) WHERE id = '11'",
    "text": "UPDATE documents SET text = 'Bread sinks.' WHERE id = '11'",
    "no text": "UPDATE documents SET text = CAST(x'ff4272656164' AS TEXT) WHERE id = '11'",
    "another id": "UPDATE documents SET id = 'eleven' WHERE id = '11'",
    "metadata": "UPDATE documents SET metadata = '{' WHERE id = '11'",
    "row": "UPDATE documents SET first_row = 2 WHERE id = '11'",
    "passages": "UPDATE documents SET passages = 'many' WHERE id = '11'",
}


@pytest.mark.parametrize("kind", LOST)
def test_a_damaged_document_is_removed_and_written_to_a_file(folder: Path, kind: str) -> None:
    sql(folder, LOST[kind])
    report = repaired(folder)
    name = "eleven" if kind == "another id" else "11"
    assert report.lost == [name]
    assert report.file == folder.with_name("notes.index.lost.jsonl")
    (row,) = [json.loads(line) for line in report.file.read_text().splitlines()]
    assert (row["id"], row["title"]) == (name, "\N{REPLACEMENT CHARACTER}" if kind == "title" else "Note 11")
    with SearchEngine.open(folder, model=model(), writable=True) as engine:
        assert len(engine) == 28
        assert "11" not in {hit.id for hit in engine.search("bread rises because yeast makes gas", k=40)}
        assert engine.add(notes(11, 12)).documents == 1
        assert engine.search(TEXTS[11], k=1)[0].id == "11"


def test_a_repair_that_fails_changes_nothing(folder: Path) -> None:
    sql(folder, LOST["text"])
    flip(segment_files(folder, "dense.faiss")[0])
    before = damaged(folder)
    with pytest.raises(ValueError, match="there is no model folder 'nowhere'"):
        repair(folder, model="nowhere")
    assert damaged(folder) == before
    assert not folder.with_name("notes.index.lost.jsonl").exists()
    repaired(folder)


@pytest.mark.parametrize("content", [None, b"more" * 40])
def test_the_number_of_the_last_commit_is_written_again(folder: Path, content: bytes | None) -> None:
    (folder / "last.commit").write_bytes(content) if content else (folder / "last.commit").unlink()
    before = answers(folder)
    assert repaired(folder).done == ["last.commit: written again"]
    assert answers(folder) == before


def test_a_missing_document_is_noticed(folder: Path) -> None:
    sql(folder, "DELETE FROM documents WHERE id = '11'")
    assert "29 documents, but 28 found" in damaged(folder)["settings"]
    assert "some are missing; 1 passages belong to none" in damaged(folder)["documents"]
    assert "documents: 1 are missing from the database; add them again" in repaired(folder).done
    assert {id for id, _, _ in answers(folder)[0]} == {"long", *(str(n) for n in range(30) if n not in (3, 11, 21))}


def test_a_damaged_document_that_was_deleted_is_no_loss(folder: Path) -> None:
    sql(folder, "UPDATE documents SET text = 'x', first_row = 7 WHERE id = '3'")
    report = repaired(folder)
    assert (report.lost, report.file) == ([], None)
    assert {id for id, _, _ in answers(folder)[0]} == {"long", *(str(n) for n in range(30) if n not in (3, 21))}


def test_a_damaged_search_tree_of_the_database_is_rebuilt(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "index.db")) as db, db:
        db.execute("PRAGMA writable_schema = on")
        (root,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'living'").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    flip(folder / "index.db", root * size - 3)  # the last key on the page
    assert "index" in damaged(folder)["index.db"]
    assert "index.db: its search trees rebuilt from its tables" in repaired(folder).done


def test_settings_that_cannot_be_determined_are_not_guessed(folder: Path) -> None:
    sql(folder, "UPDATE settings SET value = '\"german\"' WHERE key = 'language'")
    before = sorted(folder.rglob("*"))
    with pytest.raises(
        StoreError, match="its settings differ from their checksum, and which of them is wrong cannot be"
    ):
        repair(folder)
    assert sorted(folder.rglob("*")) == before


def test_segments_missing_from_the_list_are_not_removed(folder: Path) -> None:
    sql(folder, "DELETE FROM segments WHERE first_row = 0")
    with pytest.raises(StoreError, match="settings differ"):
        repair(folder)
    assert len(segment_files(folder, "dense.faiss")) == 2


def test_deletions_that_cannot_be_determined_are_not_guessed(folder: Path) -> None:
    sql(folder, "UPDATE documents SET deleted = 3 WHERE id IN ('5', '6')")
    with pytest.raises(StoreError, match="its deletions differ from their checksum"):
        repair(folder)


def test_files_of_a_stopped_writer_are_reported_and_removed(folder: Path) -> None:
    shutil.copytree(folder / "segments" / "000001", folder / "segments" / "000009.tmp")
    (finding,) = [finding for finding in check(folder) if finding.part == "left over"]
    assert finding.ok
    assert finding.note.startswith("segments/000009.tmp ")
    assert repaired(folder).done == ["segments/000009.tmp: removed, no commit names it"]
    assert not (folder / "segments" / "000009.tmp").exists()


def test_a_lexical_index_that_lags_behind_is_noted_and_brought_up_to_date(folder: Path) -> None:
    before = answers(folder)
    sql(folder, "UPDATE settings SET value = '{}' WHERE key = 'lexical_files'")
    with closing(sqlite3.connect(folder / "index.db")) as db, db:
        db.execute("UPDATE settings SET value = ? WHERE key = 'seal'", (json.dumps(settings_checksum(db)),))
    shutil.rmtree(folder / "lexical" / "000001")
    (finding,) = [finding for finding in check(folder) if finding.part == "lexical"]
    assert finding.ok
    assert "passages behind" in finding.note
    repaired(folder)
    assert check(folder)[-1].note == ""
    assert answers(folder) == before


def test_rows_and_vectors_match_after_a_repair(folder: Path) -> None:
    sql(folder, LOST["text"])
    flip(segment_files(folder, "docs.i64")[1])
    repaired(folder)
    with Store(folder) as store:
        snapshot = store.snapshot()
        rows, docs = tables.passage_rows(store, 0, 1 << 62)
        np.testing.assert_array_equal(all_rows(snapshot.segments), rows)
        np.testing.assert_array_equal(np.concatenate([segment.docs for segment in snapshot.segments]), docs)
        assert snapshot.documents == 28


@pytest.mark.parametrize("recipe", ["fp16", "int8", "rabitq", "binary", "hnsw"])
def test_a_compressed_index_that_was_opened_again_takes_more_documents(folder: Path, recipe: str) -> None:
    store_as(folder, recipe)
    with SearchEngine.open(folder, model=model(), writable=True) as engine:
        engine.add([Document("new", "Yeast, again.")])
        assert engine.search("yeast again", k=1)[0].id == "new"
    assert damaged(folder) == {}


# Metadata that is not JSON, which earlier versions stored


@pytest.fixture
def with_nan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    bad = {"n": float("nan"), "tags": ["tea", float("-inf")], "year": 2020}
    with SearchEngine.open(folder, model=model(), writable=True) as engine, monkeypatch.context() as patch:
        patch.setattr("searchkit.ingest.check_document", lambda _: None)
        engine.add([Document("nan", "Black tea.", metadata=bad), Document("gone", "Tea.", metadata=bad)])
        engine.delete(["gone"])
    return folder


def matches(folder: Path, where: dict[str, Any]) -> set[str]:
    with SearchEngine.open(folder, model=model()) as engine:
        return {hit.id for mode in MODES for hit in engine.search("tea note", k=50, mode=mode, where=where)}


def test_nan_in_metadata_is_reported_with_its_document_and_counts_as_null_in_filters(
    with_nan: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (said,) = damaged(with_nan).values()
    assert said == "1 have NaN or Infinity in their metadata, which is not JSON: nan"
    for _ in range(2):
        assert matches(with_nan, {"n": {"$lt": 5}}) == {"0", "1", "2", "4"}
        assert matches(with_nan, {"year": {"$gte": 2000}}) == {"nan"}
        assert matches(with_nan, {"tags": "tea"}) == {"nan"}
        assert matches(with_nan, {"n": None}) == {"nan"}
        with SearchEngine.open(with_nan, model=model(), writable=True) as engine:
            assert engine.delete(where={"n": 7}, dry_run=True) == (1, [])
            engine.delete(["7"])
            engine.add(notes(7, 8))
            assert [fault.always for fault in engine.filter_faults({"year": {"$gte": "x"}, "tags": "tea"})] == [False]
    assert "read NaN and Infinity in metadata as null" in caplog.text
    assert "build" not in caplog.text


def test_nan_in_metadata_is_repaired_to_null(with_nan: Path) -> None:
    assert repaired(with_nan).done[0] == "documents: NaN and Infinity replaced by null in the metadata of 1"
    with SearchEngine.open(with_nan, model=model(), writable=True) as engine:
        document = engine.get("nan")
        assert document == Document("nan", "Black tea.", metadata={"n": None, "tags": ["tea", None], "year": 2020})
        assert engine.add([document]).unchanged == 1
        assert matches(with_nan, {"n": None}) == {"nan"}
        engine.compact()
    assert damaged(with_nan) == {}


@pytest.mark.parametrize("way", ["update", "delete"])
def test_a_document_with_nan_can_be_corrected_or_deleted(with_nan: Path, way: str) -> None:
    with SearchEngine.open(with_nan, model=model(), writable=True) as engine:
        if way == "update":
            engine.add([Document("nan", "Black tea.", metadata={"n": 3})], update=True)
        else:
            engine.delete(["nan"])
    assert damaged(with_nan) == {}
    assert matches(with_nan, {"n": {"$lt": 5}}) == {"0", "1", "2", "4"} | ({"nan"} if way == "update" else set())
