"""k-means on an exact stand-in of the data, and the number of clusters by the elbow.

k-means++ (Arthur & Vassilvitskii 2007) and Lloyd's iterations are scikit-learn's. With X = U S Vᵀ the rows of U S
have the same pairwise distances as the rows of X, and U S comes from the n × n Gram matrix. One Gram product therefore
serves every k and every restart, however many features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]

_SAME = 1e-13
"""Two points are one when their squared distance is below this share of the largest squared norm (fp32 rounding)."""


def exact_reduction(x: Array) -> Array:
    """Points with the same pairwise distances as the rows of x, in at most n dimensions.

    Args:
        x: shape (n, d).

    Returns:
        Shape (n, m), m ≤ min(n, d): the rows of U S of the centred x.
    """
    x = np.asarray(x, dtype=np.float64)
    centred = x - x.mean(axis=0, keepdims=True)
    if x.shape[1] <= x.shape[0]:
        reduced: Array = centred
        return reduced
    return points_from_gram(centred @ centred.T)


def points_from_gram(gram: Array) -> Array:
    """Points whose inner products are `gram`: shape (n, n) in, (n, m) out, through the eigendecomposition."""
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    keep = values > max(values.max(initial=0.0), 0.0) * 1e-15
    points: Array = vectors[:, keep] * np.sqrt(values[keep])
    return points if points.shape[1] else np.zeros((len(gram), 1))


def count_distinct(points: Array, scale: float) -> int:
    """Number of distinct points, up to fp32 rounding relative to `scale`, the largest squared norm of the raw data."""
    distinct: list[Array] = []
    for point in points:
        if all(float(((point - other) ** 2).sum()) > _SAME * scale for other in distinct):
            distinct.append(point)
    return len(distinct)


def kmeans(points: Array, n_clusters: int, *, seed: int, n_init: int = 10) -> tuple[IntArray, float]:
    """scikit-learn's k-means++ and Lloyd: labels of shape (n,) and the inertia."""
    if n_clusters <= 1 or len(points) <= 1:
        centred = points - points.mean(axis=0, keepdims=True)
        return np.zeros(len(points), dtype=np.int64), float((centred**2).sum())
    if n_clusters >= len(points):
        return np.arange(len(points), dtype=np.int64), 0.0
    from sklearn.cluster import KMeans

    fitted = KMeans(n_clusters, init="k-means++", n_init=n_init, random_state=seed, algorithm="lloyd").fit(points)
    return fitted.labels_.astype(np.int64), float(fitted.inertia_)


def elbow(inertias: Mapping[int, float], min_clusters: int, max_clusters: int) -> int:
    """The k whose second difference of inertia, ``I(k−1) − 2 I(k) + I(k+1)``, is largest; the smallest on a tie.

    Args:
        inertias: {k: inertia} for k = 1 … max_clusters + 1, or fewer where there are fewer points.
        min_clusters: the smallest k that may be answered.
        max_clusters: the largest k that may be answered.

    Returns:
        k in [min_clusters, max_clusters]; `min_clusters` (at most the largest k tried) if no second difference exists.

    Example:
        >>> elbow({1: 100.0, 2: 60.0, 3: 10.0, 4: 8.0, 5: 7.0}, 2, 4)
        3
    """
    best, best_bend = min(min_clusters, max(inertias)), -np.inf
    for k in range(min_clusters, max_clusters + 1):
        if k - 1 in inertias and k in inertias and k + 1 in inertias:
            bend = inertias[k - 1] - 2 * inertias[k] + inertias[k + 1]
            if bend > best_bend:
                best, best_bend = k, bend
    return best


def determine_optimal_clusters(
    x: Array, min_clusters: int = 2, max_clusters: int = 5, *, seed: int, n_init: int = 10
) -> tuple[int, dict[int, float]]:
    """Number of clusters of the rows of x by the elbow of the k-means inertia.

    Args:
        x: shape (n, d).
        min_clusters: the smallest answer; 1 or more.
        max_clusters: the largest answer.
        seed: of the k-means++ starts.
        n_init: restarts for each k.

    Returns:
        (n_clusters, {k: inertia}); never more clusters than distinct rows, so identical rows are one cluster.

    Raises:
        ValueError: x is not a finite matrix with a row, or the bounds are out of order.

    Example:
        >>> n, inertias = determine_optimal_clusters(np.array([[0.0], [0.1], [5.0], [5.1], [9.0]]), seed=0)
        >>> n
        2
    """
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or len(x) == 0 or not np.isfinite(x).all():
        raise ValueError(f"x: got shape {x.shape}, wanted a finite (n, d) matrix with n at least 1")
    if not 1 <= min_clusters <= max_clusters:
        raise ValueError(f"got min_clusters {min_clusters}, max_clusters {max_clusters}; wanted 1 ≤ min ≤ max")
    points = exact_reduction(x)
    distinct = count_distinct(points, scale=float((x**2).sum(axis=1).max()))
    inertias = {
        k: kmeans(points, k, seed=seed, n_init=n_init)[1] if k < distinct or k == 1 else 0.0
        for k in range(1, min(max_clusters + 1, len(x)) + 1)
    }
    return min(elbow(inertias, min_clusters, max_clusters), distinct), inertias


def number_by_first_appearance(labels: Sequence[int] | IntArray) -> list[int]:
    """Rename labels to 0, 1, … in the order in which they first appear.

    Example:
        >>> number_by_first_appearance([7, 2, 7, 0])
        [0, 1, 0, 2]
    """
    new: dict[int, int] = {}
    return [new.setdefault(int(label), len(new)) for label in labels]
