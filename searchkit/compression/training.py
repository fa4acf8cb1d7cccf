"""Train a codebook once, for all indexes that are to be merged: it is kept in an index without documents."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from searchkit.codebook import SETTINGS
from searchkit.compression.measure import named_tuning, parse
from searchkit.engine import SearchEngine
from searchkit.errors import InputError, StoreError
from searchkit.indexer.files import sync_folder
from searchkit.indexer.rewriting import rewrite
from searchkit.indexer.store import Store
from searchkit.indexer.vectors.recipes import Plan


@dataclass(frozen=True, slots=True)
class Trained:
    """A codebook that was trained.

    Args:
        plan: The recipe with its numbers.
        vectors: How many it was trained on.
    """

    plan: Plan
    vectors: int


def train_recipe(
    engine: SearchEngine,
    recipe: str,
    folder: str | Path,
    *,
    passages: int | None = None,
    sample: int | None = None,
    drop_vectors: bool = False,
    seed: int = 0,
) -> Trained:
    """Train a recipe on the vectors of an index, and keep it in an index without documents.

    Args:
        engine: Whose vectors to train on; it is not changed.
        recipe: A name, such as "ivf-pq:48+rerank".
        folder: The index to make, for `SearchEngine.store_like`.
        passages: How many passages the indexes that use it will hold together, which decides the number of IVF lists;
            None for those of `engine`.
        sample: Most vectors to train on; None for as many as the recipe wants.
        drop_vectors: Keep no half-precision vectors beside the codes.
        seed: Of the draw of training vectors.

    Raises:
        InputError: There is no such recipe, too few vectors to train it, or the vectors were dropped before.
        StoreError: The folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise StoreError(f"{folder} exists; name another folder, or delete it")
    chosen, rerank = parse(recipe, engine.width, passages or engine.passages)
    if rerank and drop_vectors:
        raise InputError(f"{recipe} is re-ranked by the vectors that are to be dropped; write {chosen.spelling}")
    if not all(part.keeps_vectors for part in engine.snapshot.segments):
        raise InputError(f"{engine.store.folder} keeps no vectors beside its codes, so that nothing can be trained")
    vectors = engine.sample(chosen.wanted if sample is None else min(sample, chosen.wanted), seed=seed)
    if len(vectors) < chosen.needed:
        raise InputError(
            f"{recipe} is trained on {chosen.needed} vectors or more for {passages or engine.passages:,} passages, and "
            f"there are {len(vectors)}; take a larger sample, a larger corpus, or another recipe"
        )
    template = engine.store.backend.train(chosen, vectors)
    staging = folder.with_name(f"{folder.name}.training")
    shutil.rmtree(staging, ignore_errors=True)
    settings = {name: engine.settings[name] for name in SETTINGS if name in engine.settings}
    with Store.create(staging, settings, dim=engine.width, similarity=engine.storage.chosen) as store:
        rewrite(store, template, keep_vectors=not drop_vectors, tuning=named_tuning(chosen, rerank))
    staging.rename(folder)
    sync_folder(folder.parent)
    return Trained(chosen, len(vectors))
