from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from stored import built, in_segments

from searchkit.indexer.vectors import search as search_module
from searchkit.indexer.vectors.arrays import halved, widened
from searchkit.indexer.vectors.faiss_index import FaissBackend, FaissIndex, train, write_flat
from searchkit.indexer.vectors.recipes import Plan
from searchkit.indexer.vectors.search import search


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]


FLAT = Plan("flat", 16)


@pytest.mark.parametrize("cuts", [(), (13,), (1, 20, 39)])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_search_equals_brute_force_however_the_rows_are_cut(
    tmp_path: Path, vectors: np.ndarray, cuts: tuple[int, ...], k: int
) -> None:
    rows, scores = search(in_segments(tmp_path, vectors, cuts), vectors[:7], k)
    np.testing.assert_array_equal(rows, brute_force(vectors, vectors[:7], k))
    np.testing.assert_allclose(scores, np.take_along_axis(vectors[:7] @ vectors.T, rows, 1), atol=1e-6)


@pytest.mark.parametrize("cuts", [(), (13,)])
@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])  # few rows are scored one by one
def test_only_allowed_rows_are_returned(
    tmp_path: Path, vectors: np.ndarray, cuts: tuple[int, ...], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "EXACT_BELOW", 0.1)
    many = np.concatenate([vectors] * 60)[np.random.default_rng(2).permutation(2400)]
    allowed = np.random.default_rng(3).random(2400) < share
    expected = np.flatnonzero(allowed)[brute_force(many[allowed], vectors[:7], 9)]
    rows, _ = search(in_segments(tmp_path, many, cuts), vectors[:7], 9, allowed=allowed)
    np.testing.assert_array_equal(rows, expected)


def test_fewer_allowed_than_wanted_end_in_minus_one(tmp_path: Path, vectors: np.ndarray) -> None:
    allowed = np.zeros(40, dtype=bool)
    written = in_segments(tmp_path, vectors, (13,))
    rows, scores = search(written, vectors[:2], 5, allowed=allowed)
    assert (rows == -1).all()
    assert (scores == -np.inf).all()
    allowed[[7, 30]] = True
    rows, scores = search(written, vectors[7:8], 5, allowed=allowed)
    np.testing.assert_array_equal(rows, [[7, 30, -1, -1, -1]])
    np.testing.assert_array_equal(np.isfinite(scores), [[True, True, False, False, False]])


def test_scores_are_inner_products_and_not_l2(tmp_path: Path, vectors: np.ndarray) -> None:
    rows, scores = search(in_segments(tmp_path, vectors), -2 * vectors[:3], 40)
    np.testing.assert_allclose(scores[:, -1], [-2, -2, -2], atol=1e-6)  # opposite to itself; L2 would say 9
    np.testing.assert_array_equal(rows[:, -1], [0, 1, 2])


@pytest.mark.parametrize("cuts", [(), (3, 5)])
def test_more_than_the_index_holds_gives_all_rows_and_never_minus_one(
    tmp_path: Path, vectors: np.ndarray, cuts: tuple[int, ...]
) -> None:
    rows, scores = search(in_segments(tmp_path, vectors, cuts), vectors[:2], 1000)
    assert scores.shape == (2, 40)
    np.testing.assert_array_equal(np.sort(rows, axis=1), [range(40), range(40)])


@pytest.mark.parametrize("queries", [1, 50])  # FAISS takes another way from 20 queries on
@pytest.mark.parametrize("cuts", [(), (17, 60)])
def test_equal_scores_come_by_row_also_at_the_cut(tmp_path: Path, queries: int, cuts: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)  # small whole numbers: full of ties, and exact
    vectors, asked = (rng.integers(0, 2, (n, 8)).astype(np.float32) for n in (300, queries))
    written = in_segments(tmp_path, vectors, cuts)
    for k in (1, 3, 10, 120):
        rows, _ = search(written, asked, k)
        np.testing.assert_array_equal(rows, brute_force(vectors, asked, k))


def test_of_equal_vectors_the_first_rows_are_returned(tmp_path: Path, vectors: np.ndarray) -> None:
    written = in_segments(tmp_path, np.repeat(vectors[:2], 100, axis=0), (70,))
    rows, _ = search(written, vectors[:1], 5)
    np.testing.assert_array_equal(rows, [range(5)])


