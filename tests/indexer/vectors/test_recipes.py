"""Every way to store vectors finds what brute force finds, as far as it can, and never what it may not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from clouds import COUNT, DIM, NAMES, data, trained, tuned, unit
from stored import again, in_segments

from searchkit.indexer.documents import NewDocument
from searchkit.indexer.rewriting import rewrite
from searchkit.indexer.store import Store
from searchkit.indexer.vectors import faiss_index, segments
from searchkit.indexer.vectors import search as search_module
from searchkit.indexer.vectors.faiss_index import FaissBackend
from searchkit.indexer.vectors.recipes import RECIPES, Tuning, codes, default_tuning, plan
from searchkit.indexer.vectors.search import search
from searchkit.indexer.vectors.segments import DiskSegment

EXACT = {"flat", "fp16"}
# k-NN recall@10 against brute force, in these 600 vectors: with vectors kept beside the codes, and without.
RECALL = {
    "flat": (1.0, 1.0), "fp16": (0.99, 0.99), "int8": (0.98, 0.98), "pq:8": (0.99, 0.85), "opq:4": (0.98, 0.65),
    "ivf-pq:8": (0.85, 0.75), "ivf-int8": (0.85, 0.85), "rabitq": (0.98, 0.5), "binary": (0.97, 0.6),
    "hnsw": (0.98, 0.98), "cagra": (0.98, 0.98), "pca16-pq:8": (0.95, 0.6),
}  # fmt: skip
CUTS = (100, 250)


def brute_force(allowed: np.ndarray, k: int) -> np.ndarray:
    """The k best of the rows that are allowed, by numpy alone."""
    rows, queries = data()
    there = np.flatnonzero(allowed)
    return np.asarray(there[np.argsort(-(queries @ rows[there].T), axis=1, kind="stable")[:, :k]])


def recall(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), true.tolist(), strict=True)]))


def test_every_recipe_is_tried() -> None:
    assert {name.removeprefix("pca16-").partition(":")[0] for name in NAMES} == set(RECIPES)


@pytest.mark.parametrize("keep", [True, False], ids=["vectors kept", "codes alone"])
@pytest.mark.parametrize("name", NAMES)
def test_search_returns_what_brute_force_returns(tmp_path: Path, name: str, keep: bool) -> None:
    template = trained(name)
    written = in_segments(tmp_path, data()[0], CUTS, template, keep_vectors=keep)
    true = brute_force(np.ones(COUNT, bool), 10)
    found, scores = search(written, data()[1], 10, tuning=tuned(name, keep))
    assert recall(found, true) >= RECALL[name][0 if keep else 1]
    if keep:  # scores are those of the vectors
        exact = np.take_along_axis(data()[1] @ data()[0].T, found, 1)
        np.testing.assert_allclose(scores, exact, atol=1e-6 if name == "flat" else 0.01)
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("keep", [True, False], ids=["vectors kept", "codes alone"])
@pytest.mark.parametrize("name", NAMES)
def test_a_mask_lets_nothing_else_through(
    tmp_path: Path, name: str, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = trained(name)
    written = in_segments(tmp_path, data()[0], CUTS, template, keep_vectors=keep)
    exhaustive = search_module._exhaustive
    for share in (0.01, 0.5, 0.95):
        allowed = np.random.default_rng(int(100 * share)).random(COUNT) < share
        for scanned in (False, True):  # by FAISS with a selector, however few they are
            if scanned:
                monkeypatch.setattr(search_module, "FEW", 0)
                monkeypatch.setattr(search_module, "EXACT_BELOW", 0)
            found, _ = search(written, data()[1], 10, tuning=tuned(name, keep), allowed=allowed)
            assert allowed[found[found >= 0]].all()
            true = brute_force(allowed, 10)
            assert ((found >= 0).sum(axis=1) == true.shape[1]).all()
            assert recall(found, true) >= RECALL[name][0 if keep else 1] - 0.1
            monkeypatch.undo()
    assert search_module._exhaustive is exhaustive


@pytest.mark.parametrize("side", ["all over", "of one side", "far from every query"])
@pytest.mark.parametrize("name", NAMES)
def test_filtering_costs_no_recall(tmp_path: Path, name: str, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template = trained(name)
    monkeypatch.setattr(search_module, "FEW", 0)
    monkeypatch.setattr(search_module, "EXACT_BELOW", 0)
    rows, queries = data()
    rng = np.random.default_rng(7)
    written = in_segments(tmp_path, rows, CUTS, template, keep_vectors=True)
    tuning = replace(tuned(name, True), probes=2, ef=10)  # so that hardly more than what is nearest is looked at
    across = rows @ rng.standard_normal(DIM)
    asked = queries[queries @ rows[np.argmax(across)] < 0] if side == "far from every query" else queries
    allowed = rng.random(COUNT) < 0.4 if side == "all over" else across > np.quantile(across, 0.6)

    def reached(mask: np.ndarray | None) -> float:
        found, _ = search(written, asked, 10, tuning=tuning, allowed=mask)
        there = np.arange(COUNT) if mask is None else np.flatnonzero(mask)
        best = there[np.argsort(-(asked @ rows[there].T), axis=1, kind="stable")[:, :10]]
        return recall(found, best)

    assert len(asked) >= 8
    assert reached(allowed) >= 0.95 * reached(None)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_opened_again_answers_the_same(tmp_path: Path, name: str) -> None:
    template = trained(name)
    written = in_segments(tmp_path, data()[0], CUTS, template, keep_vectors=False)
    found = [
        search(parts, data()[1], 10, tuning=tuned(name, False))
        for parts in (written, [again(part) for part in written])
    ]
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("keep", [True, False], ids=["vectors kept", "codes alone"])
@pytest.mark.parametrize("name", NAMES)
def test_merging_keeps_every_code_and_vector(tmp_path: Path, name: str, keep: bool) -> None:
    template = trained(name)
    written = in_segments(tmp_path, data()[0], CUTS, template, keep_vectors=keep)
    for _ in range(2):  # merged again
        entry = segments.merge_segments(tmp_path, written, template, keep_vectors=keep)
        whole = DiskSegment(tmp_path / entry.name, entry, template.plan, FaissBackend())
        everything = np.arange(COUNT)
        before = np.concatenate([part.vectors(np.arange(part.count)) for part in written])
        np.testing.assert_array_equal(whole.vectors(everything), before)
        np.testing.assert_array_equal(
            whole.index.vectors(everything),
            np.concatenate([part.index.vectors(np.arange(part.count)) for part in written]),
        )
        np.testing.assert_array_equal(whole.docs, everything // 2)
        written = [whole]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("hnsw", "cagra")])
def test_leaving_rows_out_leaves_the_scores_of_all_others(tmp_path: Path, name: str) -> None:
    template = trained(name)
    written = in_segments(tmp_path, data()[0], CUTS, template, keep_vectors=False)
    kept = np.random.default_rng(5).random(COUNT) < 0.6
    entry = segments.merge_segments(tmp_path, written, template, keep_vectors=False, kept=kept)
    whole = DiskSegment(tmp_path / entry.name, entry, template.plan, FaissBackend())
    assert whole.count == kept.sum()
    tuning = Tuning(probes=1000)
    all_rows, all_scores = search(written, data()[1], COUNT, tuning=tuning)
    rows, scores = search([whole], data()[1], COUNT, tuning=tuning)
    for before, was, after, now in zip(all_rows, all_scores, rows, scores, strict=True):
        known = dict(zip(before.tolist(), was.tolist(), strict=True))
        assert sorted(after.tolist()) == np.flatnonzero(kept).tolist()
        np.testing.assert_allclose(now, [known[row] for row in after.tolist()], atol=1e-6)


def documents(first: int, below: int) -> Iterator[NewDocument]:
    """Of two passages each, whose rows are 2n and 2n + 1."""
    for n in range(first, below):
        yield NewDocument(str(n), "", "one two", json.dumps({"n": n}), f"{n}", [(0, 3), (4, 7)])


@pytest.fixture(params=[(name, keep) for name in NAMES for keep in (True, False)], ids=str)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, str, bool]]:
    """The first 500 vectors in an index of four commits, stored by a recipe, and the last 100 added after that."""
    name, keep = request.param
    template = trained(name)
    with Store.create(tmp_path / "i", {}, dim=DIM) as store:
        for start, stop in pairwise((0, 50, 130, 131, 250)):
            store.commit(list(documents(start, stop)), data()[0][2 * start : 2 * stop])
        rewrite(store, template, keep_vectors=keep, tuning=tuned(name, keep))
        store.commit(list(documents(250, 300)), data()[0][500:])
        yield store, name, keep


def asked(store: Store, name: str, keep: bool, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
    snapshot = store.snapshot()
    living = np.ones(snapshot.next_row, bool)
    living[snapshot.dead] = False
    tuning = snapshot.storage.tuning
    assert tuning == tuned(name, keep)
    return search(snapshot.segments, data()[1], k, tuning=tuning, allowed=living)


def test_an_index_keeps_its_answers_through_deleting_and_compacting(stored: tuple[Store, str, bool]) -> None:
    store, name, keep = stored
    rng = np.random.default_rng(1)
    living = np.ones(COUNT, bool)
    for _ in range(2):
        docs = rng.permutation(300)[:60]
        store.delete(docs.tolist())
        living[2 * docs], living[2 * docs + 1] = False, False
        before = asked(store, name, keep)
        rewrite(store, store.template(), keep_vectors=keep, purge=True)
        snapshot = store.snapshot()
        np.testing.assert_array_equal(segments.all_rows(snapshot.segments), np.flatnonzero(living))
        np.testing.assert_array_equal(
            segments.documents_of(snapshot.segments, np.flatnonzero(living)), np.flatnonzero(living) // 2
        )
        assert (snapshot.dead.size, snapshot.documents) == (0, living.sum() // 2)
        after = asked(store, name, keep)
        for found, _ in (before, after):
            assert living[found[found >= 0]].all()
            assert recall(found, brute_force(living, 10)) >= RECALL[name][0 if keep else 1] - 0.05
        if name in {*EXACT, "int8", "pq:8", "opq:4"}:
            np.testing.assert_array_equal(after[0], before[0])
            np.testing.assert_allclose(after[1], before[1], atol=1e-6)


def test_an_index_that_is_opened_again_can_be_added_to(stored: tuple[Store, str, bool]) -> None:
    store, name, keep = stored
    folder = store.folder
    before = asked(store, name, keep)
    store.close()
    with Store(folder, writable=True) as opened:
        np.testing.assert_array_equal(asked(opened, name, keep), before)
        opened.commit([NewDocument("new", "", "x", "{}", "", [(0, 1)])], data()[1][:1])
        found, scores = asked(opened, name, keep)
        assert COUNT in (found[0, :1] if keep or name in (*EXACT, "int8", "hnsw") else found[0])
        assert not keep or scores[0, 0] == pytest.approx(1, abs=0.02)
        kept = {"vectors.f16"} if keep and not RECIPES[trained(name).plan.recipe].faithful else set()
        for segment in opened.snapshot().segments:
            assert {file.name for file in segment.folder.iterdir()} == {"dense.faiss", "docs.i64", *kept}


def test_many_small_commits_are_merged_under_every_recipe(stored: tuple[Store, str, bool]) -> None:
    store, name, keep = stored
    for n in range(8):
        store.commit([NewDocument(f"new {n}", "", "x", "{}", "", [(0, 1)])], data()[1][n : n + 1])
        store.merge_small_segments()
    snapshot = store.snapshot()
    assert len(snapshot.segments) < 8
    np.testing.assert_array_equal(segments.all_rows(snapshot.segments), np.arange(COUNT + 8))
    found, _ = asked(store, name, keep)
    for n in range(8):
        assert COUNT + n in found[n]


def test_principal_components_keep_the_inner_products() -> None:
    """FAISS's own take the mean off, and vectors of a model have one: their order by inner product would change."""
    rng = np.random.default_rng(2)
    rows = unit(rng.standard_normal((600, 8)) @ rng.standard_normal((8, DIM)) + 3 * rng.standard_normal(DIM))
    chosen = plan("pca9-ivf-int8", DIM, 600)  # eight directions and the mean: all there is
    index = faiss_index.train(chosen, rows)
    index.add(rows)
    found, scores = index.search(rows[:50], 10, tuning=Tuning(probes=chosen.lists))
    exact = rows[:50] @ rows.T
    true = np.take_along_axis(exact, np.argsort(-exact, axis=1)[:, :10], 1)
    np.testing.assert_allclose(np.take_along_axis(exact, found, 1), true, atol=0.01)
    offset = scores - np.take_along_axis(exact, found, 1)
    assert (np.ptp(offset, axis=1) < 0.01).all()  # what is lost is the same for every row


