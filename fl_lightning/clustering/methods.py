"""Labels for a given number of clusters k: k-means, agglomerative and spectral clustering.

===============  ===========================================  ====================================================
method           source                                       works on
===============  ===========================================  ====================================================
kmeans           Arthur & Vassilvitskii 2007, Lloyd 1982      points (classical scaling)
agglomerative    Sokal & Michener 1958 (average linkage)      distances
spectral         Ng, Jordan & Weiss 2001; von Luxburg 2007    affinities: cosines, or ``exp(−d / median d)``
===============  ===========================================  ====================================================

The algorithms are scikit-learn's. Labels are numbered by first appearance here, k is at most the number of distinct
points, and identical departments share a cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from fl_lightning.clustering import kmeans as k_means
from fl_lightning.clustering.dissimilarity import Dissimilarity
from fl_lightning.clustering.partition import Array, IntArray, number_by_first_appearance
from fl_lightning.clustering.sums_of_squares import within_cluster_ss


class Labels(NamedTuple):
    """A partition.

    Attributes:
        labels: one for each department, in the order of `Dissimilarity.names`.
        inertia: sum of squared distances of `Dissimilarity.points` to the means of their clusters.
    """

    labels: list[int]
    inertia: float


Method: TypeAlias = Callable[..., Labels]

_MIN_AFFINITY = 1e-6
"""The smallest affinity, so that the graph is connected."""


def kmeans(dissimilarity: Dissimilarity, k: int, *, seed: int, n_init: int = 10) -> Labels:
    """k-means++ and Lloyd's iterations on `Dissimilarity.points`.

    Args:
        dissimilarity: of n departments.
        k: number of clusters, at least 1; reduced to the number of distinct points.
        seed: seed of the starts.
        n_init: number of restarts; the best one counts.

    Raises:
        ValueError: k is less than 1.

    Example:
        >>> from fl_lightning.clustering.dissimilarity import from_rows
        >>> kmeans(from_rows(["hr", "it", "ops"], np.array([[0.0], [9.0], [0.2]])), 2, seed=0).labels
        [0, 1, 0]
    """
    return _fit(dissimilarity, k, lambda k: k_means.kmeans(dissimilarity.points, k, seed=seed, n_init=n_init))


def agglomerative(dissimilarity: Dissimilarity, k: int, *, seed: int = 0, n_init: int = 1) -> Labels:
    """Average linkage on `Dissimilarity.distance`: merge the two clusters of smallest mean distance until k are left.

    It is deterministic and ignores `seed` and `n_init`. Otherwise as `kmeans`.
    """

    def fit(k: int) -> tuple[IntArray, None]:
        from sklearn.cluster import AgglomerativeClustering

        model = AgglomerativeClustering(k, metric="precomputed", linkage="average")
        return model.fit_predict(dissimilarity.distance), None

    return _fit(dissimilarity, k, fit)


def spectral(dissimilarity: Dissimilarity, k: int, *, seed: int, n_init: int = 10) -> Labels:
    """k-means on the first k eigenvectors of the normalized Laplacian of `affinity`. Otherwise as `kmeans`."""

    def fit(k: int) -> tuple[IntArray, None]:
        from sklearn.cluster import SpectralClustering

        model = SpectralClustering(k, affinity="precomputed", random_state=seed, n_init=n_init)
        return model.fit_predict(affinity(dissimilarity)), None

    return _fit(dissimilarity, k, fit)


def affinity(dissimilarity: Dissimilarity) -> Array:
    """Cosines if all vectors have length 1 (or 0), else ``exp(−d / median of d)``.

    Returns:
        Shape (n, n), in [1e-6, 1], 1 on the diagonal. Negative cosines count as zero.

    Example:
        >>> from fl_lightning.clustering.dissimilarity import from_gram
        >>> affinity(from_gram(["hr", "it"], np.array([[1.0, 0.25], [0.25, 1.0]]))).tolist()
        [[1.0, 0.25], [0.25, 1.0]]
    """
    d, gram = dissimilarity.dissimilarity, dissimilarity.gram
    if gram is not None and all(abs(norm - 1) < 1e-3 or norm == 0 for norm in gram.diagonal()):
        affinities = np.clip(gram, _MIN_AFFINITY, 1.0)
    else:
        median = float(np.median(d[np.triu_indices(len(d), 1)])) if len(d) > 1 else 0.0
        affinities = np.maximum(np.exp(-d / (median or float(d.max()) or 1.0)), _MIN_AFFINITY)
    np.fill_diagonal(affinities, 1.0)
    return affinities


def _fit(dissimilarity: Dissimilarity, k: int, fit: Callable[[int], tuple[IntArray, float | None]]) -> Labels:
    """Labels by `fit`, numbered by first appearance; trivial partitions need no `fit`."""
    if k < 1:
        raise ValueError(f"k: expected at least 1 cluster, got {k}")
    n = len(dissimilarity.names)
    distinct = dissimilarity.count_distinct(k + 1)
    if k == 1:
        return Labels([0] * n, k_means.kmeans(dissimilarity.points, 1, seed=0)[1])
    if k >= distinct:  # a cluster for each distinct point
        labels = [0] * n if distinct == 1 else list(range(n)) if distinct == n else fit(distinct)[0]
        return Labels(number_by_first_appearance(labels), 0.0)
    fitted, inertia = fit(k)
    labels = number_by_first_appearance(fitted)
    if inertia is None:
        inertia = within_cluster_ss(dissimilarity.points, np.ones(n), labels)
    return Labels(labels, inertia)
