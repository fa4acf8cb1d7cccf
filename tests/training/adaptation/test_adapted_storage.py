"""The adapted index is stored as the one before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from adapting import config_in, pairs_of
from clouds import COUNT, DIM, NAMES, data, one_thread
from commands import write_lines
from texts import TEXTS

from searchkit.engine import SearchEngine
from searchkit.indexer.documents import NewDocument
from searchkit.indexer.vectors.recipes import Tuning
from searchkit.models.embedder import Embedder
from searchkit.records import Document
from searchkit.training.adaptation.adapt import adapt, store_alike

__all__ = ["one_thread"]  # a fixture


@pytest.fixture(scope="module")
def narrow(mistral: Path) -> Embedder:
    """A model whose vectors are as wide as the clouds."""
    return Embedder(mistral, device="cpu", dtype="float32", dim=DIM, force_dim=True)


def filled(folder: Path, model: Embedder, rows: np.ndarray) -> SearchEngine:
    engine = SearchEngine.create(folder, model=model)
    engine.store.commit([NewDocument(str(n), "", "a", "{}", "", [(0, 1)]) for n in range(COUNT)], rows)
    engine.reload()
    return engine


@pytest.fixture
def engines(tmp_path: Path, narrow: Embedder) -> Iterator[tuple[SearchEngine, SearchEngine]]:
    """The index before, and the flat one that a new model made; vectors differ."""
    with filled(tmp_path / "old", narrow, data()[0]) as old, filled(tmp_path / "new", narrow, data()[0][::-1]) as new:
        yield old, new


# pca7-pq:7: the code divides the principal components, and not the vectors.
@pytest.mark.parametrize("recipe", [*NAMES, "pca16-ivf-pq:4", "pca16-ivf-int8", "pca7-pq:7"])
def test_a_new_index_gets_the_recipe_of_the_old_one(recipe: str, engines: tuple[SearchEngine, SearchEngine]) -> None:
    old, new = engines
    old.store_as(recipe, keep_vectors=False, tuning=Tuning(probes=3, ef=20, rerank=0))
    assert old.storage.plan.spelling == recipe
    store_alike(new, old.storage)
    assert new.storage.plan == old.storage.plan
    if recipe != "flat":  # else it is left as it was made
        assert (new.storage.tuning, new.storage.keep_vectors) == (old.storage.tuning, False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_an_adapted_index_keeps_its_principal_components(tmp_path: Path, mistral: Path) -> None:
    with SearchEngine.create(tmp_path / "notes.index", model=mistral) as engine:
        engine.add(Document(str(n), text.strip(), title=f"Note {n}") for n, text in enumerate(TEXTS))
        before = engine.store_as("pca16-ivf-int8")
    write_lines(tmp_path / "pairs.jsonl", pairs_of(TEXTS))
    adapt(config_in(tmp_path), install=False)
    with SearchEngine.open(tmp_path / "out" / "after.index") as engine:
        assert engine.storage.plan == before
