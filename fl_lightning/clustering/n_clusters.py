"""How many clusters: rules that look at the departments alone.

=============  ================================================  ==========================================
rule           source                                            answers
=============  ================================================  ==========================================
fixed                                                            ``min_clusters``
elbow          Thorndike 1953; see `fl_lightning.clustering.kmeans.elbow`   the sharpest bend of the inertia
silhouette     Rousseeuw 1987                                    the largest mean silhouette, 2 or more
eigengap       von Luxburg 2007 (arXiv 0711.0189)                the largest gap between eigenvalues
=============  ================================================  ==========================================

None of them can tell a structure from noise: `fl_lightning.clustering.dynamic` can, from clients. Every answer lies
between the bounds and is at most the number of distinct departments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from fl_lightning.clustering import kmeans as k_means
from fl_lightning.clustering.dissimilarity import Relation
from fl_lightning.clustering.kmeans import Array
from fl_lightning.clustering.methods import affinity
from fl_lightning.clustering.sums_of_squares import Clients, within


@dataclass(frozen=True, eq=False)
class Problem:
    """What a rule is asked.

    Attributes:
        relation: of the departments.
        label: labels for a number of clusters, in the order of `Relation.names`; see `fl_lightning.clustering.methods`.
        min_clusters: the smallest answer.
        max_clusters: the largest answer.
        clients: of the departments, for the rule ``dynamic``.
        seed: of what a rule draws.
    """

    relation: Relation
    label: Callable[[int], list[int]]
    min_clusters: int
    max_clusters: int
    clients: Clients | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.min_clusters <= self.max_clusters:
            got = f"min_clusters {self.min_clusters}, max_clusters {self.max_clusters}"
            raise ValueError(f"got {got}; wanted 1 ≤ min ≤ max")

    def clamp(self, k: int) -> int:
        """The nearest number of clusters that may be answered."""
        return min(max(k, self.min_clusters), self.max_clusters, self.relation.distinct)


@dataclass(frozen=True)
class Choice:
    """A rule's answer.

    Attributes:
        n_clusters: the number of clusters.
        scores: {k: what the rule looked at}: inertia, mean silhouette, gap, or share of the squares explained.
        p_values: {k: p of "k clusters are enough"}, of the rule ``dynamic``.
    """

    n_clusters: int
    scores: dict[int, float] = field(default_factory=dict)
    p_values: dict[int, float] = field(default_factory=dict)


Rule: TypeAlias = Callable[..., Choice]


def fixed(problem: Problem) -> Choice:
    """``min_clusters``, or the number of distinct departments if that is less."""
    return Choice(problem.clamp(problem.min_clusters))


def elbow(problem: Problem) -> Choice:
    """The k of the largest second difference of inertias ``I(k−1) − 2 I(k) + I(k+1)``, see `kmeans.elbow`.

    The inertia is that of the labels on `Relation.points`, whichever method made them. It cannot say 1.
    """
    relation, ones = problem.relation, np.ones(len(problem.relation.names))
    tried = range(1, min(problem.max_clusters + 1, len(relation.names)) + 1)
    scores = {
        k: within(relation.points, ones, problem.label(k)) if k < relation.distinct or k == 1 else 0.0 for k in tried
    }
    return Choice(problem.clamp(k_means.elbow(scores, problem.min_clusters, problem.max_clusters)), scores)


def silhouette(problem: Problem) -> Choice:
    """The k in [max(2, min), max] of the largest `mean_silhouette`, the smallest on a tie. It cannot say 1."""
    low, high = problem.clamp(max(2, problem.min_clusters)), problem.clamp(problem.max_clusters)
    scores = {k: mean_silhouette(problem.relation, problem.label(k)) for k in range(low, high + 1)}
    return Choice(max(scores, key=lambda k: (round(scores[k], 12), -k)), scores)


def mean_silhouette(relation: Relation, labels: Sequence[int]) -> float:
    """``mean of (b − a) / max(a, b)``: a the mean distance inside the own cluster, b to the nearest other.

    Zero for a department that is alone in its cluster, as Rousseeuw has it, and hence where all are alone; zero for one
    cluster, by convention.

    Example:
        >>> from fl_lightning.clustering.dissimilarity import from_gram
        >>> x = np.array([[0.0], [1.0], [10.0]])
        >>> round(mean_silhouette(from_gram(["hr", "it", "ops"], x @ x.T), [0, 0, 1]), 4)  # (9 / 10 + 8 / 9 + 0) / 3
        0.5963
    """
    if not 1 < len(set(labels)) < len(labels):
        return 0.0
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(relation.distance, labels, metric="precomputed"))


def eigengap(problem: Problem) -> Choice:
    """The k of the largest gap ``λ_(k+1) − λ_k`` of the normalised Laplacian of `methods.affinity`.

    It can say 1, and does wherever departments have much in common, whatever clusters there are: better ask for 2 or
    more. It cannot say n. A department that is like no other counts as a cluster only because of its affinity with
    itself, which is why that is kept; see `laplacian_eigenvalues`.
    """
    low, high = problem.clamp(problem.min_clusters), problem.clamp(problem.max_clusters)
    values = laplacian_eigenvalues(affinity(problem.relation))
    scores = {k: float(values[k] - values[k - 1]) for k in range(low, min(high, len(values) - 1) + 1)}
    if not scores:
        return Choice(low)
    return Choice(max(scores, key=lambda k: (round(scores[k], 12), -k)), scores)


def laplacian_eigenvalues(affinities: Array) -> Array:
    """Eigenvalues of ``I − D^(−1/2) S D^(−1/2)``, ascending from 0: as many near zero as there are loose clusters.

    Args:
        affinities: S, shape (n, n), with its diagonal. (SciPy's Laplacian leaves the diagonal out, and has no
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