def test_no_queries_no_rows_and_k_zero_give_empty_arrays(tmp_path: Path, vectors: np.ndarray) -> None:
    written = in_segments(tmp_path, vectors)
    for found, shape in (
        (search(written, vectors[:0], 3), (0, 3)),
        (search(written, vectors[:2], 0), (2, 0)),
        (search([], vectors[:2], 3), (2, 0)),
    ):
        assert [part.shape for part in found] == [shape, shape]
        assert [part.dtype for part in found] == [np.int64, np.float32]


def test_queries_of_another_width_are_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="queries are 8 wide but the index holds rows of 16"):
        search(in_segments(tmp_path, vectors), vectors[:2, :8], 3)


def test_a_flat_file_written_in_chunks_is_what_faiss_writes(tmp_path: Path, vectors: np.ndarray) -> None:
    import faiss

    whole = faiss.IndexFlat(16, faiss.METRIC_INNER_PRODUCT)
    whole.add(vectors)
    faiss.write_index(whole, str(tmp_path / "faiss"))
    write_flat(iter([vectors[:7], vectors[7:7], vectors[7:]]), 40, 16, tmp_path / "chunks")
    FaissIndex(FLAT, whole).save(tmp_path / "whole")
    assert (tmp_path / "chunks").read_bytes() == (tmp_path / "faiss").read_bytes()
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "faiss").read_bytes()


def test_widened_halves_are_numpys_to_the_bit() -> None:
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    np.testing.assert_array_equal(widened(finite).view(np.int32), finite.astype(np.float32).view(np.int32))


def test_halved_values_are_numpys_to_the_bit() -> None:
    rng = np.random.default_rng(5)
    any_bits = np.frombuffer(rng.bytes(4 * 600 * 384), "<f4").reshape(-1, 384)
    near = rng.standard_normal((600, 384), np.float32) * np.float32(2.0**-12)
    between = (np.arange(0x7C00, dtype=np.uint16).view(np.float16)[:, None].astype(np.float32)) * np.float32(1 + 2**-11)
    for values in (
        any_bits,
        near,
        between,
        -between,
        between[::2, ::-1],
        np.array([[65519.99, 65520, 0, -0.0]], "<f4"),
    ):
        with np.errstate(over="ignore", invalid="ignore"):
            expected = values.astype(np.float16)
            same = np.isnan(expected) | (halved(values).view(np.int16) == expected.view(np.int16))
        assert same.all()


def test_write_never_overwrites(tmp_path: Path, vectors: np.ndarray) -> None:
    file = tmp_path / "dense.faiss"
    built("fp16", vectors).save(file)
    for write in (
        lambda: built("fp16", vectors[:1]).save(file),
        lambda: write_flat([vectors], 40, 16, file),
    ):
        with pytest.raises(FileExistsError, match="is written once"):
            write()
    assert len(FaissBackend().open(file, Plan("fp16", 16))) == 40


@pytest.mark.parametrize("recipe", ["flat", "fp16", "int8", "hnsw", "binary"])
def test_a_disk_that_is_full_at_the_last_byte_is_noticed(
    tmp_path: Path, vectors: np.ndarray, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = built(recipe, vectors)
    index.save(tmp_path / "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "whole").stat().st_size - 1, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            index.save(tmp_path / "cut")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("recipe", "needed"), [("pq", 256), ("ivf-int8", 2), ("int8", 1)])
def test_too_few_training_vectors_are_refused(vectors: np.ndarray, recipe: str, needed: int) -> None:
    plan = Plan(recipe, 16, 4 if recipe == "pq" else 0, 2 if recipe == "ivf-int8" else 0)
    with pytest.raises(ValueError, match=rf"needs {needed} vectors or more .*there are {needed - 1}; add docum"):
        train(plan, vectors[: needed - 1] if needed < 40 else np.repeat(vectors, 7, axis=0)[:255])


def test_missing_faiss_names_its_extra(vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'searchkit\[cpu\]'"):
        train(FLAT, vectors)
