"""k-means on small stand-ins of the rows, and the number of clusters by the elbow.

k-means++ (Arthur & Vassilvitskii 2007) and Lloyd's iterations are scikit-learn's. Up to `EXACT_ROWS` rows they see
exact distances: with X = U S Vᵀ the rows of U S are as far apart as the rows of X, and U S comes from the n × n Gram
matrix. One Gram product serves every k and every restart, however many features. Beyond, where that matrix and its
eigenvectors cost too much, they see a random projection (`sketch`). Both read x in blocks of features, centred in turn:
raw A-matrices are mostly their shared start, which would drown the differences in rounding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

Array: TypeAlias = npt.NDArray[np.float64]
Matrix: TypeAlias = npt.NDArray[np.floating[Any]]
IntArray: TypeAlias = npt.NDArray[np.int64]

EXACT_ROWS = 2000
"""Up to this many rows k-means sees exact distances; beyond, those of a sketch."""
SKETCH_ERROR, SKETCH_FAILURE = 0.25, 0.01
"""A sketch keeps every squared distance within 1 ± SKETCH_ERROR, but for a probability of SKETCH_FAILURE."""

_BLOCK = 4096  # features
_SAME, _SAME_IN_SKETCH = 1e-13, 1e-11
"""Two points are one when their squared distance is below this share of the largest squared norm (fp32 rounding)."""


@dataclass(frozen=True)
class Reduction:
    """What k-means needs to know of a matrix.

    Attributes:
        points: stand-ins of the rows, shape (n, m).
        distinct: number of distinct rows, counted no further than the limit that was asked for.
        gram: inner products of the rows, shape (n, n); None beyond `EXACT_ROWS` rows.
    """

    points: Matrix
    distinct: int
    gram: Array | None


def reduce_rows(x: Matrix, *, limit: int, seed: int) -> Reduction:
    """Stand-ins for the rows of x: exact up to `EXACT_ROWS` rows or where features are few, else a `sketch`.

    Args:
        x: shape (n, d), fp32 or fp64; read in blocks, not copied.
        limit: how far to count distinct rows.
        seed: of the sketch.

    Raises:
        ValueError: NaN or infinity in x.
    """
    n, d = x.shape
    if n <= EXACT_ROWS:
        centred, gram = gram_matrices(x)
        norms, scale = centred.diagonal(), max(float(gram.diagonal().max()), 0.0)
        distinct = _count_leaders(lambda i: norms + norms[i] - 2 * centred[i], n, _SAME * scale, limit)
        return Reduction(exact_reduction(x, centred), distinct, gram)
    points: Matrix
    if d <= sketch_size(n):
        points, same = exact_reduction(x), _SAME
    else:
        points, same = sketch(x, seed=seed), _SAME_IN_SKETCH
        log.info(
            "clustering %d rows on a sketch, %d features → %d: squared distances within 1 ± %g with probability %g",
            n, d, points.shape[1], SKETCH_ERROR, 1 - SKETCH_FAILURE,
        )  # fmt: skip
    scale = float(np.einsum("ij,ij->i", x, x).max())
    return Reduction(points, count_distinct(points, scale, limit, same), None)


def _centred_blocks(x: Matrix, dtype: npt.DTypeLike) -> Iterator[tuple[Matrix, Array]]:
    """Some features at a time: their centred columns, shape (n, block) in `dtype`, and their means, shape (block,)."""
    for first in range(0, max(x.shape[1], 1), _BLOCK):
        block = x[:, first : first + _BLOCK].astype(dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = block.mean(axis=0, dtype=np.float64)
        if not np.isfinite(mean).all():
            raise ValueError(f"x: got shape {x.shape}, wanted a finite (n, d) matrix; it holds NaN or infinity")
        block -= mean.astype(dtype)
        yield block, mean


def gram_matrices(x: Matrix) -> tuple[Array, Array]:
    """Inner products of the rows of x, after and before centring: two of shape (n, n), from one product in fp64."""
    centred, with_mean, mean_norm = np.zeros((len(x), len(x))), np.zeros(len(x)), 0.0
    for block, mean in _centred_blocks(x, np.float64):
        centred += block @ block.T
        with_mean += block @ mean
        mean_norm += float(mean @ mean)
    return centred, centred + (with_mean[:, None] + with_mean[None, :]) + mean_norm


def exact_reduction(x: Matrix, gram: Array | None = None) -> Array:
    """Points with the same pairwise distances as the rows of x, in at most n dimensions.

    Args:
        x: shape (n, d).
        gram: inner products of the centred rows, where they are known.

    Returns:
        Shape (n, m), m ≤ min(n, d): the rows of U S of the centred x.
    """
    if x.shape[1] <= x.shape[0]:
        return np.hstack([block for block, _ in _centred_blocks(x, np.float64)])
    return points_from_gram(gram_matrices(x)[0] if gram is None else gram)


def points_from_gram(gram: Array) -> Array:
    """Points whose inner products are `gram`: shape (n, n) in, (n, m) out, through the eigendecomposition."""
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    keep = values > max(values.max(initial=0.0), 0.0) * 1e-15
    points: Array = vectors[:, keep] * np.sqrt(values[keep])
    return points if points.shape[1] else np.zeros((len(gram), 1))


def sketch_size(n: int) -> int:
    """Dimensions that keep all n (n − 1) / 2 squared distances within `SKETCH_ERROR`, but for `SKETCH_FAILURE`.

    One distance fails with probability 2 exp(−m (eps² / 2 − eps³ / 3) / 2) at most (Dasgupta & Gupta 2003). Those of
    scikit-learn's `johnson_lindenstrauss_min_dim` are fewer: they promise success with probability 1 / n only.
    """
    return math.ceil(2 * math.log(n * (n - 1) / SKETCH_FAILURE) / (SKETCH_ERROR**2 / 2 - SKETCH_ERROR**3 / 3))


def sketch(x: Matrix, *, seed: int) -> npt.NDArray[np.float32]:
    """Gaussian random projection of the rows (Johnson & Lindenstrauss 1984), in fp32.

    With probability 1 − `SKETCH_FAILURE` every squared distance is within 1 ± `SKETCH_ERROR` of the exact one. So is
    then the inertia of every partition, a weighted sum of them, and the best partition of the sketch has at most
    (1 + eps) / (1 − eps) times the inertia of the best partition of the rows.

    Args:
        x: shape (n, d), n at least 2.
        seed: of the projection.

    Returns:
        Shape (n, m), m = `sketch_size` of n.
    """
    draw, size = np.random.default_rng(seed), sketch_size(len(x))
    points = np.zeros((len(x), size), dtype=np.float32)
    for block, _ in _centred_blocks(x, np.float32):
        points += block @ draw.standard_normal((block.shape[1], size), dtype=np.float32)
    points /= np.float32(math.sqrt(size))
    return points


def count_distinct(points: Matrix, scale: float, limit: int | None = None, same: float = _SAME) -> int:
    """Number of distinct points, up to rounding relative to `scale`, the largest squared norm of the raw data."""
    most = len(points) if limit is None else limit
    return _count_leaders(lambda i: ((points - points[i]) ** 2).sum(axis=1), len(points), same * scale, most)


def _count_leaders(distances: Callable[[int], Matrix], n: int, bound: float, limit: int) -> int:
    """Points in order, each farther than `bound` from those counted before; `distances` gives those of one to all."""
    free, count = np.ones(n, dtype=bool), 0
    while count < limit and free.any():
        free &= distances(int(free.argmax())) > bound
        count += 1
    return count


def kmeans(points: Matrix, n_clusters: int, *, seed: int, n_init: int = 10) -> tuple[IntArray, float]:
    """scikit-learn's k-means++ and Lloyd: labels of shape (n,) and the inertia."""
    if n_clusters <= 1 or len(points) <= 1:
        centred = points - points.mean(axis=0, keepdims=True)
        return np.zeros(len(points), dtype=np.int64), float((centred**2).sum(dtype=np.float64))
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


