"""How good a partition is, in numbers of scikit-learn.

Rousseeuw 1987 (silhouette), Davies & Bouldin 1979, Caliński & Harabasz 1974, and Hubert & Arabie 1985 (adjusted Rand
index) where the true groups are known. None of them proves that there are clusters: they compare partitions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fl_lightning.clustering.dissimilarity import Relation
from fl_lightning.clustering.n_clusters import mean_silhouette
from fl_lightning.clustering.sums_of_squares import within


@dataclass(frozen=True)
class Quality:
    """Numbers of a partition; None where one is not defined.

    Attributes:
        silhouette: in [−1, 1], more is better; of 2 to n − 1 clusters.
        davies_bouldin: 0 or more, less is better; of 2 to n − 1 clusters.
        calinski_harabasz: 0 or more, more is better; of 2 to n − 1 clusters with any spread inside.
        ari: adjusted Rand index against the truth, 1 for the same partition, about 0 for chance; where it is known.
    """

    silhouette: float | None
    davies_bouldin: float | None
    calinski_harabasz: float | None
    ari: float | None


def assess(relation: Relation, assignments: Mapping[str, int], truth: Mapping[str, object] | None = None) -> Quality:
    """Quality of a partition of the departments of a relation.

    Args:
        relation: n departments; silhouettes are of its distances, the rest of its points.
        assignments: {department: cluster}.
        truth: {department: true group}, of any kind; departments without one are left out of the ARI.

    Raises:
        ValueError: `assignments` are not those of the departments of `relation`.

    Example:
        >>> from fl_lightning.clustering.dissimilarity import from_gram
        >>> x = np.array([[0.0], [1.0], [10.0], [11.0]])
        >>> found = assess(from_gram(list("abcd"), x @ x.T), dict(zip("abcd", [0, 0, 1, 1])), dict.fromkeys("ab", "x"))
        >>> found.davies_bouldin, found.ari  # (0.5 + 0.5) / 10
        (0.1, 1.0)
    """
    from sklearn.metrics import adjusted_rand_score, calinski_harabasz_score, davies_bouldin_score

    if odd := sorted(set(relation.names) ^ assignments.keys()):
        raise ValueError(f"{odd[0]} is not in both relation and assignments; wanted the same departments")
    labels = [assignments[name] for name in relation.names]
    known = [name for name in relation.names if truth is not None and name in truth]
    ari = None
    if truth is not None and known:
        groups = {group: index for index, group in enumerate(dict.fromkeys(truth[name] for name in known))}
        ari = float(adjusted_rand_score([groups[truth[name]] for name in known], [assignments[name] for name in known]))
    if not 1 < len(set(labels)) < len(labels):
        return Quality(None, None, None, ari)
    inside = within(relation.points, np.ones(len(labels)), labels)
    return Quality(
        mean_silhouette(relation, labels),
        float(davies_bouldin_score(relation.points, labels)),
        float(calinski_harabasz_score(relation.points, labels)) if inside > 1e-13 * relation.scale else None,
        ari,
    )
