"""Vectors that users made, by the command line: in rows, in a file beside them, in queries, and out again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call, write_lines

from searchkit.engine import SearchEngine

DIM = 8
COUNT = 40


def rows(count: int = COUNT) -> list[dict[str, Any]]:
    """Every fourth row has no vector."""
    vectors = np.random.default_rng(2).normal(0, 1, (count, DIM)).round(3)
    made = [
        {"id": f"n{n}", "text": f"note {n} about topic{n % 4}", "n": n, "v": list(v)} for n, v in enumerate(vectors)
    ]
    for row in made[::4]:
        row["v"] = None
    return made


def vector(n: int) -> str:
    return json.dumps(rows()[n]["v"])


def found(*arguments: object) -> list[str]:
    lines = call("search", *arguments, "--format", "json").stdout.splitlines()
    return [hit["id"] for line in lines for hit in json.loads(line)["hits"]]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    file, made = write_lines(folder / "notes.jsonl", rows()), folder / "own.index"
    options = ("--vector-field", "v", "--vectors-from", "m1", "--similarity", "euclidean")
    result = call("index", file, "--index", made, *options)
    assert "10 of 40 documents have no vector: only lexical search finds them" in result.stderr
    assert "0 new in 0 passages, 40 unchanged" in call("index", file, "--index", made, *options).stdout
    return made


def test_search_by_vector_text_or_both(index: Path, tmp_path: Path) -> None:
    assert found(index, "--vector", vector(5), "-k", 1) == ["n5"]
    assert "n4" in found(index, "note 4")
    assert "n4" in found(index, "note 4", "--vector", vector(5))
    assert "n4" not in found(index, "note 4", "--vector", vector(5), "--mode", "dense", "-k", 50)
    assert found(index, "--vector", vector(5), "--where", '{"n": {"$gt": 5}}', "-k", 50)[0] != "n5"
    np.save(tmp_path / "q.npy", np.array([rows()[1]["v"], rows()[2]["v"]]))
    assert found(index, "--vector", tmp_path / "q.npy", "-k", 1) == ["n1", "n2"]
    assert len(found(index, "one", "two", "--vector", tmp_path / "q.npy", "-k", 1)) == 2
    queries = write_lines(tmp_path / "q.jsonl", [{"id": "1", "text": "topic2", "e": rows()[6]["v"]}])
    assert found(index, "--queries", queries, "--vector-field", "e", "--mode", "dense", "-k", 1) == ["n6"]
    assert "topic2" in call("search", index, "topic2", "--facet", "n").stdout
    assert list(found(index, "topic1", "--vector", vector(1), "--explain", "-k", 3))


def test_what_search_refuses(index: Path, tmp_path: Path) -> None:
    refused = {
        ("note", "--mode", "dense"): "has no model to embed texts with: give vectors",
        ("--vector", "[1, 2]"): "query 1: vector has dimension 2; expected dimension 8, as in the index",
        ("--vector", "[1, "): "the vector is no JSON list of numbers",
        ("--vector", '[[1], ["a"]]'): "the vector is no JSON list of numbers",
        ("--vector", str(tmp_path / "no.npy")): "no.npy",
        ("--vector", vector(5), "--mode", "lexical"): "a lexical search needs the text of its query",
        ("a", "b", "--vector", vector(5)): "1 vector came for 2 queries",
        ("a", "--model", "builtin"): "takes no model",
    }
    for arguments, said in refused.items():
        assert said in call("search", index, *arguments, code=1).stderr, arguments
    assert "--vector-field says where" in call("search", index, "a", "--vector-field", "v", code=2).stderr


def test_a_file_of_vectors_beside_the_rows(index: Path, tmp_path: Path) -> None:
    whole = [row for row in rows() if row["v"]]
    file = write_lines(tmp_path / "whole.jsonl", [{key: row[key] for key in ("id", "text", "n")} for row in whole])
    vectors = np.array([row["v"] for row in whole], dtype=np.float32)
    np.save(tmp_path / "v.npy", vectors)
    made = tmp_path / "x.index"
    call("index", file, "--index", made, "--vectors", tmp_path / "v.npy", "--similarity", "euclidean")
    assert found(made, "--vector", vector(7), "-k", 5) == found(index, "--vector", vector(7), "-k", 5)

    np.save(tmp_path / "short.npy", vectors[:-1])
    options = ("--index", tmp_path / "y.index", "--vectors")
    assert "29 vectors for 30 documents" in call("index", file, *options, tmp_path / "short.npy", code=1).stderr
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    assert "expected (n, dim) numbers" in call("index", file, *options, tmp_path / "cube.npy", code=1).stderr
    np.save(tmp_path / "objects.npy", np.array([None, 1], dtype=object), allow_pickle=True)
    assert "no array of numbers" in call("index", file, *options, tmp_path / "objects.npy", code=1).stderr
    vectors[3] = np.nan
    np.save(tmp_path / "nan.npy", vectors)
    refused = call("index", file, *options, tmp_path / "nan.npy", code=1).stderr
    assert "whole.jsonl:4, row 3: document 'n5': vector holds nan at position 0" in refused
    bad = write_lines(tmp_path / "bad.jsonl", ["{\n", *rows()])
    refused = call("index", bad, *options, tmp_path / "v.npy", "--on-error", "skip", code=1).stderr
    assert "bad.jsonl:1" in refused
    assert (
        "whose order is known"
        in call("index", tmp_path, "--kind", "files", *options, tmp_path / "v.npy", code=2).stderr
    )
    assert not (tmp_path / "y.index").exists()


def test_parquet_columns_are_read(index: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for name, kind in (("list", pa.list_(pa.float32())), ("fixed", pa.list_(pa.float64(), DIM))):
        table = pa.table(
            {key: [row[key] for row in rows()] for key in ("id", "text", "n")}
            | {"v": pa.array([row["v"] for row in rows()], kind)}
        )
        parquet.write_table(table, tmp_path / f"{name}.parquet")
        made = tmp_path / f"{name}.index"
        call("index", tmp_path / f"{name}.parquet", "--index", made, "--vector-field", "v", "--similarity", "euclidean")
        assert found(made, "--vector", vector(7), "-k", 5) == found(index, "--vector", vector(7), "-k", 5)
        with SearchEngine.open(made) as engine:
            document = engine.get("n7")
            assert document is not None
            assert document.metadata == {"n": 7}


@pytest.mark.parametrize("form", ["lines", "parquet"])
def test_a_dump_indexed_again_is_the_same_collection(index: Path, tmp_path: Path, form: str) -> None:
    if form == "lines":
        file = tmp_path / "d.jsonl"
        file.write_text(call("dump", index).stdout)
    else:
        pytest.importorskip("pyarrow")
        file = tmp_path / "d.parquet"
        call("dump", index, "--vectors", file)
    options = ("--vector-field", "vector", "--similarity", "euclidean")
    call("index", file, "--index", tmp_path / "again.index", *options)
    with SearchEngine.open(index) as before, SearchEngine.open(tmp_path / "again.index") as after:
        assert list(before) == list(after)
        assert before.store.documents.checksum() == after.store.documents.checksum()  # it covers the vectors


def test_adding_and_updating(index: Path, tmp_path: Path) -> None:
    made = tmp_path / "x.index"
    call("index", write_lines(tmp_path / "a.jsonl", rows(10)), "--index", made, "--vector-field", "v", "--dim", 8)
    more = write_lines(tmp_path / "b.jsonl", [{"id": "n1", "text": "new", "v": [1.0] * 8}])
    assert "has no model: say where" in call("add", made, more, code=1).stderr
    assert "has no model: say where" in call("index", more, "--index", made, code=1).stderr
    assert "in the index with other content" in call("add", made, more, "--vector-field", "v", code=1).stderr
    call("update", made, more, "--vector-field", "v")
    assert found(made, "--vector", str([2.0] * 8), "-k", 1) == ["n1"]
    wrong = ("--vector-field", "v", "--vectors-from", "m2")
    assert "without a name" in call("add", made, more, *wrong, code=1).stderr
    assert "'m1', now they are from 'm2'" in call("add", index, more, *wrong, code=1).stderr
    assert 'no row has "w"' in call("update", made, more, "--vector-field", "w", code=1).stderr
    assert 'no row has "w"' in call("index", more, "--index", tmp_path / "z", "--vector-field", "w", code=1).stderr
    none = write_lines(tmp_path / "n.jsonl", [{"id": "n9", "text": "new", "v": None}])
    assert "no row has a vector" in call("index", none, "--index", tmp_path / "z", "--vector-field", "v", code=1).stderr
    assert "how wide" in call("index", "-", "--index", tmp_path / "z", "--vector-field", "v", code=2, stdin="").stderr
    call("index", "-", "--index", tmp_path / "z", "--vector-field", "v", "--dim", 8, stdin=more.read_text())
    assert found(tmp_path / "z", "--vector", str([2.0] * 8)) == ["n1"]
    model = ("--vector-field", "v", "--model", "builtin")
    assert "--model is for a model" in call("index", more, "--index", tmp_path / "y", *model, code=2).stderr
    assert "--similarity is for" in call("index", more, "--similarity", "cosine", code=2).stderr
    assert "--vectors-from needs" in call("index", more, "--vectors-from", "m", code=2).stderr
    assert "read from JSON lines and Parquet" in call(
        "index", write_lines(tmp_path / "t.csv", ["id,text\n", "1,a\n"]), "--vector-field", "v", code=1
    ).stderr  # fmt: skip


def test_info_check_compact_and_similar(index: Path, tmp_path: Path) -> None:
    facts = json.loads(call("info", index, "--format", "json").stdout)
    assert (facts["vectors from"], facts["dim"], facts["documents without a vector"]) == ("m1", 8, 10)
    assert facts["similarity"] == "euclidean (Euclidean distance; scores are its negative)"
    assert "vectors from" in call("info", index).stdout
    assert all(part["ok"] for part in json.loads(call("check", index, "--format", "json").stdout)["parts"])
    assert json.loads(call("similar", index, "n5", "--format", "json").stdout)["hits"]
    assert "document 'n4' has no vector" in call("similar", index, "n4", code=1).stderr
    assert json.loads(call("get", index, "n5", "--format", "json").stdout)["vector"] == pytest.approx(rows()[5]["v"])
    pairs = write_lines(tmp_path / "p.jsonl", [{"query": "note 1", "positive_id": "n1"}])
    adapt = ("adapt", index, "--out", tmp_path / "a", "--pairs", pairs)
    for command in (("sync", index, tmp_path), ("latency", index), adapt):
        result = call(*command, code=1).stderr
        assert "vectors that its users made" in result, command
    assert len(json.loads(call("get", index, "n4", "--format", "json").stdout)) == 4


def test_evaluate_and_compress(index: Path, tmp_path: Path) -> None:
    queries = write_lines(
        tmp_path / "q.jsonl", [{"id": f"q{n}", "text": f"topic{n % 4}", "e": rows()[n]["v"]} for n in (1, 2, 3, 5)]
    )
    (tmp_path / "qrels.tsv").write_text("".join(f"q{n}\tn{n}\t1\n" for n in (1, 2, 3, 5)))
    judged = ("--queries", queries, "--qrels", tmp_path / "qrels.tsv")
    np.save(tmp_path / "q.npy", np.array([rows()[n]["v"] for n in (1, 2, 3, 5)]))
    for options in (("--query-vector-field", "e"), ("--query-vectors", tmp_path / "q.npy")):
        result = call("evaluate", index, *judged, *options, "--format", "json").stdout
        modes = json.loads(result)
        assert modes["dense"]["mrr@10"] == 1
        assert set(modes) == {"dense", "lexical", "hybrid", "rank-bm25"}
    assert "has no model to embed" in call("evaluate", index, *judged, code=1).stderr
    np.save(tmp_path / "three.npy", np.zeros((3, DIM)))
    refused = call("evaluate", index, *judged, "--query-vectors", tmp_path / "three.npy", code=1).stderr
    assert "3 vectors for 4 queries" in refused
    table = call("compress", index, *judged, "--query-vector-field", "e", "--recipes", "fp16,int8").stdout
    assert "fp16" in table
    assert "the vectors of 3 held-out passages" in call("compress", index, "--recipes", "fp16").stderr
    assert "dense" in call("compare", index, *judged, "--query-vector-field", "e", "--modes", "dense,lexical").stdout
    refused = call("compare", index, *judged, "--query-vector-field", "e", "--dims", "4,8", code=1).stderr
    assert "compares vectors otherwise than by the cosine" in refused
    refused = call("evaluate", index, *judged, "--query-vector-field", "e", "--diagnose", tmp_path / "d", code=1).stderr
    assert "has no model" in refused


def test_an_index_is_stored_by_a_recipe_at_once(tmp_path: Path) -> None:
    file, made = write_lines(tmp_path / "a.jsonl", rows()), tmp_path / "a.index"
    call("index", file, "--index", made, "--vector-field", "v", "--recipe", "int8", "--similarity", "inner-product")
    assert json.loads(call("info", made, "--format", "json").stdout)["recipe"].startswith("int8")
    call(
        "add",
        made,
        write_lines(tmp_path / "b.jsonl", [{"id": "x", "text": "x", "v": [9] * DIM}]),
        "--vector-field",
        "v",
    )
    assert found(made, "--vector", str([1] * DIM), "-k", 1) == ["x"]
    call("delete", made, "n1", "n4")
    call("compact", made)
    assert all(part["ok"] for part in json.loads(call("check", made, "--format", "json").stdout)["parts"])
