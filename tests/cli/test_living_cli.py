"""The commands of an index that lives: add, update, delete, compact, check, and search under a filter."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from commands import call, write_lines
from texts import TEXTS

from searchkit.cli.info import code_bytes
from searchkit.engine import SearchEngine
from searchkit.indexer.store import Store
from searchkit.indexer.vectors.faiss_library import faiss_module
from searchkit.indexer.vectors.recipes import RECIPES, plan

ROWS = [{"id": str(n), "text": text, "year": 2000 + n, "lang": "en"} for n, text in enumerate(TEXTS[:20])]
NEW = [{"id": "new", "text": "The kettle sings before the tea is made.", "year": 2030, "lang": "de"}]


def found(index: Path, *options: object) -> list[str]:
    asked = ("search", index, "it is so", "-k", 50, "--mode", "lexical", "--format", "json")
    (line,) = call(*asked, *options).stdout.splitlines()
    return [hit["id"] for hit in json.loads(line)["hits"]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty documents of the years 2000 to 2019. No test changes it."""
    place = tmp_path_factory.mktemp("living")
    call("index", write_lines(place / "notes.jsonl", ROWS), "--index", place / "notes.index")
    return place / "notes.index"


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "notes.index")


# Adding and updating


def test_new_documents_are_added_and_found(index: Path, tmp_path: Path) -> None:
    corpus = write_lines(tmp_path / "new.jsonl", [*ROWS[:2], *NEW])
    added = call("add", index, corpus).stdout
    assert f"{index}: 21 documents (1 new in 1 passage, 2 unchanged)" in added
    assert "new" in call("search", index, "kettle", "-k", 1, "--format", "json").stdout
    report = json.loads(call("add", index, corpus, "--format", "json").stdout)
    assert (report["total"], report["documents"], report["updated"], report["unchanged"]) == (21, 0, 0, 3)


def test_other_content_under_an_id_is_refused_by_add_and_taken_by_update(index: Path, tmp_path: Path) -> None:
    corpus = write_lines(tmp_path / "new.jsonl", [{"id": "4", "text": "A kettle, in place of an oboe."}, *NEW])
    refused = call("add", index, corpus, code=1).stderr
    assert f"Error: {corpus}:1: id '4' is in the index with other content; to replace it: searchkit update" in refused
    updated = call("update", index, corpus).stdout
    assert f"{index}: 21 documents (1 new and 1 replaced in 2 passages, 0 unchanged)" in updated
    hits = json.loads(call("search", index, "oboe kettle", "--mode", "lexical", "--format", "json").stdout)["hits"]
    assert {hit["id"]: hit["text"] for hit in hits}["4"] == "A kettle, in place of an oboe."
    again = call("update", index, corpus, "--format", "json").stdout
    assert {name: json.loads(again)[name] for name in ("documents", "updated", "unchanged")} == {
        "documents": 0, "updated": 0, "unchanged": 2,
    }  # fmt: skip


def test_refused_rows_are_kept_aside_on_request(index: Path, tmp_path: Path) -> None:
    corpus = write_lines(tmp_path / "new.jsonl", [{"id": "4", "text": "Other."}, {"id": "x"}, *NEW])
    result = call("add", index, corpus, "--on-error", "skip")
    assert "21 documents (1 new" in result.stdout
    rejects = tmp_path / "notes.index.rejects.jsonl"
    assert "rejected: 2 of 3, the first" in result.stderr
    assert f"; see {rejects}" in result.stderr
    assert [json.loads(line)["place"] for line in rejects.read_text().splitlines()] == [f"{corpus}:1", f"{corpus}:2"]


def test_documents_come_by_standard_input_under_other_names(index: Path) -> None:
    line = json.dumps({"key": "new", "body": "A kettle."}) + "\n"
    result = call("add", index, "-", "--id-field", "key", "--text-field", "body", stdin=line)
    assert "21 documents (1 new" in result.stdout


@pytest.mark.parametrize("command", ["add", "update"])
def test_there_is_nothing_to_add_to(command: str, index: Path, tmp_path: Path) -> None:
    corpus = write_lines(tmp_path / "new.jsonl", NEW)
    assert "is not an index" in call(command, tmp_path, corpus, code=1).stderr
    assert "does not exist" in call(command, tmp_path / "none", corpus, code=2).stderr
    assert "lost.jsonl" in call(command, index, tmp_path / "lost.jsonl", code=1).stderr
    assert "there is no model folder 'nowhere'" in call(command, index, corpus, "--model", "nowhere", code=1).stderr
    assert found(index)


# Deleting and compacting


