"""What a new user meets first: own notes and tables, with the faults that they have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from commands import call

from searchkit.cli.main import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*arguments: str) -> list[str]:
    hits: list[dict[str, Any]] = json.loads(call("search", *arguments, "--format", "json").stdout)["hits"]
    return [hit["id"] for hit in hits]


BOOKS = "id,title,text,year,in_print\nb1,Sourdough,bread,2019,true\nb2,Rye,bread,2003,false\nb3,Pizza,bread,2021,true\n"


def test_filters_on_csv_compare_numbers(folder: Path) -> None:
    (folder / "books.csv").write_text(BOOKS)
    assert "columns: year integer, in_print boolean" in call("index", "books.csv", "--index", "b").stderr
    assert set(found("b", "bread", "--where", '{"year": {"$gte": 2015}}')) == {"b1", "b3"}
    assert set(found("b", "bread", "--where", '{"in_print": false}')) == {"b2"}
    said = call("search", "b", "bread", "--where", '{"yaer": 1}').stderr
    assert 'did you mean "year"?' in said
    assert "metadata year" in call("info", "b").stdout
    assert "integer: 2019, 2003, 2021" in call("info", "b").stdout
    assert "holds for every document" in call("delete", "b", "--where", '{"year": {"$ne": "2019"}}', code=1).stderr
    assert "2 documents deleted" in call("delete", "b", "--where", '{"year": {"$ne": 2019}}').stdout


def test_a_column_can_be_named_text(folder: Path) -> None:
    (folder / "books.csv").write_text(BOOKS)
    call("index", "books.csv", "--index", "b", "--column", "year:text")
    assert found("b", "bread", "--where", '{"year": "2003"}') == ["b2"]
    assert "expected NAME:TYPE" in call("index", "books.csv", "--column", "year", code=2).stderr


def test_delimiter_and_header_are_options(folder: Path) -> None:
    (folder / "a.csv").write_text("id;title;text\n1;Apfel;rot\n")
    said = call("index", "a.csv", code=1).stderr
    assert '--delimiter ";"' in said
    assert "--on-error" not in said
    call("index", "a.csv", "--delimiter", ";")
    assert found("a.index", "rot") == ["1"]
    (folder / "b.tsv").write_text("7\tthe tea\n")
    call("index", "b.tsv", "--no-header")
    assert found("b.index", "tea") == ["7"]


def test_a_bad_row_of_a_table_still_stops_and_says_how_to_go_on(folder: Path) -> None:
    (folder / "a.csv").write_text("id,text\n1,tea,x\n")
    assert call("index", "a.csv", code=1).stderr.endswith(
        "; to skip bad rows and write them to a file: --on-error skip\n"
    )
    assert "nothing could be indexed; rejected: 1 of 1" in call("index", "a.csv", "--on-error", "skip", code=1).stderr
    assert not (folder / "a.index").exists()


def test_a_bad_note_does_not_stop_the_others(folder: Path) -> None:
    (folder / "notes").mkdir()
    (folder / "notes" / "a.md").write_text("rivers")
    (folder / "notes" / "b.docx").write_text("no docx")
    (folder / "notes" / "c.bak").write_text("zebra")
    result = call("index", "notes", "--index", "n")
    assert "1 document (" in result.stdout
    assert "files of other kinds ignored: 1 .bak" in result.stderr
    assert f"rejected: 1 of 2, the first {Path('notes') / 'b.docx'}: not a .docx file" in result.stderr
    assert "not a .docx file" in call("index", "notes", "--index", "m", "--on-error", "raise", code=1).stderr


def test_a_repeated_id_is_rejected_whole(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"id": 1, "text": "tea"}\n{"id": 1, "text": "milk", "year": 5}\n')
    call("index", "a.jsonl", "--on-error", "skip")
    row = json.loads(json.loads((folder / "a.index.rejects.jsonl").read_text())["row"])
    assert row == {"id": "1", "title": "", "text": "milk", "metadata": {"year": 5}}


def test_a_pattern_needs_a_name_for_the_index(folder: Path) -> None:
    (folder / "a.md").write_text("tea")
    assert "--index" in call("index", "*.md", code=2).stderr
    call("index", "*.md", "--index", "x")
    assert found("x", "tea") == ["a.md"]


def test_a_query_that_is_not_utf8_says_how_to_convert_it(folder: Path) -> None:
    (folder / "d.jsonl").write_text('{"id": "a", "text": "green tea"}\n')
    call("index", "d.jsonl", "--index", "d")
    result = CliRunner().invoke(main, ["search", "d", "--format", "json"], input=b"caf\xe9\ntea\n")
    assert result.exit_code == 1
    assert "standard input:1: not utf-8" in result.stderr
    assert "iconv" in result.stderr  # a search has no --encoding
    assert "--encoding" not in result.stderr
    assert json.loads(result.stdout)["hits"][0]["id"] == "a"


def test_a_pattern_without_quotes_says_that_it_needs_them(folder: Path) -> None:
    for name in ("a.md", "b.md"):
        (folder / name).write_text("tea")
    assert "Put a pattern" in call("index", "a.md", "b.md", "--index", "x", code=2).stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("command", [["dump"], ["search", "tea"]])
def test_a_full_disk_is_no_bug(folder: Path, command: list[str]) -> None:
    (folder / "d.jsonl").write_text('{"id": "a", "text": "green tea"}\n')
    call("index", "d.jsonl", "--index", "d")
    arguments = [sys.executable, "-m", "searchkit.cli.main", command[0], "d", *command[1:]]
    with open("/dev/full", "w") as full:
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "bug" not in done.stderr


def test_a_corpus_without_documents_is_told_of(folder: Path) -> None:
    (folder / "a.csv").write_text("id,text\n")
    assert "a.csv holds no documents" in call("index", "a.csv", "--index", "x").stderr
