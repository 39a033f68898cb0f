"""Quality of a partition, by scikit-learn.

Rousseeuw 1987 (silhouette), Davies & Bouldin 1979, and Caliński & Harabasz 1974. None of them proves that there are
clusters: they compare partitions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fl_lightning.clustering.dissimilarity import Dissimilarity
from fl_lightning.clustering.n_clusters import mean_silhouette
from fl_lightning.clustering.sums_of_squares import within_cluster_ss


def assess(dissimilarity: Dissimilarity, assignments: Mapping[str, int]) -> dict[str, float]:
    """Quality indices of a partition.

    Args:
        dissimilarity: of n departments.
        assignments: {department: cluster id}.

    Returns:
        ``silhouette`` of the distances, in [−1, 1], higher is better; ``davies_bouldin`` of the points, 0 or more,
        lower is better; ``calinski_harabasz`` of the points, 0 or more, higher is better. Empty unless there are 2 to
        n − 1 clusters; without ``calinski_harabasz`` if the clusters have no spread.

    Raises:
        ValueError: `assignments` are of other departments.

    Example:
        >>> from fl_lightning.clustering.dissimilarity import from_rows
        >>> x = np.array([[0.0], [1.0], [10.0], [11.0]])
        >>> assess(from_rows(list("abcd"), x), dict(zip("abcd", [0, 0, 1, 1])))["davies_bouldin"]  # (0.5 + 0.5) / 10
        0.1
    """
    from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score

    if odd := sorted(set(dissimilarity.names) ^ assignments.keys()):
        raise ValueError(f"assignments: expected the departments that are compared, {odd[0]} is in one of both only")
    labels = [assignments[name] for name in dissimilarity.names]
    if not 1 < len(set(labels)) < len(labels):
        return {}
    points = dissimilarity.points
    indices = {
        "silhouette": mean_silhouette(dissimilarity, labels),
        "davies_bouldin": float(davies_bouldin_score(points, labels)),
    }
    if within_cluster_ss(points, np.ones(len(labels)), labels) > 1e-13 * dissimilarity.scale:
        indices["calinski_harabasz"] = float(calinski_harabasz_score(points, labels))
    return indices
