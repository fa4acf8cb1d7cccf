"""The contract of the port, on every implementation: FAISS on the CPU, FAISS on GPUs, exact numpy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clouds import COUNT, DIM, data, one_thread
from numpy_backend import NumpyBackend
from stored import in_segments

from searchkit.indexer.allowed import AllowedRows
from searchkit.indexer.documents import NewDocument
from searchkit.indexer.rewriting import rewrite
from searchkit.indexer.store import Store
from searchkit.indexer.vectors import faiss_copies as copies
from searchkit.indexer.vectors import segments
from searchkit.indexer.vectors.backend import VectorBackend, VectorIndex
from searchkit.indexer.vectors.faiss_gpu import GpuBackend
from searchkit.indexer.vectors.faiss_index import FaissBackend
from searchkit.indexer.vectors.recipes import Plan, Tuning
from searchkit.indexer.vectors.search import search
from searchkit.indexer.vectors.segments import DiskSegment

__all__ = ["one_thread"]  # a fixture

FLAT = Plan("flat", DIM)


@pytest.fixture(params=["FAISS on the CPU", "FAISS on a GPU", "numpy"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> VectorBackend:
    if request.param == "FAISS on a GPU":  # an index on the CPU stands for the copy
        monkeypatch.setattr(copies, "copied", lambda raw, *_, **__: raw)
        return GpuBackend([0])
    return FaissBackend() if request.param == "FAISS on the CPU" else NumpyBackend()


@pytest.fixture
def index(backend: VectorBackend) -> VectorIndex:
    return backend.build(backend.train(FLAT, data()[0][:0]), np.array_split(data()[0], 3), COUNT)


@pytest.mark.parametrize("share", [None, 0.999, 0.5, 0.004])
@pytest.mark.parametrize("k", [1, 10, COUNT])
def test_search_returns_the_best_of_what_is_allowed(index: VectorIndex, share: float | None, k: int) -> None:
    rows, queries = data()
    allowed = None if share is None else np.random.default_rng(1).random(COUNT) < share
    scores = queries @ rows.T if allowed is None else np.where(allowed, queries @ rows.T, -np.inf)
    true = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    true_scores = np.take_along_axis(scores, true, 1)
    masked = None if allowed is None else AllowedRows(allowed)
    positions, found = index.search(queries, k, tuning=Tuning(), allowed=masked)
    assert (positions.dtype, found.dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(positions, np.where(np.isfinite(true_scores), true, -1))
    np.testing.assert_allclose(found[positions >= 0], true_scores[positions >= 0], atol=1e-6)


def test_vectors_come_back_and_are_scored(index: VectorIndex) -> None:
    rows, queries = data()
    assert (len(index), index.dim, index.plan) == (COUNT, DIM, FLAT)
    np.testing.assert_array_equal(index.vectors(np.array([7, 0, 7])), rows[[7, 0, 7]])
    np.testing.assert_array_equal(index.vectors(slice(3, 9)), rows[3:9])
    assert index.vectors(np.empty(0, np.int64)).shape == (0, DIM)
    np.testing.assert_allclose(index.score(queries[0], np.array([5, 2])), rows[[5, 2]] @ queries[0], atol=1e-6)


def test_a_saved_index_can_be_opened_and_added_to(backend: VectorBackend, index: VectorIndex, tmp_path: Path) -> None:
    saved = index.save(tmp_path / "saved")
    template = backend.train(FLAT, data()[0][:0])
    assert backend.write(template, np.array_split(data()[0], 4), COUNT, tmp_path / "written") == saved
    assert saved.bytes == (tmp_path / "saved").stat().st_size
    assert 0 <= index.nbytes - index.vectors(slice(0, COUNT)).nbytes <= 100
    with pytest.raises(FileExistsError):
        index.save(tmp_path / "saved")
    opened = backend.open(tmp_path / "saved", FLAT)
    np.testing.assert_array_equal(opened.vectors(slice(0, COUNT)), data()[0])
    more = backend.open(tmp_path / "saved", FLAT, mapped=False)
    more.add(data()[1])
    assert (len(more), len(more.empty()), len(opened)) == (COUNT + 30, 0, COUNT)


def test_merging_keeps_the_order_and_leaves_out_what_a_mask_does(
    backend: VectorBackend, index: VectorIndex, tmp_path: Path
) -> None:
    index.save(tmp_path / "one")
    masks = [np.arange(COUNT) % 3 == 0, np.ones(COUNT, bool)]
    backend.merge([tmp_path / "one", tmp_path / "one"], masks, FLAT, tmp_path / "merged")
    merged = backend.open(tmp_path / "merged", FLAT)
    np.testing.assert_array_equal(
        merged.vectors(slice(0, len(merged))), np.concatenate([data()[0][masks[0]], data()[0]])
    )


def test_too_few_training_vectors_are_refused(backend: VectorBackend) -> None:
    with pytest.raises(ValueError, match="needs 256 vectors"):
        backend.train(Plan("pq", DIM, 8), data()[0][:255])


@pytest.fixture
def store(backend: VectorBackend, tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "i", {}, dim=DIM, backend=backend) as store:
        for start in range(0, COUNT, 100):
            names = [NewDocument(str(n), "", "a", "{}", "", [(0, 1)]) for n in range(start, start + 100)]
            store.commit(names, data()[0][start : start + 100])
        yield store


def test_a_store_works_on_every_backend(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = data()
    living = np.arange(COUNT) % 7 > 0
    monkeypatch.setattr(segments, "LEVEL", 2)
    store.merge_small_segments()
    store.delete(np.flatnonzero(~living).tolist())
    for recipe in ("flat", "int8", "flat"):  # of numpy's indexes all are exact
        plan = Plan(recipe, DIM)
        rewrite(store, store.backend.train(plan, rows), purge=recipe == "int8")
        found, _ = search(store.snapshot().segments, queries, 10, allowed=living)
        true = np.flatnonzero(living)[np.argsort(-(queries @ rows[living].T), axis=1)[:, :10]]
        assert np.mean([len({*mine} & {*theirs}) / 10 for mine, theirs in zip(found, true, strict=True)]) > 0.98
    store.merge_small_segments()
    np.testing.assert_array_equal(segments.all_rows(store.snapshot().segments), np.flatnonzero(living))
    with Store(store.folder, backend=store.backend) as reader:
        assert len(reader.template()) == 0
        (part,) = reader.snapshot().segments
        np.testing.assert_allclose(part.vectors(np.arange(part.count)), rows[living], atol=1e-3)


def test_segments_of_every_backend_give_equal_rankings(backend: VectorBackend, tmp_path: Path) -> None:
    rows, queries = data()
    parts = in_segments(tmp_path, rows, (100, 250), backend=backend)
    entry = segments.merge_segments(tmp_path, parts, parts[0].template(), keep_vectors=True)
    whole = DiskSegment(tmp_path / entry.name, entry, FLAT, backend)
    allowed = np.arange(COUNT) % 2 == 0
    for mask in (None, allowed):
        every = queries @ rows.T if mask is None else np.where(mask, queries @ rows.T, -np.inf)
        for found in (search(parts, queries, 10, allowed=mask), search([whole], queries, 10, allowed=mask)):
            np.testing.assert_array_equal(found[0], np.argsort(-every, axis=1, kind="stable")[:, :10])
