"""An index that is added to, updated, deleted from, compacted and stored again answers as a list of documents would.

`SEARCHKIT_EXAMPLES=200 pytest tests/searchkit/test_living.py` tries longer.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clouds import DIM, NAMES, data, one_thread, trained, tuned, unit
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.folder_ranker import FolderRanker
from searchkit.indexer.allowed import AllowedRows
from searchkit.indexer.documents import NewDocument
from searchkit.indexer.filters import compile_filter
from searchkit.indexer.lexical import LexicalIndex
from searchkit.indexer.rewriting import rewrite
from searchkit.indexer.store import Store
from searchkit.indexer.vectors import search, segments
from searchkit.indexer.vectors.recipes import Tuning
from searchkit.models.embedder import Embedder
from searchkit.ranking import MODES, SearchOptions, SearchRequest
from searchkit.records import Document

__all__ = ["one_thread"]  # a fixture

EXAMPLES = int(os.environ.get("SEARCHKIT_EXAMPLES", "3"))
DENSE = SearchOptions(mode="dense")
FLOOR = {"ivf-pq:8": 0.6, "ivf-int8": 0.6}  # k-NN recall@10 over all searches of an example; 0.9 for all others


@dataclass
class Kept:
    """A document as the plain list has it."""

    doc: int
    vectors: np.ndarray
    metadata: dict[str, Any]


class Pair:
    """An index, and the plain list of documents that it must agree with."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.store = Store.create(folder, {}, dim=DIM)
        self.plain: dict[str, Kept] = {}
        self.rng = np.random.default_rng(7)
        self.docs, self.recalls = 0, list[float]()
        self.rounded = False
        """Whether vectors were kept in half precision, which may swap near neighbours."""
        self.put([str(n) for n in range(200)])
        self.store_as(name)

    def put(self, ids: list[str]) -> None:
        """Add documents of one or two passages, in place of those with the same ids."""
        documents, vectors = [], [np.empty((0, DIM), np.float32)]
        for number, id in enumerate(ids):
            mine = unit(data()[0][self.rng.integers(0, 600, 1 + number % 2)] + 0.2 * self.rng.standard_normal(DIM))
            metadata = {"n": int(self.rng.integers(100)), "even": number % 2 == 0}
            spans = [(0, 1), (2, 3)][: len(mine)]
            documents.append(NewDocument(id, "", "a b", json.dumps(metadata), "", spans))
            vectors.append(mine)
            self.plain[id] = Kept(self.docs, mine, metadata)
            self.docs += 1
        self.store.commit(documents, np.concatenate(vectors), delete=ids)

    def add(self, count: int) -> None:
        self.put([f"new {self.docs + n}" for n in range(count)])

    def update(self, count: int) -> None:
        if self.plain:
            self.put(self.rng.choice(sorted(self.plain), min(count, len(self.plain)), replace=False).tolist())

    def delete(self, count: int) -> None:
        ids = self.rng.choice([*sorted(self.plain), "x", "y"], min(count, len(self.plain)), replace=False).tolist()
        known = [id for id in ids if id in self.plain]
        assert self.store.documents.known_ids(ids) == set(known)
        assert self.store.delete(self.store.documents.positions_of(ids)) == len(known)
        for id in known:
            del self.plain[id]

    def delete_where(self, below: int) -> None:
        docs, _ = self.store.matching(compile_filter({"n": {"$lt": below}}), self.store.snapshot())
        gone = [id for id, kept in self.plain.items() if kept.metadata["n"] < below]
        assert sorted(docs.tolist()) == sorted(self.plain[id].doc for id in gone)
        self.store.delete(docs.tolist())
        for id in gone:
            del self.plain[id]

    def compact(self) -> None:
        before = self.answers()
        rewrite(self.store, self.store.template(), keep_vectors=True, purge=True)
        assert self.store.snapshot().dead.size == 0
        if self.name in ("flat", "fp16"):
            assert [[item[:2] for item in ranking] for ranking in before] == [
                [item[:2] for item in ranking] for ranking in self.answers()
            ]

    def store_as(self, name: str) -> None:
        self.name = name
        self.rounded |= name != "flat"
        rewrite(self.store, trained(name), keep_vectors=True, tuning=tuned(name, True))

    def join(self) -> None:
        self.store.merge_small_segments()

    def open_again(self) -> None:
        self.store.close()
        self.store = Store(self.folder, writable=True)

    def answers(self, where: dict[str, Any] | None = None) -> list[list[tuple[int, float]]]:
        ranker = FolderRanker(self.store, self.store.snapshot())
        options = SearchOptions(mode="dense", where=where)
        found = ranker.rank(SearchRequest([""] * 8, data()[1][:8], 10, options))
        return [[(item.doc, round(item.score, 5)) for item in ranking] for ranking in found]

    def check(self, where: dict[str, Any] | None = None, fits: Any = lambda metadata: True) -> None:
        """Compare the hits with the inner products of everything that is allowed."""
        queries = data()[1][:8]
        allowed = {kept.doc: kept.vectors for kept in self.plain.values() if fits(kept.metadata)}
        for query, found in zip(queries, self.answers(where), strict=True):
            scores = {doc: vectors @ query for doc, vectors in allowed.items()}
            best = sorted(scores, key=lambda doc: (-scores[doc].max(), doc))[:10]
            docs = [doc for doc, _ in found]
            assert set(docs) <= allowed.keys()  # never one that is deleted, replaced or filtered out
            assert len(docs) == len(set(docs)) == len(best)
            for doc, score in found:
                # 8 bits span what was learnt from; vectors that came later may lie outside. Every other recipe scores
                # by vectors of half precision at least, though maybe not by the best passage of a document.
                error = {"int8": 0.15, "ivf-int8": 0.15}.get(self.name, 1e-3)
                assert np.abs(scores[doc] - score).min() <= error
            if self.name == "flat" and not self.rounded:
                assert docs == best
            self.recalls += [len(set(docs) & set(best)) / len(best)] if best else []

    def check_state(self) -> None:
        snapshot = self.store.snapshot()
        assert snapshot.documents == len(self.plain)
        assert snapshot.passages == sum(len(kept.vectors) for kept in self.plain.values())
        ids = {kept.doc: id for id, kept in self.plain.items()}
        assert self.store.documents.ids_of(ids) == ids
        living = np.setdiff1d(segments.all_rows(snapshot.segments), snapshot.dead) if snapshot.segments else []
        assert set(segments.documents_of(snapshot.segments, np.array(living, np.int64)).tolist()) == ids.keys()