# Plans


@pytest.mark.parametrize(
    ("text", "dim", "count", "spelling", "factory", "needed"),
    [
        ("flat", 384, 10, "flat", "Flat", 0),
        ("pq", 384, 10, "pq:48", "IVF1,PQ48np", 256),
        (" PQ:32 ", 384, 10, "pq:32", "IVF1,PQ32np", 256),
        ("opq", 100, 10, "opq:10", "OPQ10,IVF1,PQ10np", 256),
        ("opq:24", 384, 10, "opq:24", "OPQ24,IVF1,PQ24np", 384),
        ("ivf-pq:8", 64, 10_000, "ivf-pq:8", "IVF256,PQ8np", 256),
        ("ivf-int8", 64, 10_000, "ivf-int8", "IVF256,SQ8", 256),
        ("ivf-int8", 64, 1_000_000, "ivf-int8", "IVF4000,SQ8", 4000),
        ("ivf-int8", 64, 10, "ivf-int8", "IVF1,SQ8", 1),
        ("hnsw", 64, 10, "hnsw", "HNSW32,SQfp16", 0),
        ("cagra", 64, 10, "cagra", "", 0),
        ("pca512-pq", 4096, 10, "pca512-pq:64", "PCA512,IVF1,PQ64np", 512),
        ("pca512-ivf-int8", 4096, 10_000, "pca512-ivf-int8", "PCA512,IVF256,SQ8", 512),
    ],
)
def test_a_plan_has_the_numbers_of_its_recipe(
    text: str, dim: int, count: int, spelling: str, factory: str, needed: int
) -> None:
    made = plan(text, dim, count)
    assert (made.spelling, made.factory, made.needed) == (spelling, factory, needed)
    assert plan(made.spelling, dim, count) == made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zip", "recipe is 'zip'; expected one of flat, fp16, int8"),
        ("pq:", "recipe is 'pq:'; expected one of"),
        ("pq:7", "pq:7: 7 bytes do not divide a width of 64; the nearest that do: pq:8"),
        ("pq:128", "128 bytes do not divide a width of 64; the nearest that do: pq:64"),
        ("pq:0", "0 bytes do not divide a width of 64; the nearest that do: pq:1"),
        ("pca64-pq", "pca64-pq: pca goes before pq, ivf-pq, ivf-int8, with fewer components than the 64 dimensions"),
        ("pca0-pq", "pca goes before pq"),
        ("pca16-int8", "pca goes before pq"),
        ("pca16-pq:6", "6 bytes do not divide a width of 16; the nearest that do: pq:4"),
        ("flat:8", "recipe flat has no code size to choose; write flat alone"),
    ],
)
def test_a_wrong_recipe_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan(text, 64, 1000)


def test_codes_are_the_divisors() -> None:
    assert codes(24) == [1, 2, 3, 4, 6, 8, 12, 24]


@pytest.mark.parametrize(
    ("name", "count", "probes"),
    [
        ("ivf-pq:48", 38, 1),
        ("ivf-pq:48", 400, 10),
        ("ivf-pq:48", 10_000, 64),  # four times the square root of the lists
        ("ivf-pq:48", 1_000_000, 253),
        ("ivf-pq:48", 3_000_000, 202),  # 4.2 MB of codes
        ("ivf-int8", 100_000, 138),
        ("ivf-pq:48", 10_000_000, 112),  # the square root
        ("pq:48", 1_000_000, 1),
    ],
)
def test_lists_visited_without_a_measured_tuning(name: str, count: int, probes: int) -> None:
    assert default_tuning(plan(name, 384, count), keep_vectors=True).probes == probes
