"""Indexes of vectors that their users made, compared with numpy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_vectors import DIM, check_ranking, documents, drawn, made, scores
from searching import ids

from searchkit import Document, SearchEngine, SearchOptions
from searchkit.errors import InputError, StoreError
from searchkit.indexer.vectors.recipes import RECIPES
from searchkit.indexer.vectors.similarity import SIMILARITIES, Similarity
from searchkit.own_vectors import as_queries, as_vector
from searchkit.sync import sync


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_rankings_and_scores_are_those_of_numpy(tmp_path: Path, similarity: str) -> None:
    """With a third of the documents without a vector, in several commits and after deletions and compaction."""
    vectors, everything = drawn(600), documents(600)
    with made(tmp_path, similarity) as engine:
        given = [None if n % 3 == 0 else vector for n, vector in enumerate(vectors)]
        report = engine.add(everything, vectors=given, commit_every=60)
        assert (report.documents, report.passages, report.without_vector) == (600, 600, 200)
        left = np.array([n for n in range(600) if n % 3])
        for step in ("added", "deleted", "compacted"):
            if step == "deleted":
                engine.delete(where={"n": {"$lt": 200}})
                left = left[left >= 200]
            if step == "compacted":
                engine.compact()
            for query in drawn(5, seed=1):
                check_ranking(engine.search(vector=query, k=7), left, scores(similarity, vectors[left], query), 7)
                few = left[(left >= 300) & (left < 330)]
                hits = engine.search(vector=query, k=50, where={"n": {"$gte": 300, "$lt": 330}})
                check_ranking(hits, few, scores(similarity, vectors[few], query), 50)
            assert len(engine.search(vector=drawn(1)[0], k=2000)) == len(left)


@pytest.mark.parametrize(
    ("recipe", "similarity"),
    # Cosine is stored as the vectors of models are.
    [*((name, "euclidean") for name in RECIPES if name != "cagra"), ("int8", "inner-product"), ("pq", "inner-product")],
)
def test_every_recipe_stores_them(tmp_path: Path, recipe: str, similarity: str) -> None:
    rng = np.random.default_rng(3)
    centers = rng.normal(0, 1, (15, DIM))
    vectors = np.repeat(centers, 40, axis=0) + rng.normal(0, 0.15, (600, DIM))
    with made(tmp_path, similarity) as engine:
        engine.add(documents(600), vectors=[None if n % 4 == 0 else row for n, row in enumerate(vectors)])
        engine.store_as(recipe)
        engine.delete([str(n) for n in range(50)])
        left = np.array([n for n in range(50, 600) if n % 4])
        found = 0
        for query in centers + rng.normal(0, 0.15, centers.shape):
            best = np.argsort(-scores(similarity, vectors[left], query))[:10]
            hits = engine.search(vector=query, k=10)
            assert all(int(hit.id) % 4 for hit in hits)
            found += len({str(left[n]) for n in best} & set(ids(hits)))
        assert found > 0.7 * 10 * len(centers)
        engine.add([Document("late", "a late note")], vectors=3 * vectors[500:501])
        assert "late" in ids(engine.search(vector=3 * vectors[500], k=3))


def test_a_document_without_a_vector_is_found_by_its_words_alone(tmp_path: Path) -> None:
    with made(tmp_path) as engine:
        engine.add(
            [Document("a", "green tea"), Document("b", "black coffee"), Document("c", "tea of herbs")],
            vectors=[[1.0] * DIM, [-1.0] * DIM, None],
        )
        assert ids(engine.search("tea")) == ["a", "c"]
        assert ids(engine.search(vector=[1.0] * DIM)) == ["a", "b"]
        assert set(ids(engine.search("tea", vector=[1.0] * DIM))) == {"a", "b", "c"}
        hits = engine.search("herbs", vector=[1.0] * DIM, explain=True)
        explained = {hit.id: hit.explanation for hit in hits}
        assert explained["c"] is not None
        assert explained["c"].dense_score is None
        assert explained["a"] is not None
        assert explained["a"].dense_score == pytest.approx(1)
        assert ids(engine.search("herbs", vector=[1.0] * DIM, options=SearchOptions(fusion="rrf")))[0] in "ac"
        assert engine.search(vector=[1.0] * DIM, where={"n": 1}) == []
        with pytest.raises(InputError, match="document 'c' has no vector"):
            engine.similar("c")
        assert ids(engine.similar("a")) == ["b"]


def test_an_index_where_no_document_has_a_vector(tmp_path: Path) -> None:
    with made(tmp_path, "euclidean") as engine:
        engine.add(documents(3), vectors=[None] * 3)
        assert engine.search(vector=drawn(1)[0]) == []
        assert ids(engine.search("topic1", vector=drawn(1)[0])) == ["1"]
        assert engine.compact() == 0
        engine.add([Document("late", "x")], vectors=drawn(1))
        (hit,) = engine.search(vector=drawn(1)[0])
        assert (hit.id, hit.score) == ("late", 0)


def test_equal_content_with_an_equal_vector_is_unchanged(tmp_path: Path) -> None:
    vectors, everything = drawn(20), documents(20)
    with made(tmp_path) as engine:
        engine.add(everything, vectors=vectors)
        again = engine.add(everything, vectors=2 * vectors)  # the cosine does not see the length
        assert (again.documents, again.unchanged) == (0, 20)
        with pytest.raises(InputError, match="'0' is in the index with other content"):
            engine.add(everything[:1], vectors=vectors[1:2])
        changed = engine.add(everything[:2], vectors=[vectors[1], None], update=True)
        assert (changed.updated, changed.without_vector, len(engine)) == (2, 1, 20)
        assert ids(engine.search(vector=vectors[1], k=1)) == ["0"]
        stored = engine.get("0")
        assert stored is not None
        assert engine.add([stored]).unchanged == 1
        np.testing.assert_allclose(stored.vector, vectors[1] / np.linalg.norm(vectors[1]), rtol=1e-6)
        rows = engine.vectors_by_id(["0", "1", "2", "no such"])
        assert rows.keys() == {"0", "2"}
        assert rows["0"].shape == (1, DIM)


def test_an_interrupted_run_resumes(tmp_path: Path) -> None:
    vectors, everything = drawn(50), documents(50)

    def stopping() -> Iterable[Any]:
        yield from vectors[:30]
        raise KeyboardInterrupt

    with made(tmp_path) as engine:
        with pytest.raises(KeyboardInterrupt):
            engine.add(everything, vectors=stopping(), commit_every=10)
        kept = len(engine)
        assert kept == 30
        report = engine.add(everything, vectors=vectors)
        assert (report.documents, report.unchanged) == (20, 30)


def test_what_a_vector_must_be(tmp_path: Path) -> None:
    with made(tmp_path) as engine:
        good = drawn(3)

        def refused(vectors: Any) -> str:
            with pytest.raises(InputError) as error:
                engine.add(documents(3), vectors=vectors)
            return str(error.value)

        nan, zero = good.copy(), good.copy()
        nan[1, 4], zero[2] = np.nan, 0
        assert refused(nan) == ("row 1: document '1': vector holds nan at position 4; expected finite 32-bit numbers")
        assert "vector holds 1e+300 at position 0" in refused([[1e300] + [0] * 15, good[1], good[2]])
        assert refused(zero).startswith("row 2: document '2': vector is all zeros, which have no cosine")
        assert refused(good[:, :5]) == "vectors are (3, 5); expected (n, 16), a row a document"
        assert refused(good[:2]) == "2 vectors came for 3 documents; expected one each, None for none"
        assert "of which 2 came" in refused(row for row in good[:2])
        assert "row 1: document '1': vector has dimension 4; expected dimension 16" in refused(
            [good[0], [1.0] * 4, None]
        )
        assert "vector has the dtype <U1" in refused([["a"] * 16] * 3)
        assert "vector has the dtype complex64" in refused(good.astype(np.complex64))
        assert "vector has the dtype bool" in refused(good > 0)
        assert "vector has the dtype object" in refused([[None] * 16, None, None])
        assert refused("abc").startswith("vectors is 'abc'; expected an array of (n, 16)")
        assert "a masked array" in refused(np.ma.masked_invalid(nan))
        assert len(engine) == 0
        spoken: list[str] = []
        report = engine.add(documents(3), vectors=nan, on_refused=lambda document, why: spoken.append(why))
        assert (report.documents, report.refused) == (2, 1)
        assert "document '1'" in spoken[0]


@pytest.mark.parametrize("dtype", ["f2", "f8", "i1", "u2"])
def test_what_numpy_reads_is_taken(tmp_path: Path, dtype: str) -> None:
    vectors = (np.abs(drawn(5)) * 10 + 1).astype(dtype)
    with made(tmp_path, "inner-product") as engine:
        engine.add(documents(5), vectors=vectors.tolist() if dtype == "f8" else vectors)
        (best, *_) = engine.search(vector=vectors[2].astype(float))
        assert best.score == pytest.approx(max(vectors.astype(float) @ vectors[2].astype(float)), rel=1e-6)


def test_documents_may_carry_their_vectors(tmp_path: Path) -> None:
    carrying = [Document(str(n), f"note {n}", vector=row) for n, row in enumerate(drawn(4))]
    with made(tmp_path) as engine:
        assert engine.add(carrying).documents == 4
        report = sync(engine, [*carrying[1:], Document("new", "x", vector=drawn(1)[0])], dry_run=True)
        assert (report.new, report.vanished, report.unchanged) == (["new"], ["0"], 3)
        report = sync(engine, [*carrying[1:3], replace(carrying[3], vector=drawn(1)[0])])
        assert (report.changed, report.vanished, len(engine)) == (["3"], ["0"], 3)
        assert ids(engine.search(vector=drawn(1)[0], k=1)) == ["3"]


def test_what_needs_a_model_says_what_to_do(tmp_path: Path, documents: list[Document]) -> None:
    with made(tmp_path) as engine:
        engine.add(documents[:2], vectors=drawn(2))
        assert not engine.has_model
        for call in (
            lambda: engine.search("tea", mode="dense"),
            lambda: engine.embed(["tea"]),
            lambda: engine.embedder,
        ):
            with pytest.raises(InputError, match="has no model to embed texts with: give vectors"):
                call()
        with pytest.raises(InputError, match="document '2': it has no vector"):
            engine.add(documents[2:3])
        with pytest.raises(InputError, match="a lexical search needs the text"):
            engine.search(vector=drawn(1)[0], mode="lexical")
        with pytest.raises(InputError, match="query is None"):
            engine.search()
        with pytest.raises(InputError, match="2 vectors came for 1 queries"):
            engine.search_many(["tea"], vectors=drawn(2))
        with pytest.raises(InputError, match="query 1: vector is all zeros"):
            engine.search(vector=[0] * DIM)


def test_an_index_is_bound_to_what_made_its_vectors(tmp_path: Path) -> None:
    with made(tmp_path, "euclidean", vectors_from="model-v1") as engine:
        engine.add(documents(2), vectors=drawn(2), vectors_from="model-v1")
        with pytest.raises(StoreError, match="for vectors from 'model-v1', now they are from 'model-v2'"):
            engine.add(documents(3)[2:], vectors=drawn(1), vectors_from="model-v2")
        assert engine.settings["vectors_from"] == "model-v1"
    folder = tmp_path / "own.index"
    with pytest.raises(StoreError, match="now they are from 'other'"):
        SearchEngine.open(folder, vectors_from="other")
    with pytest.raises(StoreError, match="built with dim 16, now it is 8"):
        SearchEngine.create(folder, dim=8, exist_ok=True)
    with pytest.raises(StoreError, match="built with similarity euclidean"):
        SearchEngine.create(folder, dim=DIM, similarity="cosine", exist_ok=True)
    with pytest.raises(InputError, match="takes no model"):
        SearchEngine.open(folder, model="builtin")
    with SearchEngine.create(folder, dim=DIM, vectors_from="model-v1", exist_ok=True) as engine:
        assert (len(engine), engine.dim, engine.storage.similarity.name) == (2, DIM, "euclidean")


def test_an_index_of_a_model_takes_no_vectors(tmp_path: Path, embedder: Any) -> None:
    with SearchEngine.create(tmp_path / "i", model=embedder) as engine:
        with pytest.raises(InputError, match="embeds texts with its model"):
            engine.add(documents(1), vectors=drawn(1))
        with pytest.raises(StoreError, match="embeds texts with its model"):
            engine.add(documents(1), vectors_from="x")
        engine.add(documents(9))
        vector = engine.embed(["note 3"])[0]
        assert ids(engine.search(vector=vector)) == ids(engine.search("note 3", mode="dense"))


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    for settings, said in (
        ({"dim": 4, "model": "builtin"}, "both model and dim"),
        ({"similarity": "cosine"}, "give their width too"),
        ({"vectors_from": "x"}, "give their width too"),
        ({"dim": 4, "similarity": "manhattan"}, "expected one of cosine, inner-product, euclidean"),
        ({"dim": 0}, "dim is 0; expected 1 to"),
        ({"dim": 4, "chunk_tokens": 100}, "not split"),
    ):
        with pytest.raises(InputError, match=said):
            SearchEngine.create(tmp_path / "i", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "i").exists()


def test_an_older_searchkit_refuses_the_index(tmp_path: Path) -> None:
    """It reads formats 2 and 3, and would look for every passage in a segment."""
    with made(tmp_path) as engine:
        engine.add(documents(1), vectors=drawn(1))
        assert engine.store.database.number("format") == 4


def test_an_image_needs_no_text(tmp_path: Path) -> None:
    with made(tmp_path) as engine:
        engine.add([Document("a.png", "")], vectors=drawn(1))
        assert ids(engine.search(vector=drawn(1)[0])) == ["a.png"]
        with pytest.raises(InputError, match="neither text nor title"):
            engine.add([Document("b.png", "")], vectors=[None])


def test_the_reduction_of_the_distance_is_exact() -> None:
    rng = np.random.default_rng(5)
    for dim, size in ((1, 1.0), (2, 300.0), (7, 1e-3), (8, 1.0), (33, 50.0)):
        vectors, query = rng.normal(1, size, (40, dim)).astype("f4"), rng.normal(1, size, (1, dim)).astype("f4")
        similarity = Similarity("euclidean", dim).fitted(vectors)
        rows, queries = similarity.rows(vectors).astype(float), similarity.queries(query).astype(float)
        assert rows.shape == (40, similarity.width)
        assert similarity.width % 8 == 0
        squares = np.square(query.astype(float)).sum() + similarity.offset - 2 * rows @ queries[0]
        exact = np.square(vectors.astype(float) - query).sum(axis=1)
        np.testing.assert_allclose(squares, exact, atol=2e-6 * max(exact.max(), similarity.offset))
        np.testing.assert_array_equal(similarity.vectors(similarity.rows(vectors)), vectors)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_query_vectors_are_the_same_together_and_alone(name: str) -> None:
    similarity, rows = Similarity(name, DIM), drawn(300)
    together = as_queries(rows, len(rows), similarity)
    np.testing.assert_array_equal(together, [as_vector(row, similarity) for row in rows])
    assert together.base is not rows
    assert together is not rows
    for wrong, message in ((np.nan, "query 8: vector holds nan"), (np.inf, "query 8: vector holds inf")):
        rows[7, 3] = wrong
        with pytest.raises(InputError, match=message):
            as_queries(rows, len(rows), similarity)


def test_normalizing_twice_changes_nothing() -> None:
    for dim in (1, 2, 3, 16, 768):
        once = Similarity("cosine", dim).normalized(np.random.default_rng(dim).normal(0, 9, (2000, dim)))
        np.testing.assert_array_equal(Similarity("cosine", dim).normalized(once), once)
