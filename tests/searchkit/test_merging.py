"""Parts of a corpus, merged, are the index that one run makes."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from texts import TEXTS

from searchkit import merging
from searchkit.check import check
from searchkit.cli.main import main
from searchkit.engine import SearchEngine
from searchkit.errors import InputError, StoreError
from searchkit.lexical_sync import LexicalSync
from searchkit.merging import MergeReport, Part, merge
from searchkit.models.embedder import Embedder
from searchkit.records import Document

QUERIES = ["why does bread rise", "sun", "the oboe", "interest"]


def corpus() -> list[Document]:
    made = [
        Document(f"d{n}", f"{TEXTS[n % 30]} {n} {' '.join(TEXTS[: n % 5])}", f"Note {n}", {"n": n}) for n in range(90)
    ]
    random.Random(0).shuffle(made)
    return made


def build(folder: Path, embedder: Embedder, documents: Iterable[Document]) -> Path:
    with SearchEngine.create(folder, model=embedder, chunk_tokens=24, overlap=4) as engine:
        engine.add(documents)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> list[Path]:
    root = tmp_path_factory.mktemp("parts")
    shares = [Part(number, 8) for number in range(1, 9)]
    return [build(root / f"part-{share.number}.index", embedder, filter(share.holds, corpus())) for share in shares]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Path:
    documents = sorted(corpus(), key=lambda document: document.id)
    return build(tmp_path_factory.mktemp("whole") / "whole.index", embedder, documents)


def contents(folder: Path) -> tuple[list[Any], np.ndarray]:
    """What an index holds, in its order: documents, and the vectors of all passages."""
    with SearchEngine.open(folder) as engine:
        documents = list(engine)
        return documents, engine.vectors_of(np.arange(engine.passages))


def check_equal(merged: Path, whole: Path, embedder: Embedder) -> None:
    documents, vectors = contents(merged)
    expected, rows = contents(whole)
    assert documents == expected
    np.testing.assert_allclose(vectors, rows, atol=1e-6)
    with SearchEngine.open(merged, model=embedder) as engine, SearchEngine.open(whole, model=embedder) as other:
        assert engine.store.documents.checksum() == other.store.documents.checksum()
        for mode in ("dense", "lexical", "hybrid"):
            for where in (None, {"n": {"$lt": 40}}):
                for found, right in zip(
                    engine.search_many(QUERIES, mode=mode, where=where, k=20),
                    other.search_many(QUERIES, mode=mode, where=where, k=20),
                    strict=True,
                ):
                    assert [hit.id for hit in found] == [hit.id for hit in right]
                    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in right], abs=1e-5)


def test_shares_are_fixed_by_content_and_cover_the_corpus() -> None:
    shares = [[each.id for each in corpus() if Part(number, 8).holds(each)] for number in range(1, 9)]
    assert sorted(id for share in shares for id in share) == sorted(each.id for each in corpus())
    assert all(2 <= len(share) <= 30 for share in shares)
    moved = Document("elsewhere", corpus()[0].text, corpus()[0].title, {"file": "b.jsonl"})
    assert all(Part(n, 8).holds(moved) == Part(n, 8).holds(corpus()[0]) for n in range(1, 9))
    for wrong in ("0/8", "9/8", "3", "3/", "a/b", "-1/8", "1/0"):
        with pytest.raises(InputError, match="expected K/N with K from 1 to N, such as 3/8"):
            Part.parse(wrong)


def test_eight_parts_make_what_one_run_makes(
    parts: list[Path], whole: Path, embedder: Embedder, tmp_path: Path
) -> None:
    report = merge(parts, tmp_path / "merged.index")
    assert report.documents == report.copied == 90
    check_equal(tmp_path / "merged.index", whole, embedder)
    with SearchEngine.open(tmp_path / "merged.index", model=embedder, writable=True) as engine:  # and is a whole index
        engine.add([Document("z", "Another one.")])
        engine.delete(["d3"])
        assert len(engine) == 90
    check = CliRunner().invoke(main, ["check", str(tmp_path / "merged.index")])
    assert check.exit_code == 0, check.output


def test_merging_twice_in_any_order_gives_the_same_files(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "_COMMIT", 128)  # several commits, but fewer than tantivy merges
    found = []
    for number, order in enumerate([parts, parts[::-1]]):
        folder = tmp_path / f"{number}.index"
        merge(order, folder)
        found.append(
            {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
        )
    assert found[0] == found[1]
    assert len(found[0]) > 10
    (documents, vectors), (others, rows) = (contents(tmp_path / f"{number}.index") for number in range(2))
    assert documents == others
    np.testing.assert_array_equal(vectors, rows)


STOPPED = """
import json, os, sys
from searchkit import merging

