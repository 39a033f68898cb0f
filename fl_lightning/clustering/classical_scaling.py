"""Gram matrices of rows, and points with given inner products (classical scaling).

Torgerson 1952, "Multidimensional scaling: I. Theory and method". With X = U S Vᵀ the rows of U S are as far apart as
the rows of X, and U S comes from the n × n Gram matrix. One Gram product therefore serves every k and every restart of
k-means, however many features there are. Matrices are read in blocks of features, each centered on its own: raw
A-matrices are mostly their shared start, and without centering the differences would drown in rounding errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from fl_lightning.clustering.partition import Array, Matrix

_BLOCK = 4096
"""Features read at a time."""


def centered_blocks(x: Matrix, dtype: npt.DTypeLike) -> Iterator[tuple[Matrix, Array]]:
    """Blocks of features: centered columns, shape (n, block) in `dtype`, and their means, shape (block,).

    Raises:
        ValueError: NaN or infinity in x.
    """
    for first in range(0, max(x.shape[1], 1), _BLOCK):
        block = x[:, first : first + _BLOCK].astype(dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = block.mean(axis=0, dtype=np.float64)
        if not np.isfinite(mean).all():
            raise ValueError(f"x: expected a finite (n, d) matrix, got shape {x.shape} with NaN or infinity")
        block -= mean.astype(dtype)
        yield block, mean


def gram_matrices(x: Matrix) -> tuple[Array, Array]:
    """Inner products of the rows of x, after and before centering: two of shape (n, n), from one product in fp64."""
    centered, with_mean, mean_norm = np.zeros((len(x), len(x))), np.zeros(len(x)), 0.0
    for block, mean in centered_blocks(x, np.float64):
        centered += block @ block.T
        with_mean += block @ mean
        mean_norm += float(mean @ mean)
    return centered, centered + (with_mean[:, None] + with_mean[None, :]) + mean_norm


def centered_rows(x: Matrix) -> Array:
    """The rows of x less their mean, in fp64: shape (n, d)."""
    return np.hstack([block for block, _ in centered_blocks(x, np.float64)])


def points_from_gram(gram: Array) -> Array:
    """Points whose inner products are `gram`: shape (n, n) in, (n, m) out with m ≤ n, by eigendecomposition.

    Eigenvalues that are negative or only rounding are dropped.
    """
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    keep = values > max(values.max(initial=0.0), 0.0) * 1e-15
    points: Array = vectors[:, keep] * np.sqrt(values[keep])
    return points if points.shape[1] else np.zeros((len(gram), 1))


def count_distinct(squared_distances: Callable[[int], Matrix], n: int, bound: float, limit: int) -> int:
    """Number of distinct points, counted up to `limit`.

    Args:
        squared_distances: of one point, given by its index, to all: shape (n,).
        n: number of points.
        bound: points count as equal up to this squared distance.
        limit: stop counting here.

    Returns:
        Size of the set that takes points in order, each one farther than `bound` from all taken before.

    Example:
        >>> points = np.array([0.0, 1e-9, 1.0])
        >>> count_distinct(lambda i: (points - points[i]) ** 2, 3, bound=1e-13, limit=3)
        2
    """
    free, count = np.ones(n, dtype=bool), 0
    while count < limit and free.any():
        free &= squared_distances(int(free.argmax())) > bound
        count += 1
    return count
