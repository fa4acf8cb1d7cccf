"""What users get wrong: every command answers with one message that says what came and what to do."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from commands import call, write_lines

ROWS = [{"id": str(n), "text": f"note {n} about tea", "year": 2000 + n} for n in range(12)]
JUDGED = ("--queries", "queries.jsonl", "--qrels", "qrels.tsv")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good and bad files, indexes and models. No test changes it."""
    folder = tmp_path_factory.mktemp("bad")
    write_lines(folder / "notes.jsonl", ROWS)
    call("index", folder / "notes.jsonl", "--index", folder / "notes.index")
    write_lines(folder / "queries.jsonl", [{"_id": "q1", "text": "tea"}, {"_id": "q2", "text": "note"}])
    (folder / "qrels.tsv").write_text("q1\t1\t1\nq2\t2\t1\n")
    write_lines(folder / "pairs.jsonl", [{"query": f"about {n}", "positive_id": str(n % 12)} for n in range(60)])
    write_lines(folder / "bad-pairs.jsonl", [{"query": 3}])
    write_lines(folder / "run.trec", ["q1 Q0 1 1 0.5 x\nq2 Q0 2 1 0.4 x\n"])
    write_lines(folder / "short.trec", ["q1 1 0.5\n"])
    write_lines(folder / "report.json", ['{"modes": 3}'])
    for name, content in {
        "empty": b"",
        "noise": b"\x89\xff\x00noise\n" * 9,
        "bad.json": b"{",
        "list.json": b"[1]",
    }.items():
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    beir(folder / "beir" / "good")
    shutil.copytree(folder / "beir" / "good", folder / "no-split")
    (folder / "no-split" / "qrels" / "test.tsv").unlink()
    damage(folder)
    models(folder)
    return folder


def beir(folder: Path) -> None:
    (folder / "qrels").mkdir(parents=True)
    write_lines(folder / "corpus.jsonl", [{"_id": row["id"], "title": "", "text": row["text"]} for row in ROWS])
    write_lines(folder / "queries.jsonl", [{"_id": "q1", "text": "tea"}])
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\t1\t1\n")


def damage(folder: Path) -> None:
    """Indexes that are half there."""
    for name in ("no-database", "half", "no-settings", "no-table"):
        shutil.copytree(folder / "notes.index", folder / f"{name}.index")
    (folder / "no-database.index" / "index.db").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    shutil.rmtree(folder / "half.index" / "segments")
    for name, statement in (("no-settings", "DELETE FROM settings"), ("no-table", "DROP TABLE documents")):
        with closing(sqlite3.connect(folder / f"{name}.index" / "index.db")) as db, db:
            db.execute(statement)


def models(folder: Path) -> None:
    """Model folders that are none."""
    import searchkit

    builtin = Path(searchkit.__file__).parent / "builtin"
    for name, file, content in (
        ("bad-onnx", "model.onnx", "noise"),
        ("bad-config", "config.json", "[]"),
        ("bad-tokenizer", "tokenizer.json", "{}"),
        ("bad-modules", "modules.json", '[{"path": 5}]'),
        ("bad-length", "sentence_bert_config.json", '{"max_seq_length": "x"}'),
    ):
        (folder / name).mkdir()
        for source in builtin.iterdir():
            (folder / name / source.name).symlink_to(source)
        (folder / name / file).unlink()
        (folder / name / file).write_text(content)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")


BAD_INDEXES = [
    ("folder", "is not an index"),
    ("no-database.index", "build the index again"),
    ("no-settings.index", "has no format number, this version reads 3"),
    ("no-table.index", "no such table: documents"),
]
NOT_A_MODEL = "cannot be loaded as a model"
EXPECTED_MODEL = "expected a folder with config.json"

