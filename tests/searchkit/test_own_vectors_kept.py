"""An index of own vectors: checked, repaired, dumped, compressed and evaluated."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from own_vectors import check_ranking, documents, drawn, made, scores
from searching import ids

from searchkit import Query, SearchEngine
from searchkit.check import check
from searchkit.compression.measure import MeasureOptions, apply, measure
from searchkit.dump import write_vectors
from searchkit.errors import InputError
from searchkit.evaluation.evaluate import evaluate
from searchkit.indexer.vectors.similarity import SIMILARITIES
from searchkit.records import Judgements
from searchkit.repair import repair


def built(folder: Path, similarity: str = "euclidean", count: int = 300) -> np.ndarray:
    """An index where every third document has no vector, in several segments; returns the vectors."""
    vectors = drawn(count)
    with made(folder, similarity) as engine:
        given = [None if n % 3 == 0 else vector for n, vector in enumerate(vectors)]
        engine.add(documents(count), vectors=given, commit_every=100)
        engine.delete(["4", "6"])
    return vectors


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_check_finds_nothing_wrong(tmp_path: Path, similarity: str) -> None:
    built(tmp_path, similarity)
    folder = tmp_path / "own.index"
    for recipe in (None, "int8"):
        if recipe:
            with SearchEngine.open(folder, writable=True) as engine:
                engine.store_as(recipe)
                engine.compact()
        assert [finding for finding in check(folder) if not finding.ok] == []
    assert repair(folder).done == []


def test_a_check_reports_a_vector_that_is_missing(tmp_path: Path) -> None:
    built(tmp_path)
    with closing(sqlite3.connect(tmp_path / "own.index" / "index.db")) as db, db:
        db.execute("UPDATE documents SET checksum = replace(checksum, ':none', ':0') WHERE id = '3'")
    damage = {finding.part: finding.damage for finding in check(tmp_path / "own.index") if not finding.ok}
    assert damage["documents"] == "1 differ from their checksums: 3"
    assert damage["segments/000001"] == "its rows are not those of the documents"


def test_lost_vectors_leave_documents_that_are_found_by_their_words(tmp_path: Path) -> None:
    vectors = built(tmp_path)
    folder = tmp_path / "own.index"
    first = folder / "segments" / "000001" / "dense.faiss"
    first.write_bytes(first.read_bytes()[:-100])
    report = repair(folder)
    assert report.done == ["segments/000001: dropped; 66 of 66 vectors are lost, update their documents with them"]
    assert report.vectorless[:3] == ["1", "10", "100"] or "1" in report.vectorless
    assert all(finding.ok for finding in report.findings)
    with SearchEngine.open(folder, writable=True) as engine:
        assert len(engine) == 298
        assert {int(hit.id) >= 100 for hit in engine.search(vector=vectors[1], k=200)} == {True}
        assert "7" in ids(engine.search("7"))
        engine.add(documents(300)[7:8], vectors=vectors[7:8], update=True)
        (hit, *_) = engine.search(vector=vectors[7])
        assert (hit.id, hit.score) == ("7", 0)


def test_what_is_damaged_beside_the_vectors_is_rebuilt(tmp_path: Path) -> None:
    vectors = built(tmp_path)
    folder = tmp_path / "own.index"
    (folder / "segments" / "000001" / "docs.i64").write_bytes(b"damaged")
    shutil.rmtree(folder / "lexical")
    with SearchEngine.open(folder, writable=True) as engine:
        engine.store.database.db.execute("UPDATE documents SET text = 'damaged' WHERE id IN ('8', '9')")
    report = repair(folder)
    assert sorted(report.lost) == ["8", "9"]
    assert report.vectorless == []
    assert all(finding.ok for finding in report.findings)
    left = np.array([n for n in range(300) if n % 3 and n not in (4, 8)])
    with SearchEngine.open(folder) as engine:
        check_ranking(engine.search(vector=vectors[8], k=5), left, scores("euclidean", vectors[left], vectors[8]), 5)
        assert "12" in ids(engine.search("12"))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_what_is_dumped_can_be_added_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, similarity: str) -> None:
    def interrupted(rows: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    vectors = built(tmp_path, similarity)
    with SearchEngine.open(tmp_path / "own.index") as engine:
        dumped = list(engine.documents(vectors=True))
        rows = [document.as_row() for document in dumped]
        assert sum("vector" in row for row in rows) == sum(document.vector is not None for document in dumped) == 199
        with made(tmp_path / "again", similarity) as again:
            again.add(dumped, vectors=[document.vector for document in dumped])
            query = drawn(1, seed=9)[0]
            one, two = again.search(vector=query), engine.search(vector=query)
            assert ids(one) == ids(two)
            np.testing.assert_allclose([hit.score for hit in one], [hit.score for hit in two], rtol=1e-6)
            assert again.add(engine.documents(), vectors=[document.vector for document in dumped]).unchanged == 298
        parquet = pytest.importorskip("pyarrow.parquet")
        assert write_vectors(engine, tmp_path / "v.parquet") == 298
        table = parquet.read_table(tmp_path / "v.parquet").to_pydict()
        assert sorted(table) == ["id", "metadata", "text", "title", "vector"]
        written = dict(zip(table["id"], table["vector"], strict=True))
        assert written["3"] is None
        monkeypatch.setattr(engine, "vectors_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_vectors(engine, tmp_path / "v.parquet")
        assert parquet.read_table(tmp_path / "v.parquet").to_pydict() == table
        assert not (tmp_path / "v.parquet.part").exists()
        expected = vectors[5] / (np.linalg.norm(vectors[5]) if similarity == "cosine" else 1)
        np.testing.assert_allclose(written["5"], expected, rtol=1e-6)


@pytest.mark.parametrize("similarity", ["euclidean", "inner-product"])
def test_compression_is_measured_and_applied(tmp_path: Path, similarity: str) -> None:
    vectors = drawn(600)
    with made(tmp_path, similarity) as engine:
        engine.add(documents(600), vectors=[None if n % 3 == 0 else row for n, row in enumerate(vectors)])
        queries = [Query(str(n), f"topic{n % 5}", vector=row) for n, row in enumerate(drawn(20, seed=4))]
        left = np.array([n for n in range(600) if n % 3])
        qrels = {
            query.id: {str(left[n]): 1 for n in np.argsort(-scores(similarity, vectors[left], query.vector))[:10]}
            for query in queries
        }
        judged = Judgements("own", queries, qrels)
        flat, fp16, int8 = measure(engine, judged, options=MeasureOptions(recipes=["fp16", "int8"]))
        assert flat.ndcg_10 == flat.recall_10 == 1.0
        assert fp16.recall_10 > 0.98
        assert int8.recall_10 > 0.9
        (flat, _) = measure(engine, options=MeasureOptions(recipes=["fp16"]))  # held-out vectors for queries
        assert flat.recall_10 == 1.0
        (dense,) = evaluate(engine, judged, modes=["dense"])
        assert dense.metrics["ndcg@10"] == 1.0
        apply(engine, "int8")
        (coded,) = evaluate(engine, judged, modes=["dense"])
        assert coded.metrics["ndcg@10"] > 0.9
        with pytest.raises(InputError, match="has no model to embed"):
            evaluate(engine, Judgements("own", [Query("0", "topic1")], qrels), modes=["dense"])
        with pytest.raises(InputError, match="query '1' has no vector, and others have one"):
            evaluate(engine, Judgements("own", [queries[0], Query("1", "x")], qrels), modes=["dense"])
