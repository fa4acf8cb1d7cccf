from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import call, write_lines
from texts import TEXTS

from searchkit.engine import SearchEngine

FLOAT32 = ("--dtype", "float32")
ROWS = [
    {"id": f"n{n}", "title": f"Note {n}", "text": text, "year": 1900 + n, "tags": ["a", "b"][: n % 3]}
    for n, text in enumerate(TEXTS)
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, mistral: Path) -> Path:
    folder = tmp_path_factory.mktemp("inside")
    call(
        "index", write_lines(folder / "notes.jsonl", ROWS), "--index", folder / "x.index", "--model", mistral, *FLOAT32
    )
    return folder / "x.index"


def test_get_prints_documents_and_names_those_that_are_not_there(index: Path) -> None:
    result = call("get", index, "n3", "nobody", "n1", code=1)
    assert result.stdout.index(TEXTS[3]) < result.stdout.index(TEXTS[1])
    assert "not in the index: nobody" in result.stderr
    assert json.loads(call("get", index, "n2", "--format", "json").stdout)["metadata"] == {
        "tags": ["a", "b"],
        "year": 1902,
    }


def test_a_dump_indexed_again_is_the_same_collection(index: Path, tmp_path: Path, mistral: Path) -> None:
    (tmp_path / "dump.jsonl").write_text(call("dump", index).stdout)
    call("index", tmp_path / "dump.jsonl", "--index", tmp_path / "y.index", "--model", mistral)
    with SearchEngine.open(index) as before, SearchEngine.open(tmp_path / "y.index") as after:
        assert list(before) == list(after)
        assert before.store.documents.checksum() == after.store.documents.checksum()


