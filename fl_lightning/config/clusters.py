"""Clusters of clients, clusters of departments, and groups of departments: three blocks under ``federation``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from fl_lightning.config.checks import at_least, check, check_null, one_of, unit


@dataclass
class ClientClustersConfig:
    """Clusters of clients inside a department."""

    num_clusters: int = 2
    """1 turns them off: every client starts from its department's state."""
    global_mix: float = 0.2
    """Share of the department's state in a client's next start, in [0, 1]."""
    method: Literal["kmeans", "agglomerative", "spectral"] = "kmeans"
    """As for departments."""
    representation: Literal["raw", "delta", "subspace", "subspace_residual", "product"] = "raw"
    """raw compares all that is sent; the others as for departments, delta and subspace_residual from the department's
    state."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "federation.client_clusters.")
        at_least("federation.client_clusters.num_clusters", self.num_clusters, 1)
        unit("federation.client_clusters.global_mix", self.global_mix)
        block = "federation.client_clusters"
        one_of(f"{block}.method", self.method, ("kmeans", "agglomerative", "spectral"))
        names = ("raw", "delta", "subspace", "subspace_residual", "product")
        one_of(f"{block}.representation", self.representation, names)


@dataclass
class DeptClustersConfig:
    """Clusters of departments by their LoRA A-matrices, and mixing inside them."""

    enabled: bool = True
    """false leaves every department to itself."""
    method: Literal["kmeans", "agglomerative", "spectral"] = "kmeans"
    """k-means++ and Lloyd, average linkage, or k-means on eigenvectors of the similarities."""
    select: Literal["elbow", "silhouette", "eigengap", "fixed", "dynamic"] = "elbow"
    """How the number of clusters is chosen; fixed takes min_clusters, dynamic as many, from 1, as the clients can tell
    apart."""
    min_clusters: int = 2
    """The smallest number of clusters."""
    max_clusters: int = 5
    """The largest number of clusters."""
    mixing_ratio: float = 0.3
    """Share of the cluster's average in a department's next state, in [0, 1]."""
    mix: Literal["a", "all"] = "a"
    """a mixes the A-matrices only, all mixes B too."""
    representation: Literal["delta", "raw", "subspace", "subspace_residual", "product", "cross_loss"] = "delta"
    """delta compares the directions of A - A0, raw compares A, subspace the row spaces of A, subspace_residual those
    beyond A0's, product the directions of BA, cross_loss how each adapter does on the others' held-out records."""
    smoothing: float = 0.0
    """Share of earlier rounds in what departments are compared by, in [0, 1)."""
    patience: int = 1
    """Clusters change only if others are better in so many rounds running; 1 changes at once."""
    margin: float = 0.02
    """How much better, where patience is above 1."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "federation.dept_clusters.")
        block = "federation.dept_clusters"
        one_of(f"{block}.method", self.method, ("kmeans", "agglomerative", "spectral"))
        one_of(f"{block}.select", self.select, ("elbow", "silhouette", "eigengap", "fixed", "dynamic"))
        at_least(f"{block}.min_clusters", self.min_clusters, 1)
        wanted = f"at least min_clusters ({self.min_clusters})"
        check(self.max_clusters >= self.min_clusters, f"{block}.max_clusters", self.max_clusters, wanted)
        unit(f"{block}.mixing_ratio", self.mixing_ratio)
        one_of(f"{block}.mix", self.mix, ("a", "all"))
        names = ("delta", "raw", "subspace", "subspace_residual", "product", "cross_loss")
        one_of(f"{block}.representation", self.representation, names)
        check(0 <= self.smoothing < 1, f"{block}.smoothing", self.smoothing, "a number in [0, 1)")
        at_least(f"{block}.patience", self.patience, 1)
        ok = math.isfinite(self.margin) and self.margin >= 0
        check(ok, f"{block}.margin", self.margin, "a finite number of 0 or more")


@dataclass
class HierarchyConfig:
    """A tree over the clients: the step of departments at every group, see `fl_lightning.clustering.group_step`."""

    groups: dict[str, list[str]] = field(default_factory=dict)
    """{group: members}; members are departments, other groups, or clients (hr/client_0), which become a team."""
    momentum: float = 1.0
    """The step of a group's state towards its members' mean, in (0, 1]; 1 takes the mean."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "federation.hierarchy.")
        for name, group in self.groups.items():
            check(bool(group), f"federation.hierarchy.groups.{name}", group, "a list of at least one member")
        unit("federation.hierarchy.momentum", self.momentum, zero=False)