@dataclass(frozen=True)
class ElbowResult:
    """k-means at the k of the elbow: labels of shape (n,) as k-means numbers them; the inertia of every k tried."""

    n_clusters: int
    labels: IntArray
    inertias: dict[int, float]
    reduction: Reduction


def cluster_rows(x: Matrix, min_clusters: int, max_clusters: int, *, seed: int, n_init: int = 10) -> ElbowResult:
    """Reduce the rows of x once, try every k on the result, and keep the labels of the k that the elbow chooses."""
    x = np.asarray(x)
    x = x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"x: got shape {x.shape}, wanted a finite (n, d) matrix with n at least 1")
    if not 1 <= min_clusters <= max_clusters:
        raise ValueError(f"got min_clusters {min_clusters}, max_clusters {max_clusters}; wanted 1 ≤ min ≤ max")
    reduced = reduce_rows(x, limit=max_clusters + 2, seed=seed)
    tried = range(1, min(max_clusters + 1, len(x)) + 1)
    fits = {k: kmeans(reduced.points, k, seed=seed, n_init=n_init) for k in tried if k <= max(reduced.distinct, 1)}
    inertias = {k: fits[k][1] if k < reduced.distinct or k == 1 else 0.0 for k in tried}
    chosen = min(elbow(inertias, min_clusters, max_clusters), reduced.distinct)
    return ElbowResult(chosen, fits[chosen][0], inertias, reduced)


def determine_optimal_clusters(
    x: Matrix, min_clusters: int = 2, max_clusters: int = 5, *, seed: int, n_init: int = 10
) -> tuple[int, dict[int, float]]:
    """Number of clusters of the rows of x by the elbow of the k-means inertia.

    Args:
        x: shape (n, d), fp32 or fp64. Beyond `EXACT_ROWS` rows distances are those of a `sketch`, inertias too.
        min_clusters: the smallest answer; 1 or more.
        max_clusters: the largest answer.
        seed: of the k-means++ starts and of the sketch.
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
    found = cluster_rows(x, min_clusters, max_clusters, seed=seed, n_init=n_init)
    return found.n_clusters, found.inertias


def number_by_first_appearance(labels: Sequence[int] | IntArray) -> list[int]:
    """Rename labels to 0, 1, … in the order in which they first appear.

    Example:
        >>> number_by_first_appearance([7, 2, 7, 0])
        [0, 1, 0, 2]
    """
    new: dict[int, int] = {}
    return [new.setdefault(int(label), len(new)) for label in labels]
