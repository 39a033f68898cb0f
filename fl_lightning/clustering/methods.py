"""Labels for a given number of clusters k: k-means, agglomerative and spectral clustering.

===============  ===========================================  ====================================================
method           source                                       sees
===============  ===========================================  ====================================================
kmeans           Arthur & Vassilvitskii 2007, Lloyd 1982      points (classical scaling)
agglomerative    Sokal & Michener 1958 (average linkage)      distances
spectral         Ng, Jordan & Weiss 2001; von Luxburg 2007    affinities: cosines, or ``exp(−d / median d)``
===============  ===========================================  ====================================================

All of it is scikit-learn's. Here labels are numbered by first appearance, k is at most the number of distinct points,
and identical departments are one cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from fl_lightning.clustering import kmeans as k_means
from fl_lightning.clustering.dissimilarity import Relation
from fl_lightning.clustering.kmeans import Array, IntArray, number_by_first_appearance

Method: TypeAlias = Callable[..., list[int]]

_FLOOR = 1e-6
"""The smallest affinity, so that the graph is connected."""


def kmeans(relation: Relation, k: int, *, seed: int, n_init: int = 10) -> list[int]:
    """k-means++ and Lloyd's iterations on `Relation.points`.

    Args:
        relation: n departments.
        k: how many clusters, at least 1; no more than there are distinct points are made.
        seed: of the starts.
        n_init: restarts, the best of which counts.

    Returns:
        A label for each department, in the order of `Relation.names`.

    Raises:
        ValueError: k is less than 1.

    Example:
        >>> from fl_lightning.clustering.dissimilarity import from_gram
        >>> x = np.array([[0.0], [9.0], [0.1]])
        >>> kmeans(from_gram(["hr", "it", "ops"], x @ x.T), 2, seed=0)
        [0, 1, 0]
    """
    return _labels(relation, k, lambda k: k_means.kmeans(relation.points, k, seed=seed, n_init=n_init)[0])


def agglomerative(relation: Relation, k: int, *, seed: int = 0, n_init: int = 1) -> list[int]:
    """Average linkage on `Relation.distance`: the two clusters of least mean distance are merged until k are left.

    Nothing in it is random; `seed` and `n_init` are taken and left alone. Otherwise as `kmeans`.
    """

    def fit(k: int) -> IntArray:
        from sklearn.cluster import AgglomerativeClustering

        model = AgglomerativeClustering(k, metric="precomputed", linkage="average")
        labels: IntArray = model.fit_predict(relation.distance)
        return labels

    return _labels(relation, k, fit)


def spectral(relation: Relation, k: int, *, seed: int, n_init: int = 10) -> list[int]:
    """k-means on the first k eigenvectors of the normalised Laplacian of `affinity`. Otherwise as `kmeans`."""

    def fit(k: int) -> IntArray:
        from sklearn.cluster import SpectralClustering

        model = SpectralClustering(k, affinity="precomputed", random_state=seed, n_init=n_init)
        labels: IntArray = model.fit_predict(affinity(relation))
        return labels

    return _labels(relation, k, fit)


def affinity(relation: Relation) -> Array:
    """How alike departments are: the cosine where vectors have length 1 (or 0), else ``exp(−d / median of d)``.

    Returns:
        Shape (n, n), in [1e-6, 1], 1 on the diagonal. Cosines below zero count as none.

    Example:
        >>> from fl_lightning.clustering.dissimilarity import from_gram
        >>> affinity(from_gram(["hr", "it"], np.array([[1.0, 0.25], [0.25, 1.0]]))).tolist()
        [[1.0, 0.25], [0.25, 1.0]]
    """
    d, gram = relation.dissimilarity, relation.gram
    if gram is not None and all(abs(norm - 1) < 1e-3 or norm == 0 for norm in gram.diagonal()):
        found = np.clip(gram, _FLOOR, 1.0)
    else:
        middle = float(np.median(d[np.triu_indices(len(d), 1)])) if len(d) > 1 else 0.0
        found = np.maximum(np.exp(-d / (middle or float(d.max()) or 1.0)), _FLOOR)
    np.fill_diagonal(found, 1.0)
    return found


def _labels(relation: Relation, k: int, fit: Callable[[int], IntArray]) -> list[int]:
    if k < 1:
        raise ValueError(f"k: got {k}, wanted at least 1 cluster")
    k = min(k, relation.distinct)
    if k == 1:
        return [0] * len(relation.names)
    if k == len(relation.names):
        return list(range(k))
    return number_by_first_appearance(fit(k))
