"""Clusters of vectors."""

from __future__ import annotations

import numpy as np

from searchkit.indexer.vectors.faiss_library import faiss_module


def cluster_of_each(vectors: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """The cluster of every vector by spherical k-means, (n,) int64 from 0 to count - 1.

    Args:
        vectors: (n, dim) float32 unit rows.
        count: Clusters, at most n.
        seed: Seed of the first centroids.
    """
    # The limits silence a warning about small clusters, which are as welcome here as large ones, and use every vector.
    means = faiss_module().Kmeans(
        vectors.shape[1], count, niter=10, seed=seed, spherical=True, min_points_per_centroid=1,
        max_points_per_centroid=max(1, len(vectors) // count + 1),
    )  # fmt: skip
    means.train(vectors)
    return np.asarray(means.index.search(vectors, 1)[1][:, 0])
