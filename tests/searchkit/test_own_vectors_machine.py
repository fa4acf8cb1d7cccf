"""Any sequence of changes to an index of users' vectors leaves what a dictionary and numpy say."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from searchkit import Document, SearchEngine
from searchkit.check import check
from searchkit.indexer.vectors.similarity import SIMILARITIES

DIM = 3
ids = st.integers(0, 11).map(str)
# Whole numbers: their inner products and distances are exact, and ties are common.
vectors = st.lists(st.integers(-4, 4), min_size=DIM, max_size=DIM).filter(any)


class Changes(RuleBasedStateMachine):
    """What the index should hold: the vector of every document, or None."""

    @initialize(similarity=st.sampled_from(sorted(SIMILARITIES)))
    def make(self, similarity: str) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.similarity, self.expected = similarity, dict[str, list[int] | None]()
        self.engine = SearchEngine.create(self.folder / "i", dim=DIM, similarity=similarity)

    @rule(given=st.dictionaries(ids, st.none() | vectors, min_size=1, max_size=6), every=st.integers(1, 4))
    def add(self, given: dict[str, list[int] | None], every: int) -> None:
        documents = [Document(id, f"word{id} common") for id in given]
        self.engine.add(documents, vectors=list(given.values()), update=True, commit_every=every)
        self.expected |= given

    @rule(gone=st.lists(ids, max_size=4))
    def delete(self, gone: list[str]) -> None:
        self.engine.delete(gone)
        self.expected = {id: vector for id, vector in self.expected.items() if id not in gone}

    @rule()
    def compact(self) -> None:
        self.engine.compact()

    @rule()
    def open_again(self) -> None:
        self.engine.close()
        assert all(finding.ok for finding in check(self.folder / "i"))
        self.engine = SearchEngine.open(self.folder / "i", writable=True)

    @rule(query=vectors, k=st.integers(1, 15))
    def search(self, query: list[int], k: int) -> None:
        held = {id: vector for id, vector in self.expected.items() if vector is not None}
        hits = self.engine.search(vector=query, k=k)
        assert {hit.id for hit in hits} <= held.keys()
        best = sorted((score(self.similarity, vector, query) for vector in held.values()), reverse=True)[:k]
        np.testing.assert_allclose([hit.score for hit in hits], best, atol=1e-5)
        for hit in hits:
            np.testing.assert_allclose(hit.score, score(self.similarity, held[hit.id], query), atol=1e-5)

    @rule(id=ids)
    def search_by_word(self, id: str) -> None:
        assert [hit.id for hit in self.engine.search(f"word{id}")] == [id] * (id in self.expected)
        assert len(self.engine.search("common", vector=[1, 1, 1], k=20)) == len(self.expected)

    @invariant()
    def holds_what_it_should(self) -> None:
        assert len(self.engine) == len(self.expected)

    def teardown(self) -> None:
        self.engine.close()
        shutil.rmtree(self.folder)


def score(similarity: str, vector: list[int], query: list[int]) -> float:
    one, other = np.array(vector, float), np.array(query, float)
    if similarity == "euclidean":
        return float(-np.linalg.norm(one - other))
    product = float(one @ other)
    return product if similarity == "inner-product" else product / float(np.linalg.norm(one) * np.linalg.norm(other))


Changes.TestCase.settings = settings(
    max_examples=4,
    stateful_step_count=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestChanges = Changes.TestCase
