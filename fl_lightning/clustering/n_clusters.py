"""How many clusters: rules that look at the departments alone.

=============  ================================================  ==========================================
rule           source                                            answer
=============  ================================================  ==========================================
fixed                                                            ``min_clusters``
elbow          Thorndike 1953                                    the sharpest bend of the inertia
silhouette     Rousseeuw 1987                                    the largest mean silhouette, 2 or more
eigengap       von Luxburg 2007 (arXiv 0711.0189)                the largest gap between eigenvalues
=============  ================================================  ==========================================

None of them can tell structure from noise; `fl_lightning.clustering.dynamic` can, because it looks at clients. Every
answer lies between the bounds and is at most the number of distinct departments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from fl_lightning.clustering.dissimilarity import Dissimilarity
from fl_lightning.clustering.methods import Labels, affinity
from fl_lightning.clustering.partition import Array
from fl_lightning.clustering.sums_of_squares import DepartmentClients


@dataclass(frozen=True, eq=False)
class SelectionInput:
    """Inputs of a rule.

    Attributes:
        dissimilarity: of the departments.
        fit: {k: labels and inertia}, as a function; see `fl_lightning.clustering.methods`.
        min_clusters: the smallest answer.
        max_clusters: the largest answer.
        clients: of the departments, for the rule ``dynamic``.
        seed: seed of the permutations of ``dynamic``.
    """

    dissimilarity: Dissimilarity
    fit: Callable[[int], Labels]
    min_clusters: int
    max_clusters: int
    clients: DepartmentClients | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.min_clusters <= self.max_clusters:
            bounds = f"min_clusters {self.min_clusters}, max_clusters {self.max_clusters}"
            raise ValueError(f"expected 1 ≤ min_clusters ≤ max_clusters, got {bounds}")

    def labels(self, k: int) -> list[int]:
        """Labels for k clusters, in the order of `Dissimilarity.names`."""
        return self.fit(k).labels

    def clamp(self, k: int) -> int:
        """The nearest number of clusters that may be the answer."""
        largest = min(self.max_clusters, self.dissimilarity.count_distinct(self.max_clusters))
        return min(max(k, self.min_clusters), largest)


@dataclass(frozen=True)
class SelectionResult:
    """A rule's answer.

    Attributes:
        n_clusters: the number of clusters.
        scores: {k: value that the rule compared}: inertia, mean silhouette, gap, or share of the variance explained.
        p_values: {k: p of "k clusters are enough"}, of the rule ``dynamic``.
    """

    n_clusters: int
    scores: dict[int, float] = field(default_factory=dict)
    p_values: dict[int, float] = field(default_factory=dict)


Rule: TypeAlias = Callable[..., SelectionResult]


def fixed(selection: SelectionInput) -> SelectionResult:
    """``min_clusters``, or the number of distinct departments if that is less."""
    return SelectionResult(selection.clamp(selection.min_clusters))


def elbow(selection: SelectionInput) -> SelectionResult:
    """The k at the `sharpest_bend` of the inertia, tried for k = 1 … ``max_clusters + 1``. It cannot answer 1.

    The inertia is that of the labels on `Dissimilarity.points`, whichever method made them.
    """
    largest = min(selection.max_clusters + 1, len(selection.dissimilarity.names))
    inertias = {k: selection.fit(k).inertia for k in range(1, largest + 1)}
    k = sharpest_bend(inertias, selection.min_clusters, selection.max_clusters)
    return SelectionResult(selection.clamp(k), inertias)


def sharpest_bend(inertias: Mapping[int, float], min_clusters: int, max_clusters: int) -> int:
    """The k whose second difference of inertia, ``I(k−1) − 2 I(k) + I(k+1)``, is largest; the smallest on a tie.

    Args:
        inertias: {k: inertia} for k = 1 … max_clusters + 1, or fewer if there are fewer points.
        min_clusters: the smallest answer.
        max_clusters: the largest answer.

    Returns:
        k in [min_clusters, max_clusters]; `min_clusters` (at most the largest k tried) if no second difference exists.

    Example:
        >>> sharpest_bend({1: 100.0, 2: 60.0, 3: 10.0, 4: 8.0, 5: 7.0}, 2, 4)
        3
    """
    best, largest_bend = min(min_clusters, max(inertias)), -np.inf
    for k in range(min_clusters, max_clusters + 1):
        if k - 1 in inertias and k in inertias and k + 1 in inertias:
            bend = inertias[k - 1] - 2 * inertias[k] + inertias[k + 1]
            if bend > largest_bend:
                best, largest_bend = k, bend
    return best


def silhouette(selection: SelectionInput) -> SelectionResult:
    """The k in [max(2, min), max] with the largest `mean_silhouette`, the smallest on a tie. It cannot answer 1."""
    low, high = selection.clamp(max(2, selection.min_clusters)), selection.clamp(selection.max_clusters)
    scores = {k: mean_silhouette(selection.dissimilarity, selection.labels(k)) for k in range(low, high + 1)}
    return SelectionResult(_argmax(scores), scores)


def mean_silhouette(dissimilarity: Dissimilarity, labels: Sequence[int]) -> float:
    """``mean of (b − a) / max(a, b)``: a the mean distance inside a department's cluster, b to the nearest other one.

    As Rousseeuw defines it, the silhouette of a department alone in its cluster is zero; by convention, so is that of a
    single cluster.

    Example:
        >>> from fl_lightning.clustering.dissimilarity import from_rows
        >>> x = np.array([[0.0], [1.0], [10.0]])
        >>> round(mean_silhouette(from_rows(["hr", "it", "ops"], x), [0, 0, 1]), 4)  # (9 / 10 + 8 / 9 + 0) / 3
        0.5963
    """
    if not 1 < len(set(labels)) < len(labels):
        return 0.0
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(dissimilarity.distance, labels, metric="precomputed"))


def eigengap(selection: SelectionInput) -> SelectionResult:
    """The k of the largest gap ``λ_(k+1) − λ_k`` of the normalized Laplacian of `methods.affinity`.

    It can answer 1, and does whenever departments have much in common, so ask for at least 2. It cannot answer n. A
    department unlike all others forms a cluster only because of its affinity with itself, which is therefore kept; see
    `laplacian_eigenvalues`.
    """
    low, high = selection.clamp(selection.min_clusters), selection.clamp(selection.max_clusters)
    values = laplacian_eigenvalues(affinity(selection.dissimilarity))
    gaps = {k: float(values[k] - values[k - 1]) for k in range(low, min(high, len(values) - 1) + 1)}
    return SelectionResult(_argmax(gaps) if gaps else low, gaps)


def laplacian_eigenvalues(affinities: Array) -> Array:
    """Eigenvalues of ``I − D^(−1/2) S D^(−1/2)``, ascending from 0; clusters with weak ties give values near 0.

    Args:
        affinities: S, shape (n, n), with its diagonal. (SciPy's Laplacian ignores the diagonal, and then has no
            eigenvalue near zero for a cluster of one.)

    Returns:
        Shape (n,).

    Example:
        >>> laplacian_eigenvalues(np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])).round(9) + 0.0
        array([0., 0., 1.])
    """
    root = np.sqrt(affinities.sum(axis=1))
    values: Array = np.linalg.eigvalsh(np.eye(len(root)) - affinities / root[:, None] / root[None, :])
    return values


def _argmax(scores: Mapping[int, float]) -> int:
    """The k with the largest score up to rounding, the smallest on a tie."""
    return max(scores, key=lambda k: (round(scores[k], 12), -k))
