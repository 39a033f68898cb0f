"""How far departments (or clients) are from each other: a matrix, and points for methods that want points.

Torgerson 1952, "Multidimensional scaling: I. Theory and method" (classical scaling), for the points.

All representations of this package give one kind of number, the dissimilarity

    ``d_ij = (k_ii + k_jj) / 2 − k_ij = ‖x_i − x_j‖² / 2``

with ``k`` the Gram matrix where there is one: 1 − cosine for vectors of length 1. ``distance = sqrt(2 d)`` is then the
Euclidean distance. Classical scaling finds points with these distances from ``−J d J``, ``J = I − 1 1ᵀ / n``: exactly
where d comes from a Gram matrix, and as near as positive eigenvalues go where it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fl_lightning.clustering.kmeans import Array, count_distinct, points_from_gram

_ASYMMETRY = 1e-9


@dataclass(frozen=True, eq=False)
class Relation:
    """Departments and how far apart they are. Make it with `from_gram` or `from_dissimilarity`.

    Attributes:
        names: sorted; the order of rows and columns.
        dissimilarity: d, shape (n, n), zero on the diagonal.
        gram: k, shape (n, n), or None where d comes from no kernel.
        scale: the largest squared length of what was compared; differences far below it are rounding.
    """

    names: list[str]
    dissimilarity: Array
    gram: Array | None
    scale: float

    @property
    def distance(self) -> Array:
        """``sqrt(2 d)``: shape (n, n)."""
        found: Array = np.sqrt(2 * self.dissimilarity)
        return found

    @cached_property
    def points(self) -> Array:
        """Points of mean zero as far apart as `distance` says: shape (n, m), m at most n."""
        d = self.dissimilarity
        rows = d.mean(axis=0, keepdims=True)
        return points_from_gram(rows + rows.T - d - d.mean())

    @cached_property
    def distinct(self) -> int:
        """Number of distinct points: no partition has more clusters."""
        return count_distinct(self.points, self.scale)


def from_gram(names: Sequence[str], gram: Array, centred: Array | None = None) -> Relation:
    """The relation of a Gram matrix.

    Args:
        names: sorted, one for each row.
        gram: inner products, shape (n, n).
        centred: inner products after centring, where they are known: distances come out of them without cancellation
            where vectors are mostly what they have in common.

    Raises:
        ValueError: names or shapes do not fit, or a value is not finite.

    Example:
        >>> relation = from_gram(["hr", "it"], np.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> relation.dissimilarity[0, 1], round(relation.distance[0, 1], 4)
        (np.float64(1.0), np.float64(1.4142))
    """
    gram = _symmetric(names, gram, "gram")
    k = gram if centred is None else _symmetric(names, centred, "centred")
    d = (k.diagonal()[:, None] + k.diagonal()[None, :]) / 2 - k
    return Relation(list(names), _clean(d), gram, float(gram.diagonal().max()))


def from_dissimilarity(names: Sequence[str], dissimilarity: Array) -> Relation:
    """The relation of a matrix of dissimilarities that comes from no kernel.

    Args:
        names: sorted, one for each row.
        dissimilarity: d, shape (n, n), symmetric; values below zero count as zero, the diagonal as zero.

    Raises:
        ValueError: names or shapes do not fit, or a value is not finite.

    Example:
        >>> from_dissimilarity(["hr", "it"], np.array([[0.0, 2.0], [2.0, 0.0]])).points.round(9).tolist()
        [[-1.0], [1.0]]
    """
    d = _clean(_symmetric(names, dissimilarity, "dissimilarity"))
    return Relation(list(names), d, None, 2 * float(d.max()))


def smooth(previous: Relation | None, now: Relation, keep: float) -> Relation:
    """Exponential moving average over rounds, ``keep · previous + (1 − keep) · now``, for groups that do not flicker.

    Departments may come and go: a pair that was not there before stands as it is now, and who left is forgotten.

    Args:
        previous: what the call before gave; None in the first round.
        now: this round's relation.
        keep: in [0, 1); 0 keeps nothing.

    Raises:
        ValueError: keep is out of range.

    Example:
        >>> before = from_dissimilarity(["hr", "it"], np.array([[0.0, 4.0], [4.0, 0.0]]))
        >>> now = from_dissimilarity(["hr", "it"], np.array([[0.0, 2.0], [2.0, 0.0]]))
        >>> smooth(before, now, keep=0.25).dissimilarity[0, 1]
        np.float64(2.5)
    """
    if not 0 <= keep < 1:
        raise ValueError(f"keep: got {keep}, wanted a share in [0, 1); 0 looks at this round only")
    if previous is None:
        return now
    known = [name in previous.names for name in now.names]
    old = [previous.names.index(name) for name in now.names if name in previous.names]

    def mix(before: Array, after: Array) -> Array:
        mixed = after.copy()
        mixed[np.ix_(known, known)] = keep * before[np.ix_(old, old)] + (1 - keep) * after[np.ix_(known, known)]
        return mixed

    gram = None if previous.gram is None or now.gram is None else mix(previous.gram, now.gram)
    return Relation(now.names, mix(previous.dissimilarity, now.dissimilarity), gram, max(previous.scale, now.scale))


def _symmetric(names: Sequence[str], matrix: Array, what: str) -> Array:
    """The matrix in fp64, made exactly symmetric.

    Raises:
        ValueError: it is not symmetric or not finite, or names are not sorted, distinct, and one for each row.
    """
    if not names or list(names) != sorted(set(names)):
        raise ValueError(f"names: got {list(names)[:8]}, wanted at least one, sorted, each once")
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape != (len(names), len(names)):
        raise ValueError(f"{what}: got shape {matrix.shape}, wanted {(len(names), len(names))}, a row for each name")
    if not np.isfinite(matrix).all():
        row = int(np.isfinite(matrix).all(axis=1).argmin())
        raise ValueError(f"{what}: the row of {names[row]} is not finite (NaN or infinity); leave it out")
    if np.abs(matrix - matrix.T).max() > _ASYMMETRY * np.abs(matrix).max():
        raise ValueError(f"{what}: got a matrix that is not symmetric, wanted m[i, j] = m[j, i]")
    symmetric: Array = (matrix + matrix.T) / 2
    return symmetric


def _clean(dissimilarity: Array) -> Array:
    d = np.maximum(dissimilarity, 0.0)
    np.fill_diagonal(d, 0.0)
    return d
