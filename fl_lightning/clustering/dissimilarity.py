"""Pairwise dissimilarity of departments (or clients): a matrix, and points for methods that need points.

Every representation gives the same kind of number, the dissimilarity

    ``d_ij = (k_ii + k_jj) / 2 − k_ij = ‖x_i − x_j‖² / 2``

with ``k`` the Gram matrix if there is one: 1 − cosine for vectors of length 1. The Euclidean distance is ``sqrt(2 d)``.
Classical scaling (Torgerson 1952) finds points with these distances from ``−J d J``, ``J = I − 1 1ᵀ / n``: exactly if d
comes from a Gram matrix, and as closely as positive eigenvalues allow if it does not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fl_lightning.clustering.classical_scaling import centered_rows, count_distinct, gram_matrices, points_from_gram
from fl_lightning.clustering.partition import Array, Matrix
from fl_lightning.clustering.random_projection import (
    DISTANCE_ERROR,
    FAILURE_PROBABILITY,
    projection_size,
    random_projection,
)

log = logging.getLogger(__name__)

EXACT_ROWS = 2000
"""Up to this many rows are compared exactly; more are compared after a random projection."""

_ASYMMETRY = 1e-9
_PROJECTED_ROUNDING = 1e-11
"""`Dissimilarity.rounding` of projected points, which are in fp32."""


@dataclass(frozen=True, eq=False)
class Dissimilarity:
    """How far apart departments are. Make it with `from_rows`, `from_gram` or `from_dissimilarity`.

    Attributes:
        names: sorted; the order of rows and columns.
        matrix: d, shape (n, n), zero on the diagonal; None if only projected points are known.
        gram: k, shape (n, n), or None if d does not come from a Gram matrix.
        scale: the largest squared length of what was compared; differences far below it are rounding errors.
        centered: k after centering, if it is known: points from it are more exact than points from d.
        given_points: points that are known already.
        rounding: two points are equal if their squared distance is at most this share of `scale`.
    """

    names: list[str]
    matrix: Array | None
    gram: Array | None
    scale: float
    centered: Array | None = None
    given_points: Matrix | None = None
    rounding: float = 1e-13
    _counted: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    @property
    def dissimilarity(self) -> Array:
        """d, shape (n, n).

        Raises:
            ValueError: only projected points are known.
        """
        if self.matrix is None:
            raise ValueError(
                f"expected at most {EXACT_ROWS} names for a matrix of dissimilarities, got {len(self.names)}"
            )
        return self.matrix

    @property
    def distance(self) -> Array:
        """``sqrt(2 d)``: shape (n, n)."""
        distance: Array = np.sqrt(2 * self.dissimilarity)
        return distance

    @cached_property
    def points(self) -> Matrix:
        """Points of mean zero that are `distance` apart: shape (n, m)."""
        if self.given_points is not None:
            return self.given_points
        if self.centered is not None:
            return points_from_gram(self.centered)
        d = self.dissimilarity
        rows = d.mean(axis=0, keepdims=True)
        return points_from_gram(rows + rows.T - d - d.mean())

    @property
    def distinct(self) -> int:
        """Number of distinct points: no partition has more clusters."""
        return self.count_distinct(len(self.names))

    def count_distinct(self, limit: int) -> int:
        """Number of distinct points, counted up to `limit`; counted again only for a larger limit."""
        if limit > self._counted.get("limit", 0):
            count = count_distinct(self._squared_distances, len(self.names), self.rounding * self.scale, limit)
            self._counted.update(limit=limit, count=count)
        return min(limit, self._counted["count"])

    def _squared_distances(self, i: int) -> Matrix:
        """From one point to all: shape (n,). From the matrix if it comes from a Gram matrix: points add rounding."""
        squared: Matrix
        if self.matrix is not None and self.gram is not None:
            squared = 2 * self.matrix[i]
        else:
            squared = ((self.points - self.points[i]) ** 2).sum(axis=1)
        return squared


def from_rows(names: Sequence[str], x: Matrix, *, seed: int | None = None) -> Dissimilarity:
    """Dissimilarity of the rows of a matrix: exact for up to `EXACT_ROWS` rows, or of their random projection.

    Args:
        names: sorted, one for each row.
        x: shape (n, d), fp32 or fp64; read in blocks, not copied.
        seed: seed of the random projection; None compares any number of rows exactly.

    Raises:
        ValueError: NaN or infinity in x.

    Example:
        >>> from_rows(["hr", "it"], np.array([[5.0, 0.0], [3.0, 0.0]])).distance.tolist()
        [[0.0, 2.0], [2.0, 0.0]]
    """
    n, d = x.shape
    if seed is None or n <= EXACT_ROWS:
        centered, gram = gram_matrices(x)
        return from_gram(names, gram, centered, centered_rows(x) if d <= n else None)
    scale = float(np.einsum("ij,ij->i", x, x).max())
    if d <= projection_size(n):
        return Dissimilarity(list(names), None, None, scale, given_points=centered_rows(x))
    points = random_projection(x, seed=seed)
    log.info(
        "clustering %d rows after a random projection, %d features → %d: squared distances within 1 ± %g with "
        "probability %g",
        n, d, points.shape[1], DISTANCE_ERROR, 1 - FAILURE_PROBABILITY,
    )  # fmt: skip
    return Dissimilarity(list(names), None, None, scale, given_points=points, rounding=_PROJECTED_ROUNDING)


def from_gram(
    names: Sequence[str], gram: Array, centered: Array | None = None, points: Array | None = None
) -> Dissimilarity:
    """Dissimilarity from a Gram matrix.

    Args:
        names: sorted, one for each row.
        gram: inner products, shape (n, n).
        centered: inner products after centering, if they are known. Distances from them lose no digits to
            cancellation when vectors are mostly what they have in common.
        points: points of mean zero with these inner products, if they are known.

    Raises:
        ValueError: names or shapes do not fit, or a value is not finite.

    Example:
        >>> pair = from_gram(["hr", "it"], np.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> pair.dissimilarity[0, 1], round(pair.distance[0, 1], 4)
        (np.float64(1.0), np.float64(1.4142))
    """
    gram = _symmetric(names, gram, "gram")
    k = gram if centered is None else _symmetric(names, centered, "centered")
    d = _nonnegative((k.diagonal()[:, None] + k.diagonal()[None, :]) / 2 - k)
    scale = max(float(gram.diagonal().max()), 0.0)
    return Dissimilarity(list(names), d, gram, scale, None if centered is None else k, points)


def from_dissimilarity(names: Sequence[str], dissimilarity: Array) -> Dissimilarity:
    """A matrix of dissimilarities that does not come from a Gram matrix.

    Args:
        names: sorted, one for each row.
        dissimilarity: d, shape (n, n), symmetric; negative values count as zero, and so does the diagonal.

    Raises:
        ValueError: names or shapes do not fit, or a value is not finite.

    Example:
        >>> from_dissimilarity(["hr", "it"], np.array([[0.0, 2.0], [2.0, 0.0]])).points.round(9).tolist()
        [[-1.0], [1.0]]
    """
    d = _nonnegative(_symmetric(names, dissimilarity, "dissimilarity"))
    return Dissimilarity(list(names), d, None, 2 * float(d.max()))


def smooth(previous: Dissimilarity | None, current: Dissimilarity, share: float) -> Dissimilarity:
    """Exponential moving average over rounds, ``share · previous + (1 − share) · current``, for steadier clusters.

    Departments may come and go: a pair that was absent before keeps its current value, and pairs of departments that
    left are forgotten.

    Args:
        previous: the smoothed dissimilarity of the round before; None in the first round.
        current: this round's.
        share: weight of earlier rounds, in [0, 1).

    Raises:
        ValueError: `share` is out of range.

    Example:
        >>> previous = from_dissimilarity(["hr", "it"], np.array([[0.0, 4.0], [4.0, 0.0]]))
        >>> current = from_dissimilarity(["hr", "it"], np.array([[0.0, 2.0], [2.0, 0.0]]))
        >>> smooth(previous, current, 0.25).dissimilarity[0, 1]
        np.float64(2.5)
    """
    if not 0 <= share < 1:
        raise ValueError(f"share: expected a number in [0, 1), got {share}; 0 uses this round only")
    if previous is None or share == 0:
        return current
    known = [name in previous.names for name in current.names]
    indices = [previous.names.index(name) for name in current.names if name in previous.names]

    def average(before: Array, after: Array) -> Array:
        mean = after.copy()
        mean[np.ix_(known, known)] = (
            share * before[np.ix_(indices, indices)] + (1 - share) * after[np.ix_(known, known)]
        )
        return mean

    gram = None if previous.gram is None or current.gram is None else average(previous.gram, current.gram)
    d = average(previous.dissimilarity, current.dissimilarity)
    return Dissimilarity(current.names, d, gram, max(previous.scale, current.scale))


def cosine_similarity(gram: Array, *, zero: float = 1e-14) -> Array:
    """Cosine of every pair of rows from their inner products: shape (n, n) in and out.

    Args:
        gram: inner products.
        zero: rows count as zero if their squared norm is at most this share of the largest one.

    Returns:
        Values in [−1, 1]; a zero row has cosine 1 with itself and 0 with all others.

    Example:
        >>> cosine_similarity(np.array([[4.0, 2.0], [2.0, 4.0]])).tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    norms = gram.diagonal()
    zeros = norms <= zero * norms.max(initial=0.0)
    lengths = np.sqrt(np.where(zeros, 1.0, norms))
    cosine: Array = np.clip(gram / lengths[:, None] / lengths[None, :], -1.0, 1.0)
    cosine[zeros, :] = cosine[:, zeros] = 0.0
    np.fill_diagonal(cosine, 1.0)
    return cosine


def _symmetric(names: Sequence[str], matrix: Array, what: str) -> Array:
    """The matrix in fp64, made exactly symmetric.

    Raises:
        ValueError: it is not symmetric or not finite, or names are not sorted, distinct, and one for each row.
    """
    if not names or list(names) != sorted(set(names)):
        raise ValueError(f"names: expected at least one, sorted and distinct, got {list(names)[:8]}")
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape != (len(names), len(names)):
        expected = (len(names), len(names))
        raise ValueError(f"{what}: expected shape {expected}, one row for each name, got {matrix.shape}")
    if not np.isfinite(matrix).all():
        row = int(np.isfinite(matrix).all(axis=1).argmin())
        raise ValueError(f"{what}: the row of {names[row]} is not finite (NaN or infinity); leave it out")
    if np.abs(matrix - matrix.T).max() > _ASYMMETRY * np.abs(matrix).max():
        raise ValueError(f"{what}: expected a symmetric matrix, m[i, j] = m[j, i], got one that is not")
    symmetric: Array = (matrix + matrix.T) / 2
    return symmetric


def _nonnegative(dissimilarity: Array) -> Array:
    d = np.maximum(dissimilarity, 0.0)
    np.fill_diagonal(d, 0.0)
    return d