CASES: list[tuple[tuple[str, ...], int, tuple[str, ...]]] = [
    # Commands on indexes that are none, or damaged
    *[
        ((*command, index, *rest), 1, (index, said))
        for index, said in BAD_INDEXES
        for command, rest in ((("search",), ("tea",)), (("info",), ()), (("delete",), ("1",)), (("compact",), ()))
    ],
    (("search", "notes.jsonl", "tea"), 2, ("notes.jsonl", "is a file")),
    (("search", "nowhere", "tea"), 2, ("nowhere", "does not exist")),
    (("search", "half.index", "tea"), 1, ("half.index", "is missing", "searchkit check INDEX --repair")),
    (("evaluate", "half.index", *JUDGED), 1, ("is missing", "--repair")),
    (("add", "no-table.index", "notes.jsonl"), 1, ("no such table",)),
    (("index", "notes.jsonl", "--index", "folder/../beir"), 1, ("beir exists and is not an index",)),
    (("index", "notes.jsonl", "--index", "notes.jsonl"), 2, ("'--index'", "is a file")),
    (("index", "notes.jsonl", "--index", "empty/x"), 2, ("empty/x cannot be written: empty is a file",)),
    # Corpora
    (("index", "lost.jsonl", "--index", "x"), 1, ("lost.jsonl: no such file or folder",)),
    (("index", "", "--index", "x"), 2, ("'CORPUS'", "it is empty")),
    (("index", "noise", "--index", "x"), 1, ("noise: no suffix; expected one of .jsonl", "--kind")),
    (("index", "noise", "--index", "x", "--kind", "jsonl"), 1, ("noise:1: not utf-8", "--encoding")),
    (("index", "noise", "--index", "x", "--kind", "parquet"), 1, ("noise: cannot be read as Parquet",)),
    (("index", "folder", "--index", "x"), 1, ("folder: no files to read",)),
    (("index", "folder", "--index", "x", "--kind", "csv"), 1, ("a folder, but csv is read from a file",)),
    (("index", "notes.jsonl", "--index", "x", "--kind", "beir"), 1, ("a BEIR corpus is a folder",)),
    (("index", "notes.jsonl", "--index", "x", "--encoding", "klingon"), 1, ('no encoding is called "klingon"',)),
    (("index", "notes.jsonl", "--index", "x", "--text-field", "body"), 1, ('no "body"', "--text-field")),
    (("index", "notes.jsonl", "--index", "x", "--column", "year"), 2, ("--column year: expected NAME:TYPE",)),
    (("index", "notes.jsonl", "--index", "x", "--rejects", "folder"), 2, ("'--rejects'", "is a directory")),
    (("update", "notes.index", "noise"), 1, ("noise: no suffix; expected",)),
    # Settings of an index
    (("index", "notes.jsonl", "--index", "x", "--language", "klingon"), 1, ("no stemmer", "klingon")),
    (("index", "notes.jsonl", "--index", "x", "--recipe", "zip"), 1, ("recipe is 'zip'", "expected one of flat")),
    (("index", "notes.jsonl", "--index", "x", "--recipe", "pq:7"), 1, ("7 bytes do not divide", "pq:6")),
    (("index", "notes.jsonl", "--index", "x", "--dim", "9999"), 1, ("dim is 9999",)),
    (("index", "notes.jsonl", "--index", "x", "--dim", "8"), 1, ("--force-dim",)),
    (("index", "notes.jsonl", "--index", "x", "--max-length", "99999"), 1, ("max_length is 99999",)),
    (("index", "notes.jsonl", "--index", "x", "--chunk-tokens", "4"), 1, ("chunk_tokens is 4; expected 0",)),
    (("index", "notes.jsonl", "--index", "x", "--threads", "0"), 2, ("'--threads'", "x>=1")),
    # Models
    (("index", "notes.jsonl", "--index", "x", "--model", ""), 2, ("'--model'", "it is empty")),
    (("index", "notes.jsonl", "--index", "x", "--model", "a/b/c"), 1, ("no model folder 'a/b/c'",)),
    (("index", "notes.jsonl", "--index", "x", "--model", "adapter"), 1, (NOT_A_MODEL,)),
    *[
        (("index", "notes.jsonl", "--index", "x", "--model", model), 1, (model, NOT_A_MODEL, EXPECTED_MODEL))
        for model in ("folder", "notes.index", "bad-onnx", "bad-config", "bad-tokenizer", "bad-modules", "bad-length")
    ],
    (("search", "notes.index", "tea", "--adapter", "nowhere"), 1, ("adapter_config.json", "PEFT adapter")),
    (("search", "notes.index", "tea", "--device", "cuda:x"), 1, ("device is 'cuda:x'", "expected")),
    (("export", "folder", "out"), 1, (NOT_A_MODEL,)),
    (("export", "builtin", "empty"), 2, ("is a file",)),
    # Searching
    (("search", "notes.index", "caf\udce9"), 1, ("query 1 is not UTF-8: caf\\xe9",)),
    (("search", "notes.index", "tea", "--instruction", "caf\udce9"), 1, ("instruction", "UTF-8")),
    (("search", "notes.index", "tea", "--instruction", "x " * 5000), 1, ("takes 5002 of 256 tokens; shorten it",)),
    (("search", "notes.index", "tea", "--where", "{"), 1, ("the filter is not JSON", "single quotes")),
    (("search", "notes.index", "tea", "--where", "[" * 5000), 1, ("the filter is not JSON",)),
    (("search", "notes.index", "tea", "--where", '{"year": 1e999}'), 1, ("expected a finite number",)),
    (("search", "notes.index", "tea", "--where", '{"$and": 3}'), 1, ("$and has 3; expected a list",)),
    (("search", "notes.index", "tea", "--dense-weight", "nan"), 2, ("nan is not a finite number",)),
    (("search", "notes.index", "--queries", "empty"), 1, ("empty: no queries in it",)),
    (("search", "notes.index", "--queries", "noise"), 1, ("noise:1: not utf-8", "not answered: 9 queries")),
    (("search", "notes.index", "-5 degrees"), 2, ('after "--"',)),
    # Evaluating
    (("evaluate", "notes.index", "--beir", "no-split"), 1, ('no split "test"', "splits there: none")),
    (("evaluate", "notes.index", "--beir", "beir/good", "--split", "dev"), 1, ('no split "dev"', "splits there: test")),
    (("evaluate", "notes.index", *JUDGED, "--split", "dev"), 2, ("--split needs --beir",)),
    (("evaluate", "notes.index", *JUDGED, "--task", "x"), 1, ("no task is called 'x'", "known tasks")),
    (("evaluate", "notes.index", *JUDGED, "--modes", ","), 2, ("is empty; expected a list such as dense,hybrid",)),
    (("evaluate", "notes.index", *JUDGED, "--report", "empty/r"), 2, ("empty is a file",)),
    (("evaluate", "notes.index", *JUDGED, "--runs", "empty"), 2, ("'--runs'", "is a file")),
    (("evaluate", "notes.index", "--queries", "queries.jsonl", "--qrels", "empty"), 1, ("no judgements in it",)),
    (("evaluate", "notes.index", "--queries", "queries.jsonl", "--qrels", "bad.json"), 1, ("bad.json:1", "a table")),
    (("latency", "notes.index", "--seconds", "nan"), 2, ("nan is not a finite number",)),
    (("latency", "notes.index", "--concurrency", "99999"), 2, ("1<=x<=1024",)),
    (("passkey", "--lengths", "9" * 30), 2, ("from 1 to 1,000,000",)),
    (("beir", "nowhere"), 1, ("no folder nowhere", "--download")),
    (("beir", "folder"), 1, ("holds no collection",)),
    (("beir", "beir", "--metric", "x"), 2, ("expected some of ndcg@10",)),
    (("beir", "beir", "--split", "dev"), 1, ('no split "dev"',)),
    (("bitext", "queries.jsonl"), 1, ("queries.jsonl:1", '"sentence1"')),
    (("bitext", "empty"), 1, ("plain text comes in two files",)),
    # Comparing and compressing
    (("compare", "nowhere", "run.trec"), 2, ("there is no file or index nowhere",)),
    (("compare", "run.trec", "short.trec", "--qrels", "qrels.tsv"), 1, ("short.trec:1: 3 columns", "TREC run has 6")),
    (("compare", "report.json"), 1, ("not a report of `searchkit evaluate --report`",)),
    (("compare", "notes.index"), 2, ("--beir FOLDER",)),
    (("compare", "notes.index", *JUDGED, "--modes", "dense,lexical", "--against", "x"), 1, ("no system is called",)),
    (("compare", "notes.index", *JUDGED, "--modes", "dense,lexical", "--metrics", "x"), 1, ("metrics are x",)),
    (("compare", "notes.index", *JUDGED, "--dims", "99999"), 1, ("widths are 99999",)),
    (("compare", "notes.index", *JUDGED, "--recipes", "zip"), 1, ("recipe is 'zip'",)),
    (("compare", "run.trec", "run.trec", "--qrels", "qrels.tsv", "--plot", "p.png"), 1, ("several systems",)),
    (("compress", "notes.index", "--recipes", "flat,zip"), 1, ("recipe is 'zip'",)),
    (("compress", "notes.index", "--max-memory", "x"), 2, ("'x' is not an amount", "8GB")),
    (("compress", "notes.index", "--recipe", "pq:48", "--apply"), 1, ("256 vectors",)),
    # Training
    (("mine", "notes.index", "bad-pairs.jsonl", "--out", "m.jsonl"), 1, ("query is a number",)),
    (("mine", "notes.index", "pairs.jsonl", "--out", "folder"), 2, ("'--out'", "is a directory")),
    (("mine", "notes.index", "pairs.jsonl", "--out", "pairs.jsonl"), 2, ("name another file",)),
    (("train", "lost.jsonl", "--base", "builtin", "--out", "t"), 1, ("lost.jsonl: no such file",)),
    (("train", "pairs.jsonl", "--base", "builtin", "--out", "t"), 1, ("but there is no corpus to look it up in",)),
    (("train", "pairs.jsonl", "--base", "builtin", "--out", "t", "--matryoshka", "a"), 2, ("whole numbers",)),
    (("train", "folder", "--base", "builtin", "--out", "t"), 1, ("folder",)),
    (("adapt", "notes.index"), 2, ("--pairs FILE", "--writer MODEL")),
    (("adapt", "notes.index", "--pairs", "bad-pairs.jsonl"), 1, ("query is a number",)),
    (("adapt", "notes.index", "--pairs", "pairs.jsonl", "--max-cost", "3"), 2, ("name one with --writer",)),
    (("adapt", "notes.index", "--pairs", "pairs.jsonl", "--learning-rate", "nan"), 2, ("not a finite number",)),
    (("synthesize", "--out", "folder", "--model", "m"), 2, ("'--out'", "is a directory")),
    (("synthesize", "--out", "o", "--model", "m", "--base-url", "nope"), 1, ('base_url "nope"', "expected something")),
    (("synthesize", "--out", "o", "--model", "m", "--languages", "en=x"), 2, ("'en=x'", "such as en=3")),
    # The rest
    (("delete", "notes.index", "caf\udce9"), 1, ("UTF-8",)),
    (("delete", "notes.index", "--ids", "noise"), 1, ("noise:1: not utf-8", "nothing was deleted")),
    (("demo", "--index", "notes.index"), 1, ("notes.index is an index already", "--force")),
    (("demo", "--index", "beir"), 1, ("beir exists and is not an index",)),
    (("completion", "ksh"), 2, ("'bash', 'zsh', 'fish'",)),
    (("serch",), 2, ("No such command",)),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "fragments"), CASES, ids=[" ".join(case[0])[:60] for case in CASES])
