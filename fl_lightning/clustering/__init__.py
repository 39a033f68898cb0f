"""Which departments, and which clients of a department, belong together."""

from fl_lightning.clustering.federated import (
    Grouping,
    cluster_aware_average_selected,
    cluster_states,
    department_level_clustering,
    group_departments,
    members,
)
from fl_lightning.clustering.kmeans import determine_optimal_clusters

__all__ = [
    "Grouping",
    "cluster_aware_average_selected",
    "cluster_states",
    "department_level_clustering",
    "determine_optimal_clusters",
    "group_departments",
    "members",
]