def test_documents_are_deleted_by_id_by_file_and_by_filter(index: Path, tmp_path: Path) -> None:
    assert call("delete", index, "0", "1").stdout == f"{index}: 2 documents deleted, of 20\n"
    (tmp_path / "ids.txt").write_text("2\n\n3\r\n")
    assert call("delete", index, "--ids", tmp_path / "ids.txt").stdout == f"{index}: 2 documents deleted, of 18\n"
    assert call("delete", index, "--ids", "-", stdin="4\n").stdout == f"{index}: 1 document deleted, of 16\n"
    where = ("--where", '{"year": {"$gte": 2015}}')
    assert call("delete", index, "5", *where).stdout == f"{index}: 6 documents deleted, of 15\n"
    assert set(found(index)) == {str(n) for n in range(10, 15)}


def test_a_dry_run_only_counts(index: Path) -> None:
    result = call("delete", index, "0", "nobody", "--where", '{"year": 2001}', "--dry-run")
    assert result.stdout == f"{index}: 2 documents would be deleted, of 20\n"
    assert result.stderr == "not in the index: nobody\n"
    assert json.loads(call("info", index, "--format", "json").stdout)["documents"] == 20


def test_unknown_ids_are_named_up_to_ten(index: Path) -> None:
    unknown = [f"x{n}" for n in range(12)]
    result = call("delete", index, "0", *unknown)
    assert result.stdout == f"{index}: 1 document deleted, of 20\n"
    assert result.stderr == f"not in the index: {', '.join(unknown[:10])} and 2 more\n"
    report = json.loads(call("delete", index, "0", *unknown, "--format", "json").stdout)
    expected = {"index": str(index), "deleted": 0, "total": 19, "unknown": ["0", *unknown], "dry_run": False}
    assert report == expected


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        ((), "say what to delete: ids, --ids FILE or --where JSON", 2),
        (("--where", "{}"), "matches every document", 2),
        (("--where", "year=2015"), "the filter is not JSON", 1),
        (("--where", '{"year": {"$gt": []}}'), '$gt of "year"', 1),
        (("--where", '{"year": {"$after": 3}}'), 'unknown operator "$after"', 1),
        (("--ids", "nowhere.txt"), "nowhere.txt", 2),
    ],
)
def test_nothing_is_deleted_by_misuse(index: Path, options: tuple[str, ...], said: str, code: int) -> None:
    assert said in call("delete", index, *options, code=code).stderr
    assert json.loads(call("info", index, "--format", "json").stdout)["documents"] == 20


def test_compacting_is_suggested_when_a_fifth_is_deleted_and_frees_the_space(index: Path) -> None:
    assert call("delete", index, "0", "1", "2", "3").stderr == ""
    hint = call("delete", index, "4").stderr
    assert hint == f"25% of the passages are deleted; free their space with: searchkit compact {index}\n"
    facts = json.loads(call("info", index, "--format", "json").stdout)
    assert facts["deleted, waiting for compaction"] == 5
    before = found(index)
    done = call("compact", index).stdout
    assert done.startswith(f"{index}: freed the space of 5 deleted documents (5 passages): ")
    assert json.loads(call("info", index, "--format", "json").stdout)["deleted, waiting for compaction"] == 0
    assert found(index) == before
    report = json.loads(call("compact", index, "--format", "json").stdout)
    assert (report["documents"], report["passages"]) == (0, 0)
    assert report["after"] <= report["before"]
    call("check", index)


def test_compacting_gives_the_disk_its_space_back(index: Path, tmp_path: Path) -> None:
    rows = [{"id": f"long {n}", "text": "A kettle.", "abstract": "x" * 30_000} for n in range(3)]
    call("add", index, write_lines(tmp_path / "long.jsonl", rows))
    before = (index / "index.db").stat().st_size
    call("delete", index, *(row["id"] for row in rows))
    report = json.loads(call("compact", index, "--format", "json").stdout)
    assert report["documents"] == 3
    assert report["before"] - report["after"] > 80_000
    assert before - (index / "index.db").stat().st_size > 80_000


@pytest.mark.parametrize("command", [("delete", "0"), ("compact",), ("check", "--repair")])
def test_a_second_writer_is_refused(index: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    shutil.rmtree(index / "segments")
    with Store(index, writable=True):
        assert "is being written by process" in call(command[0], index, *command[1:], code=1).stderr


# Searching under a filter


def test_only_what_the_filter_lets_through_is_found(index: Path) -> None:
    assert set(found(index, "--where", '{"year": {"$gte": 2015}}')) == {str(n) for n in range(15, 20)}
    assert found(index, "--where", '{"lang": "fr"}') == []


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (
            "year>2015",
            "the filter is not JSON (Expecting value: line 1 column 1 (char 0)): year>2015; expected something",
        ),
        ("[1]", "the filter is [1]; expected an object"),
        ('{"year": {"$gte": 2015, "$gte": 2016}}', 'names "$gte" twice'),
        ('{"$gte": 3}', "$gte goes inside a key"),
        ('{"day": {"$gte": {"$date": "soon"}}}', 'has the date "soon"'),
    ],
)
def test_a_filter_that_cannot_be_understood_is_explained(index: Path, where: str, said: str) -> None:
    result = call("search", index, "tea", "--mode", "lexical", "--where", where, code=1)
    assert said in result.stderr
    assert result.stdout == ""


