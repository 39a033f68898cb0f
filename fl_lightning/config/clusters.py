"""Clusters of clients, clusters of departments, and groups of departments: three blocks under ``federation``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fl_lightning.config.checks import (
    Block,
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    PositiveFraction,
    PositiveInt,
    check,
)
from fl_lightning.storage.run_adapters import BASE


@dataclass
class ClientClustersConfig(Block, key="federation.client_clusters"):
    """Clusters of clients inside a department."""

    num_clusters: PositiveInt = 2
    """Number of clusters; 1 turns them off, and every client starts from its department's state."""
    global_mix: Fraction = 0.2
    """Share of the department's state in a client's next start, in [0, 1]."""
    method: Literal["kmeans", "agglomerative", "spectral"] = "kmeans"
    """Clustering method, as in dept_clusters."""
    representation: Literal["raw", "delta", "subspace", "subspace_residual", "product"] = "raw"
    """raw compares all factors that clients send; the others are as in dept_clusters, with the department's state in
    place of A0."""


@dataclass
class DeptClustersConfig(Block, key="federation.dept_clusters"):
    """Clusters of departments by their LoRA A-matrices, and mixing inside them."""

    enabled: bool = True
    """false turns clustering and mixing of departments off."""
    method: Literal["kmeans", "agglomerative", "spectral"] = "kmeans"
    """k-means++ with Lloyd's algorithm, average linkage, or k-means on eigenvectors of the similarities."""
    select: Literal["elbow", "silhouette", "eigengap", "fixed", "dynamic"] = "elbow"
    """How the number of clusters is chosen; fixed takes min_clusters, dynamic the number (from 1) that a permutation
    test on the clients supports."""
    min_clusters: PositiveInt = 2
    """Smallest number of clusters."""
    max_clusters: PositiveInt = 5
    """Largest number of clusters."""
    mixing_ratio: Fraction = 0.3
    """Share of the cluster's average in a department's next state, in [0, 1]."""
    mix: Literal["a", "all", "predictions"] = "a"
    """a mixes the A-matrices only, all mixes B too; predictions leaves the states as they are and mixes the predictions
    of department, cluster and all departments, with weights by the selection records; mixing_ratio has no effect then.
    """
    representation: Literal["delta", "raw", "subspace", "subspace_residual", "product", "cross_loss"] = "delta"
    """delta compares the directions of A - A0, raw compares A, subspace the row spaces of A, subspace_residual their
    parts outside A0's row space, product the directions of BA, cross_loss each adapter's loss on the other departments'
    held-out records."""
    smoothing: FractionBelowOne = 0.0
    """Weight of earlier rounds in the representations that are compared, in [0, 1)."""
    patience: PositiveInt = 1
    """Switch to new clusters only after they were better in this many consecutive rounds; 1 switches at once."""
    margin: NonNegativeFloat = 0.02
    """With patience above 1: how much better new clusters must be."""

    def __post_init__(self) -> None:
        """Check the ranges, and that the largest number of clusters is not below the smallest."""
        super().__post_init__()
        expected = f"at least min_clusters ({self.min_clusters})"
        check(self.max_clusters >= self.min_clusters, f"{self.block_key}.max_clusters", expected, self.max_clusters)

    @property
    def mixes_predictions(self) -> bool:
        """Whether departments mix the predictions of their levels instead of their states."""
        return self.enabled and self.mix == "predictions"


@dataclass
class HierarchyConfig(Block, key="federation.hierarchy"):
    """A tree over departments and clients; each group aggregates, clusters and mixes its members.

    See `fl_lightning.clustering.group_step`.
    """

    groups: dict[str, list[str]] = field(default_factory=dict)
    """{group: members}; members are departments, other groups, or clients (hr/client_0), which then form a team."""
    momentum: PositiveFraction = 1.0
    """Step of a group's state towards its members' mean, in (0, 1]; 1 takes the mean."""

    def __post_init__(self) -> None:
        """Check the ranges, and that no group is empty."""
        super().__post_init__()
        for name, members in self.groups.items():
            check(name != BASE, f"{self.block_key}.groups", "names other than that of the base model", name)
            check(bool(members), f"{self.block_key}.groups.{name}", "a list of at least one member", members)
