"""k-means: the k-means++ start of Arthur & Vassilvitskii 2007 and the iterations of Lloyd 1982, by scikit-learn."""

from __future__ import annotations

import numpy as np

from fl_lightning.clustering.partition import IntArray, Matrix


def kmeans(points: Matrix, n_clusters: int, *, seed: int, n_init: int = 10) -> tuple[IntArray, float]:
    """Labels of shape (n,), and the inertia: the sum of squared distances to the means of the clusters.

    Args:
        points: shape (n, m).
        n_clusters: number of clusters; n or more puts every point in a separate one.
        seed: seed of the k-means++ starts.
        n_init: number of restarts; the one with the smallest inertia counts.
    """
    if n_clusters <= 1 or len(points) <= 1:
        centered = points - points.mean(axis=0, keepdims=True)
        return np.zeros(len(points), dtype=np.int64), float((centered**2).sum(dtype=np.float64))
    if n_clusters >= len(points):
        return np.arange(len(points), dtype=np.int64), 0.0
    from sklearn.cluster import KMeans

    fitted = KMeans(n_clusters, init="k-means++", n_init=n_init, random_state=seed, algorithm="lloyd").fit(points)
    return fitted.labels_.astype(np.int64), float(fitted.inertia_)