def test_dumped_vectors_are_those_of_the_passages(index: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    call("dump", index, "--vectors", tmp_path / "new" / "x.parquet")
    table = parquet.read_table(tmp_path / "new" / "x.parquet")
    vectors = np.stack(table["vector"].to_numpy())
    with SearchEngine.open(index, dtype="float32") as engine:
        passages = [
            f"{title} {text}" for title, text in zip(*(table[c].to_pylist() for c in ("title", "text")), strict=True)
        ]
        np.testing.assert_allclose(vectors, engine.embedder.encode_passages(passages), atol=1e-5)
    assert table["id"].to_pylist() == [row["id"] for row in ROWS]
    assert json.loads(table["metadata"][4].as_py()) == {"tags": ["a"], "year": 1904}


def test_similar_ranks_as_brute_force_does_without_the_document_itself(index: Path) -> None:
    hits = json.loads(call("similar", index, "n1", "-k", 5, "--format", "json").stdout)["hits"]
    with SearchEngine.open(index, dtype="float32") as engine:
        vectors = engine.embedder.encode_passages([f"{row['title']} {row['text']}".strip() for row in ROWS])
    order = [n for n in np.argsort(-(vectors @ vectors[1])) if n != 1]
    assert [hit["id"] for hit in hits] == [f"n{n}" for n in order[:5]]
    assert "Note" in call("similar", index, "n1", "--where", '{"year": {"$gt": 1915}}').stdout
    assert "holds no document" in call("similar", index, "nobody", code=1).stderr


def test_explain_shows_rank_score_and_weight_of_both_sides(index: Path) -> None:
    text = call("search", index, "yeast", "-k", 1, "--explain").stdout
    assert "dense: rank" in text
    assert "weight 0.50 · lexical: rank" in text
    (line,) = call("search", index, "yeast", "-k", 1, "--explain", "--format", "json").stdout.splitlines()
    assert json.loads(line)["hits"][0]["explanation"]["lexical_rank"] == 1


def test_facets_count_the_values_of_all_hits_not_only_of_those_shown(index: Path) -> None:
    result = call("search", index, "yeast", "-k", 2, "--facet", "tags", "--facet", "nothing", "--format", "json")
    answer = json.loads(result.stdout)
    assert len(answer["hits"]) == 2
    assert answer["facets"] == {"tags": [["a", 20], ["b", 10]]}  # each of the thirty documents is a hit
    lexical = call("search", index, "yeast", "--mode", "lexical", "--facet", "tags").stdout
    wanted = [row["tags"] for row in ROWS if "yeast" in row["text"]]
    assert f"tags: a ({sum('a' in tags for tags in wanted)}), b ({sum('b' in tags for tags in wanted)})" in lexical


def test_nothing_that_is_stored_or_typed_reaches_a_terminal_raw(tmp_path: Path, mistral: Path) -> None:
    bad = "\x1b[31mred\x07\x9b1m\u202eback\u2066"
    rows = [{"id": f"id{bad}", "title": bad, "text": f"tea {bad}", "kind": bad, "in": {bad: bad}},
            {"id": "i" * 500, "title": "W" * 3000, "text": "tea " + "x" * 3000, "kind": "k" * 3000}]  # fmt: skip
    file, index = write_lines(tmp_path / "odd.jsonl", rows), tmp_path / "x.index"
    index_it = ("index", file, "--index", index, "--model", mistral)
    commands: list[tuple[object, ...]] = [
        index_it, ("check", index), ("info", index), ("info", index, "--format", "json"), ("dump", index),
        ("search", index, "tea", "--explain", "--facet", "kind", "--facet", "no\u202e", "--mode", "lexical"),
        ("search", index, f"tea {bad}", "--format", "json", "--facet", "kind", "--mode", "lexical"),
        ("search", index, "tea", "--mode", "lexical", "--where", json.dumps({"kinds": bad})),
        ("similar", index, f"id{bad}"), ("get", index, f"id{bad}"), ("get", index, f"id{bad}", "--format", "json"),
        ("delete", index, f"id{bad}", "--dry-run"), ("search", index, "--mode", "lexical", "--", "-5 degrees"),
    ]  # fmt: skip
    for command in commands:
        result = call(*command)
        printed = result.stdout + result.stderr
        assert not set(printed) & set("\x1b\x07\x9b\u202e\u2066"), command
        if command[0] in ("search", "similar") and "json" not in command:
            assert max(map(len, printed.splitlines())) < 2000  # metadata alone are as long
            assert printed.count("iiiiiiiiiiiiiiiiiiii") < 10


def test_facets_know_no_depth_and_name_what_is_not_there(tmp_path: Path, mistral: Path) -> None:
    rows = [
        {"id": f"{n}", "text": "tea", "kind": "\x1b[31mred" if n % 3 else "blue", "sold": n < 9} for n in range(150)
    ]
    file = write_lines(tmp_path / "many.jsonl", rows)
    call("index", file, "--index", tmp_path / "x.index", "--model", mistral)
    result = call(
        "search", tmp_path / "x.index", "tea", "-k", 1, "--facet", "kind", "--facet", "sold", "--facet", "knd"
    )
    assert "kind: \\x1b[31mred (100), blue (50)" in result.stdout
    assert "sold: false (141), true (9)" in result.stdout
    assert 'no document has the key "knd" (did you mean "kind"?); keys are' in result.stderr
    filtered = call("search", tmp_path / "x.index", "tea", "--where", '{"sold": true}', "--facet", "kind")
    assert "red (6), blue (3)" in filtered.stdout


def test_sync_reports_and_does_what_a_dry_run_announced(tmp_path: Path, mistral: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for n, text in enumerate(TEXTS[:5]):
        (notes / f"{n}.txt").write_text(text)
    call("index", notes, "--index", tmp_path / "x.index", "--model", mistral)
    (notes / "0.txt").rename(notes / "moved.txt")
    (notes / "1.txt").unlink()
    (notes / "2.txt").write_text("Other text.")
    (notes / "3.txt").write_bytes(b"\xff\xfe\x00")
    announced = call("sync", tmp_path / "x.index", notes, "--dry-run").stdout
    done = call("sync", tmp_path / "x.index", notes).stdout
    for text in (announced, done):
        for line in ("moved: 0.txt -> moved.txt", "vanished: 1.txt", "changed: 2.txt", "kept, not readable: 3.txt"):
            assert line in text
    assert "dry run; 1 changed, 1 moved, 1 vanished, 1 kept, not readable, 1 unchanged" in announced
    assert "4 documents; 1 changed" in done
    assert "no changes, 3 unchanged" not in call("sync", tmp_path / "x.index", notes).stdout


def test_a_watched_folder_is_synced_after_a_change(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "first.txt").write_text("Bees dance.")
    call("index", notes, "--index", tmp_path / "x.index")
    command = [sys.executable, "-m", "searchkit.cli.main", "sync", str(tmp_path / "x.index"), str(notes), "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert "1 document; no changes" in process.stdout.readline()
            assert "watching" in process.stderr.readline()
            time.sleep(0.5)  # watchfiles starts its watch after the message
            (notes / "second.txt").write_text("Salt melts ice.")
            assert process.stdout.readline() == "new: second.txt\n"
        finally:
            process.kill()
