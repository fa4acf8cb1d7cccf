from __future__ import annotations

from pathlib import Path

import numpy as np

from searchkit.training.vector_cache import VectorCache, key_of


def test_rows_come_back_in_any_order_and_after_reopening(tmp_path: Path, vectors: np.ndarray) -> None:
    keys = [key_of("q", str(n)) for n in range(len(vectors))]
    cache = VectorCache(tmp_path / "cache", vectors.shape[1])
    cache.add(keys[:25], vectors[:25])
    cache.add(keys[25:], vectors[25:])
    order = np.random.default_rng(0).permutation(len(vectors))
    for opened in (cache, VectorCache(tmp_path / "cache", vectors.shape[1])):
        assert len(opened) == len(vectors)
        found = opened.rows([keys[i] for i in order])
        np.testing.assert_array_equal(found, vectors[order].astype(np.float16).astype(np.float32))
        assert opened.rows([]).shape == (0, vectors.shape[1])
        assert key_of("q", "none") not in opened


def test_what_an_interruption_left_incomplete_is_cut_off(tmp_path: Path, vectors: np.ndarray) -> None:
    keys = [key_of("q", str(n)) for n in range(len(vectors))]
    VectorCache(tmp_path, vectors.shape[1]).add(keys[:10], vectors[:10])
    with (tmp_path / "rows.f16").open("ab") as stream:
        stream.write(vectors[10:12].astype(np.float16).tobytes()[:-3])  # killed while writing rows
    with (tmp_path / "keys").open("ab") as stream:
        stream.write(keys[10][:5])
    cache = VectorCache(tmp_path, vectors.shape[1])
    assert len(cache) == 10
    cache.add(keys[10:], vectors[10:])
    expected = vectors.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(VectorCache(tmp_path, vectors.shape[1]).rows(keys), expected)


def test_keys_tell_texts_and_kinds_apart() -> None:
    parts = [(None, "tea"), ("", "tea"), ("tea", ""), ("te", "a"), ("Find", "tea"), (None, "tea ")]
    assert len({key_of(*each) for each in parts}) == len(parts)
    assert key_of(None, "\ud800") == key_of(None, "\ud800")