STEPS = st.one_of(
    st.tuples(st.sampled_from(["add", "update", "delete"]), st.integers(1, 40)),
    st.tuples(st.just("delete_where"), st.sampled_from([0, 10, 60, 100])),
    st.tuples(st.sampled_from(["compact", "join", "open_again"])),
    st.tuples(st.just("store_as"), st.sampled_from(NAMES)),
)


@pytest.mark.parametrize("name", NAMES)
@settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None,
    phases=[Phase.generate],
)  # fmt: skip
@given(steps=st.lists(STEPS, min_size=4, max_size=9), low=st.integers(0, 100))
def test_an_index_answers_as_a_list_of_documents_would(name: str, steps: list[tuple[Any, ...]], low: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(Path(folder) / "i", name)
        for work, *given_ in [*steps, ("compact",), ("open_again",)]:
            before = len(pair.recalls)
            getattr(pair, work)(*given_)
            pair.check_state()
            pair.check()
            pair.check({"n": {"$gte": low}, "even": True}, lambda metadata: metadata["n"] >= low and metadata["even"])
            recalls = pair.recalls[before:]
            assert np.mean(recalls or [1]) >= FLOOR.get(pair.name, 0.9)
        pair.store.close()


@pytest.mark.parametrize("recipe", ["flat", "pq:8"])
def test_a_living_index_from_text_to_hit(tmp_path: Path, embedder: Embedder, recipe: str) -> None:
    """The same from text to hit: every mode finds exactly the documents that the index holds."""
    rng = np.random.default_rng(3)
    plain = {f"d{n}": Document(f"d{n}", TEXTS[n % 30], f"Note {n}", {"n": n}) for n in range(260)}
    with SearchEngine.create(tmp_path / "i", model=embedder) as engine:
        engine.add(plain.values(), commit_every=100)
        engine.store_as(recipe)
        for turn in range(4):
            changed = [str(id) for id in rng.choice(sorted(plain), 5, replace=False)]
            documents = [Document(id, f"turn {turn}", f"Note {id}", {"n": 1000 + turn}) for id in changed]
            documents.append(Document(f"new {turn}", TEXTS[turn], "Note", {"n": turn}))
            engine.add(documents, update=True)
            plain |= {document.id: document for document in documents}
            gone = [str(id) for id in rng.choice(sorted(plain), 7, replace=False)]
            low = int(rng.integers(100, 200))
            where = {"n": {"$gte": low, "$lt": low + 10}}
            deleted, unknown = engine.delete([*gone, "nobody"], where=where)
            also = [id for id, document in plain.items() if low <= document.metadata["n"] < low + 10]
            assert (deleted, unknown) == (len({*gone, *also}), ["nobody"])
            for id in {*gone, *also}:
                del plain[id]
            if turn % 2:
                engine.compact()
            assert len(engine) == len(plain)
            for options in (SearchOptions(mode=mode, where=where) for mode in MODES for where in (None, {"n": 1000})):
                for hit in (hits := engine.search("the sun says a note", k=400, options=options)):
                    assert plain[hit.id].text.strip() == hit.text
                fits = {id for id, document in plain.items() if options.where in (None, document.metadata)}
                assert {hit.id for hit in hits} == fits  # "note" is in every title
                assert len(hits) == len(fits)


@pytest.fixture(scope="module")
def lexical(tmp_path_factory: pytest.TempPathFactory) -> LexicalIndex:
    index = LexicalIndex(tmp_path_factory.mktemp("lexical") / "lexical", "none")
    index.add((row, f"{'many ' * (row % 7)} word{row % 50} all") for row in range(3000))
    return index


@settings(max_examples=10 * EXAMPLES, derandomize=True, deadline=None, database=None)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.0, 0.001, 0.2, 0.5, 0.99, 1.0]), k=st.integers(1, 40))
def test_lexical_search_returns_what_is_allowed_and_nothing_else(
    lexical: LexicalIndex, seed: int, share: float, k: int
) -> None:
    rng = np.random.default_rng(seed)
    allowed = rng.random(2900) < share
    text = f"many word{seed % 50}"
    everything, scores = lexical.search(text, 3000, 2900)
    assert (everything < 2900).all()
    kept = allowed[everything]
    found, found_scores = lexical.search(text, k, 2900, AllowedRows(allowed))
    np.testing.assert_array_equal(found, everything[kept][:k])
    np.testing.assert_allclose(found_scores, scores[kept][:k], rtol=1e-5)


def test_what_a_filter_leaves_in_few_of_many_ivf_lists_is_found() -> None:
    """The IVF lists that are visited may hold nothing that is allowed: more are visited then."""
    rows, queries = data()
    with tempfile.TemporaryDirectory() as folder, Store.create(Path(folder) / "i", {}, dim=DIM) as store:
        documents = [NewDocument(str(n), "", "a", json.dumps({"few": n % 60 == 0}), "", [(0, 1)]) for n in range(600)]
        store.commit(documents, rows)
        rewrite(store, trained("ivf-int8"), tuning=Tuning(probes=1))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search, "FEW", 0)
            patch.setattr(search, "EXACT_BELOW", 0)
            ranker = FolderRanker(store, store.snapshot())
            options = SearchOptions(mode="dense", where={"few": True})
            for query, ranking in zip(
                queries, ranker.rank(SearchRequest([""] * 30, queries, 10, options)), strict=True
            ):
                assert {item.doc for item in ranking} == set(range(0, 600, 60))
                true = rows[[item.doc for item in ranking]] @ query
                np.testing.assert_allclose([item.score for item in ranking], true, atol=0.02)