# Checking


def test_a_sound_index_is_ok_in_every_part(index: Path) -> None:
    lines = call("check", index).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [part, "ok"] for part in ("index.db", "settings", "documents", "segments/000001", "lexical")
    ]
    report = json.loads(call("check", index, "--format", "json").stdout)
    assert (report["index"], report["sound"], report["lost"], report["repaired"]) == (str(index), True, [], [])
    assert report["parts"][2] == {"part": "documents", "damage": "", "note": "20", "ok": True}


def test_damage_is_named_mended_and_gone(index: Path) -> None:
    before = found(index)
    file = index / "segments" / "000001" / "docs.i64"
    file.write_bytes(file.read_bytes()[:-8])
    result = call("check", index, code=1)
    assert "segments/000001  damaged: docs.i64 has 152 bytes, expected 160\n" in result.stdout
    assert f"repair it with: searchkit check {index} --repair" in result.stderr
    assert json.loads(call("check", index, "--format", "json", code=1).stdout)["sound"] is False
    mended = call("check", index, "--repair").stdout
    assert "repaired  segments/000001: its list of documents rebuilt from the database\n" in mended
    assert "damaged" not in mended
    assert found(index) == before


def test_lost_documents_are_told_of(index: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(index / "index.db")) as db, db:
        db.execute("UPDATE documents SET text = 'Yeast.' WHERE id = '7'")
    assert "documents        damaged: 1 differ from their checksums: 7\n" in call("check", index, code=1).stdout
    result = call("check", index, "--repair")
    lost = tmp_path / "notes.index.lost.jsonl"
    assert f"is in {lost}. Add them again: searchkit add {index} CORPUS" in result.stderr
    assert json.loads(lost.read_text()) == {
        "id": "7", "title": "", "text": "Yeast.", "metadata": {"lang": "en", "year": 2007},
    }  # fmt: skip
    assert "20 documents (1 new" in call("add", index, write_lines(tmp_path / "notes.jsonl", ROWS)).stdout


def test_a_model_that_has_gone_is_missed_only_where_vectors_are_lost(index: Path) -> None:
    (index / "segments" / "000001" / "docs.i64").unlink()
    call("check", index, "--repair", "--model", "nowhere")
    next(index.glob("segments/*/dense.faiss")).unlink()
    assert "there is no model folder 'nowhere'" in call("check", index, "--repair", "--model", "nowhere", code=1).stderr
    assert "20 of 20 passages embedded again" in call("check", index, "--repair").stdout


def test_a_database_that_cannot_be_read_is_said(index: Path, tmp_path: Path) -> None:
    (index / "index.db").write_bytes(b"nothing" * 1000)
    result = call("check", index, code=1)
    assert "index.db  damaged: " in result.stdout
    assert "restore index.db from a copy" in call("check", index, "--repair", code=1).stderr
    assert "is not an index" in call("check", tmp_path, code=1).stderr


# What is said of an index


@pytest.mark.parametrize("recipe", [name for name in RECIPES if RECIPES[name].factory])
def test_code_bytes_are_those_of_faiss(recipe: str) -> None:
    faiss = faiss_module()
    chosen = plan(recipe, 96, 1000)
    made = faiss.index_factory(96, chosen.factory, faiss.METRIC_INNER_PRODUCT)
    inner = faiss.try_extract_index_ivf(made) or made
    inner = faiss.downcast_index(inner.storage) if recipe == "hnsw" else inner
    assert code_bytes(chosen) == inner.code_size


def test_info_shows_how_vectors_are_stored(index: Path) -> None:
    with SearchEngine.open(index, writable=True) as engine:
        engine.store_as("binary")
    facts = json.loads(call("info", index, "--format", "json").stdout)
    size = sum(file.stat().st_size for file in index.rglob("*") if file.is_file() and file.name != "write.lock")
    assert facts["recipe"] == "binary (1 bit per dimension, the sign)"
    assert facts["code bytes a vector"] == facts["model dim"] / 8
    assert facts["exact vectors beside"] == "half precision"
    assert facts["candidates scored again, times k"] == 10
    assert facts["bytes a document"] == pytest.approx(size / 20, rel=0.1)
    assert not {"seal", "storage", "lexical_files"} & facts.keys()


@pytest.mark.parametrize("command", ["add", "update", "delete", "compact", "check"])
def test_every_command_explains_itself(command: str) -> None:
    assert command in call("--help").stdout
    assert call(command, "--help").stdout.startswith(f"Usage: main {command}")