def test_a_bad_input_gets_a_clear_message(
    world: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, fragments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(world)
    before = sorted(path.name for path in world.iterdir())
    result = call(*arguments, code=code)
    assert "Error: " in result.stderr
    assert not [fragment for fragment in fragments if fragment not in result.stderr], result.stderr
    assert result.stdout == ""
    assert not {"x", "o"} & ({path.name for path in world.iterdir()} - set(before))  # nothing is left behind


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused_before_work(world: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    result = call("evaluate", world / "notes.index", "--report", tmp_path / "r.json", code=2)
    assert "no permission to write" in result.stderr


def test_permissions_are_asked_of_the_operating_system(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    result = call("evaluate", world / "notes.index", "--report", tmp_path / "new" / "r.json", code=2)
    assert f"no permission to write to {tmp_path}" in result.stderr


def test_ids_with_white_space_are_refused_before_searching(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "cellar pump.md").write_text("The pump in the cellar leaks.")
    write_lines(tmp_path / "q.jsonl", [{"_id": "q1", "text": "leaking pump"}])
    (tmp_path / "qrels.tsv").write_text("q1\tcellar pump.md\t1\n")
    call("index", notes, "--index", tmp_path / "n.index")
    judged = ("--queries", tmp_path / "q.jsonl", "--qrels", tmp_path / "qrels.tsv", "--modes", "lexical")
    result = call("evaluate", tmp_path / "n.index", *judged, "--runs", tmp_path / "runs", code=1)
    assert "document id 'cellar pump.md' contains white space" in result.stderr
    assert "searching" not in result.stderr
    assert not (tmp_path / "runs").exists()
    call("evaluate", tmp_path / "n.index", *judged)


def test_undecodable_queries_are_named_and_the_others_answered(world: Path, tmp_path: Path) -> None:
    lines = b"note 1\ncaf\xe9\ntea\n"
    searched = ("search", world / "notes.index", "--mode", "lexical", "--format", "json")
    result = call(*searched, stdin=lines, code=1)
    assert [json.loads(line)["query_id"] for line in result.stdout.splitlines()] == ["1", "3"]
    assert "standard input:2: not utf-8" in result.stderr
    assert "not answered: 1 query" in result.stderr
    (tmp_path / "q.jsonl").write_bytes(b'{"_id": "a", "text": "tea"}\n{"_id": "b", "text": "caf\xe9"}\nnot json\n')
    result = call(*searched, "--queries", tmp_path / "q.jsonl", code=1)
    assert json.loads(result.stdout)["query_id"] == "a"
    assert "q.jsonl:2: not utf-8" in result.stderr
    assert "q.jsonl:3: the row is not JSON" in result.stderr