merging._COMMIT = 32
parts, target, limit = json.loads(sys.argv[1])
steps = []

def stop(*_):
    steps.append(1)
    if len(steps) == limit:
        os._exit(9)

merging.merge(parts, target, on_progress=stop)
"""


def test_a_killed_merge_resumes(parts: list[Path], whole: Path, embedder: Embedder, tmp_path: Path) -> None:
    target, names = tmp_path / "merged.index", [str(part) for part in parts]
    for limit in (3, 1, 2):  # 32 passages a commit
        arguments = [sys.executable, "-c", STOPPED, json.dumps([names, str(target), limit])]
        assert subprocess.run(arguments, timeout=120).returncode == 9
        assert not target.exists()
    report = merge(parts, target)
    assert 0 < report.copied < 90
    assert not target.with_name("merged.index.merging").exists()
    check_equal(target, whole, embedder)


def test_a_merge_stopped_before_its_lexical_index_resumes(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "merged.index"
    with monkeypatch.context() as patch:
        patch.setattr(LexicalSync, "catch_up", interrupt)
        with pytest.raises(KeyboardInterrupt):
            merge(parts, target)
    assert merge(parts, target).copied == 0
    assert [finding for finding in check(target) if finding.damage or finding.note.endswith("adds")] == []
    with SearchEngine.open(target) as engine:
        assert len(engine.search("note", k=100, mode="lexical")) == len(corpus())


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_parts_without_documents_are_merged(embedder: Embedder, tmp_path: Path) -> None:
    empty = [build(tmp_path / f"part-{n}.index", embedder, []) for n in (1, 2)]
    assert merge(empty, tmp_path / "merged.index") == MergeReport(0, 0, 0, 0, 0)
    assert [finding for finding in check(tmp_path / "merged.index") if not finding.ok] == []
    with SearchEngine.open(tmp_path / "merged.index", writable=True) as engine:
        engine.add(corpus())
        assert len(engine.search("note", k=100, mode="lexical")) == len(corpus())


def test_other_parts_do_not_finish_a_merge(parts: list[Path], tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(*_: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        merge(parts, tmp_path / "merged.index", on_progress=stop)
    with pytest.raises(StoreError, match=r"merged\.index\.merging is the beginning of a merge of other parts"):
        merge(parts[:3], tmp_path / "merged.index")
    merge(parts, tmp_path / "merged.index")
    with pytest.raises(StoreError, match="exists; name another folder"):
        merge(parts, tmp_path / "merged.index")


def test_clashing_ids_are_refused_or_the_newest_wins(tmp_path: Path, embedder: Embedder) -> None:
    same = Document("same", "The oboe.")
    first = build(tmp_path / "b.index", embedder, [same, Document("1", "New text."), Document("2", "Two.")])
    second = build(tmp_path / "a.index", embedder, [same, Document("1", "Old text."), Document("3", "Three.")])
    os.utime(second / "index.db", ns=(1, 1))
    with pytest.raises(InputError, match=r"1 id has different contents in different parts, such as '1' \(") as error:
        merge([first, second], tmp_path / "refused.index")
    assert str(first) in str(error.value)
    assert not list(tmp_path.glob("refused*"))
    for order in ([first, second], [second, first]):
        report = merge(order, tmp_path / "merged.index", on_clash="newest")
        assert report == MergeReport(documents=4, passages=4, copied=4, repeated=1, replaced=1)
        with SearchEngine.open(tmp_path / "merged.index", model=embedder) as engine:
            found = engine.get("1")
            assert found is not None
            assert found.text == "New text."
            assert len(engine) == 4
        shutil.rmtree(tmp_path / "merged.index")


def test_parts_that_differ_are_refused(tmp_path: Path, embedder: Embedder, parts: list[Path]) -> None:
    with SearchEngine.create(tmp_path / "french.index", model=embedder, language="french", chunk_tokens=24, overlap=4):
        pass
    with SearchEngine.create(tmp_path / "own.index", dim=3) as engine:
        engine.add([Document("1", "One.")], vectors=[[1, 2, 3]])
    shutil.copytree(parts[0], tmp_path / "packed.index")
    with SearchEngine.open(tmp_path / "packed.index", model=embedder, writable=True) as engine:
        engine.store_as("fp16")
    for other, message in (
        ("french.index", 'differ in language: "french" and "english"'),
        ("own.index", "differ in"),
        ("packed.index", "store their vectors as fp16 and as flat"),
        ("nothing.index", "is not an index"),
    ):
        with pytest.raises((InputError, StoreError), match=message):
            merge([parts[0] if other != "packed.index" else parts[1], tmp_path / other], tmp_path / "merged.index")
    with pytest.raises(InputError, match="came twice"):
        merge([parts[0], parts[0]], tmp_path / "merged.index")


@pytest.mark.parametrize("similarity", ["cosine", "inner-product", "euclidean"])
def test_own_vectors_are_merged_too(tmp_path: Path, similarity: Any) -> None:
    rows = np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)
    for part in range(2):
        with SearchEngine.create(tmp_path / f"{part}.index", dim=5, similarity=similarity) as engine:
            mine = range(part, 20, 2)
            vectors = [None if n % 5 == 0 else rows[n] for n in mine]
            engine.add([Document(f"{n:02}", f"Text {n}") for n in mine], vectors=vectors)
    merge([tmp_path / "0.index", tmp_path / "1.index"], tmp_path / "merged.index")
    with SearchEngine.open(tmp_path / "merged.index") as engine:
        assert [document.id for document in engine] == [f"{n:02}" for n in range(20)]
        nearest = engine.search(vector=rows[7], k=16, mode="dense")
        assert {hit.id for hit in nearest} == {f"{n:02}" for n in range(20) if n % 5}
        kept = [n for n in range(20) if n % 5]
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        scores = {
            "cosine": unit[kept] @ rows[7] / np.linalg.norm(rows[7]),
            "inner-product": rows[kept] @ rows[7],
            "euclidean": -np.linalg.norm(rows[kept] - rows[7], axis=1),
        }[similarity]
        assert [hit.id for hit in nearest] == [f"{kept[n]:02}" for n in np.argsort(-scores, kind="stable")]
        assert engine.search("Text 5", mode="lexical")[0].id == "05"


def test_the_commands_index_parts_and_merge_them(tmp_path: Path, mistral: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    rows = [{"id": each.id, "title": each.title, "text": each.text, "n": each.metadata["n"]} for each in corpus()[:30]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = CliRunner().invoke
    for number in (1, 2):
        index = tmp_path / f"part-{number}.index"
        result = run(
            main, ["index", str(file), "--index", str(index), "--part", f"{number}/2", "--model", str(mistral)]
        )
        assert result.exit_code == 0, result.output
    parts = [str(tmp_path / f"part-{number}.index") for number in (1, 2)]
    result = run(main, ["merge", *parts, "--index", str(tmp_path / "whole.index"), "--format", "json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["documents"] == 30
    with SearchEngine.open(tmp_path / "whole.index") as engine:
        assert [each.id for each in engine] == sorted(row["id"] for row in rows)
    for arguments, message in (
        (["index", str(file), "--part", "1/2"], "--part needs --index"),
        (["index", str(file), "--index", str(tmp_path / "x.index"), "--part", "3/2"], "such as 3/8"),
        (["merge", *parts], "--index"),
    ):
        result = run(main, arguments)
        assert result.exit_code in (1, 2)
        assert message in result.output
