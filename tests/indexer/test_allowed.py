from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from searchkit.compression.sample import InMemory
from searchkit.indexer.allowed import AllowedRows
from searchkit.indexer.vectors import faiss_index
from searchkit.indexer.vectors.faiss_filtered import Lists
from searchkit.indexer.vectors.faiss_index import train
from searchkit.indexer.vectors.recipes import Plan, Tuning
from searchkit.indexer.vectors.search import search


def test_what_is_derived_from_a_mask_is_made_once() -> None:
    mask = np.array([True, False, True, True])
    allowed = AllowedRows(mask)
    assert (len(allowed), allowed.count, allowed.positions.tolist()) == (4, 3, [0, 2, 3])
    assert allowed.positions is allowed.positions
    made: list[int] = []
    for _ in range(3):
        assert allowed.derived("x", lambda: made.append(1) or len(made)) == 1


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_a_filter_that_is_used_again_costs_nothing_that_grows_with_the_index(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3000, 16)).astype(np.float32)
    plan = Plan("ivf-int8", 16, lists=30)
    index = train(plan, vectors)
    index.add(vectors)
    segment = InMemory(index, np.arange(3000), vectors.astype(np.float16))
    mask = rng.random(3000) < share
    calls: Counter[str] = Counter()

    def counting(name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return function(*arguments)

        return call

    monkeypatch.setattr(faiss_index, "selector_of", counting("selector", faiss_index.selector_of))
    monkeypatch.setattr(Lists, "counted", counting("lists", Lists.counted))
    monkeypatch.setattr(np, "flatnonzero", counting("positions", np.flatnonzero))
    allowed = AllowedRows(mask)
    found = [search([segment], vectors[n : n + 4], 5, tuning=Tuning(probes=4), allowed=allowed) for n in (0, 4, 0)]
    assert all(mask[rows].all() for rows, _ in found)
    np.testing.assert_array_equal(found[0][0], found[2][0])
    np.testing.assert_array_equal(
        found[0][0], search([segment], vectors[:4], 5, tuning=Tuning(probes=4), allowed=mask.copy())[0]
    )
    once = {"selector": 2, "lists": 2} if share > 0.1 else {"positions": 2}  # and once more for the mask alone
    assert calls == once
