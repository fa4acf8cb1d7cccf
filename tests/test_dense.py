from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from searchkit.indexer import dense


def in_segments(vectors: np.ndarray, cuts: Sequence[int] = ()) -> list[dense.Segment]:
    bounds = [0, *cuts, len(vectors)]
    return [dense.Segment(start, dense.build(vectors[start:stop])) for start, stop in pairwise(bounds)]


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("cuts", [(), (13,), (1, 20, 39)])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_search_equals_brute_force_however_the_rows_are_cut(vectors: np.ndarray, cuts: tuple[int, ...], k: int) -> None:
    rows, scores = dense.search(in_segments(vectors, cuts), vectors[:7], k)
    np.testing.assert_array_equal(rows, brute_force(vectors, vectors[:7], k))
    np.testing.assert_allclose(scores, np.take_along_axis(vectors[:7] @ vectors.T, rows, 1), atol=1e-6)


def test_scores_are_inner_products_and_not_l2(vectors: np.ndarray) -> None:
    rows, scores = dense.search(in_segments(vectors), -2 * vectors[:3], 40)
    np.testing.assert_allclose(scores[:, -1], [-2, -2, -2], atol=1e-6)  # opposite to itself; L2 would say 9
    np.testing.assert_array_equal(rows[:, -1], [0, 1, 2])


@pytest.mark.parametrize("cuts", [(), (3, 5)])
def test_more_than_the_index_holds_gives_all_rows_and_never_minus_one(
    vectors: np.ndarray, cuts: tuple[int, ...]
) -> None:
    rows, scores = dense.search(in_segments(vectors, cuts), vectors[:2], 1000)
    assert scores.shape == (2, 40)
    np.testing.assert_array_equal(np.sort(rows, axis=1), [range(40), range(40)])


@pytest.mark.parametrize("queries", [1, 50])  # FAISS takes another way from 20 queries on
@pytest.mark.parametrize("cuts", [(), (17, 60)])
def test_equal_scores_come_by_row_also_at_the_cut(queries: int, cuts: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)  # small whole numbers: full of ties, and exact
    vectors, asked = (rng.integers(0, 2, (n, 8)).astype(np.float32) for n in (300, queries))
    for k in (1, 3, 10, 120):
        rows, _ = dense.search(in_segments(vectors, cuts), asked, k)
        np.testing.assert_array_equal(rows, brute_force(vectors, asked, k))


def test_one_text_many_times_is_found_by_its_first_rows(vectors: np.ndarray) -> None:
    rows, _ = dense.search(in_segments(np.repeat(vectors[:2], 100, axis=0), (70,)), vectors[:1], 5)
    np.testing.assert_array_equal(rows, [range(5)])


def test_no_queries_no_rows_and_k_zero_give_empty_arrays(vectors: np.ndarray) -> None:
    segments = in_segments(vectors)
    for found, shape in (
        (dense.search(segments, vectors[:0], 3), (0, 3)),
        (dense.search(segments, vectors[:2], 0), (2, 0)),
        (dense.search([], vectors[:2], 3), (2, 0)),
    ):
        assert [part.shape for part in found] == [shape, shape]
        assert [part.dtype for part in found] == [np.int64, np.float32]


def test_queries_of_another_width_are_refused(vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="queries are 8 wide but the index holds rows of 16"):
        dense.search(in_segments(vectors), vectors[:2, :8], 3)


def test_score_gives_the_inner_products_of_the_rows_asked_for(vectors: np.ndarray) -> None:
    rows = np.array([39, 0, 13, 12, 39, 25])
    found = dense.score(in_segments(vectors, (13, 26)), vectors[5], rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, vectors[rows] @ vectors[5], atol=1e-6)
    assert dense.score(in_segments(vectors), vectors[5], rows[:0]).shape == (0,)


def test_a_file_gives_back_the_same_rows_and_scores(vectors: np.ndarray, tmp_path: Path) -> None:
    dense.write(dense.build(vectors), tmp_path / "dense.faiss")
    again = dense.read(tmp_path / "dense.faiss")
    np.testing.assert_array_equal(dense.vectors_of(again), vectors)
    here, there = (dense.search([dense.Segment(0, index)], vectors, 9) for index in (dense.build(vectors), again))
    np.testing.assert_array_equal(here, there)


def test_an_empty_index_has_no_vectors(vectors: np.ndarray) -> None:
    assert dense.vectors_of(dense.build(vectors[:0])).shape == (0, 16)


def test_write_never_overwrites(vectors: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / "dense.faiss"
    dense.write(dense.build(vectors), file)
    with pytest.raises(FileExistsError, match="a segment is written once"):
        dense.write(dense.build(vectors[:1]), file)
    assert dense.read(file).ntotal == 40


def test_missing_faiss_names_its_extra(vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'searchkit\[cpu\]'"):
        dense.build(vectors)
