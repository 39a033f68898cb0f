"""Clusters of departments, clusters of clients, and the average of each cluster: what a round calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from fl_lightning.clustering.dissimilarity import Dissimilarity, from_rows, smooth
from fl_lightning.clustering.partition import Array, Clustering, Matrix, clusters_from_labels
from fl_lightning.clustering.registry import cluster, pairwise_dissimilarity
from fl_lightning.clustering.representations.factors import stack_rows
from fl_lightning.clustering.sums_of_squares import DepartmentClients
from fl_lightning.flora import WeightedMean
from fl_lightning.state import LoraState, check_same_layout, flatten


class DepartmentClusters(tuple[dict[int, list[str]], dict[str, int]]):
    """The pair ``({cluster id: [departments]}, {department: cluster id})``, with the numbers behind it.

    Attributes:
        clustering: inertias, cosine similarities, scores and p-values.
        dissimilarity: of the departments, as it was clustered.
    """

    clustering: Clustering
    dissimilarity: Dissimilarity

    def __new__(cls, clustering: Clustering, dissimilarity: Dissimilarity) -> DepartmentClusters:
        """Make the pair from a clustering."""
        pair = super().__new__(cls, (clustering.clusters, clustering.assignments))
        pair.clustering, pair.dissimilarity = clustering, dissimilarity
        return pair


def department_level_clustering(
    states: Mapping[str, Mapping[str, torch.Tensor]],
    method: str = "elbow",
    *,
    reference: Mapping[str, torch.Tensor] | None = None,
    representation: str | None = None,
    min_clusters: int = 2,
    max_clusters: int = 5,
    n_init: int = 10,
    seed: int,
    algorithm: str = "kmeans",
    losses: Array | None = None,
    clients: DepartmentClients | None = None,
    earlier: Dissimilarity | None = None,
    smoothing: float = 0.0,
) -> DepartmentClusters:
    """Clusters of departments, by default by k-means on their A-matrices with k chosen by the elbow.

    Args:
        states: {department: state}.
        method: how the number of clusters is chosen: a rule of `SELECT`.
        reference: the shared start state, A₀.
        representation: one of `REPRESENTATIONS`; the default is ``delta`` if a reference is given, else ``raw``.
        min_clusters: the smallest number of clusters.
        max_clusters: the largest number of clusters.
        n_init: k-means restarts for each k.
        seed: seed of the k-means++ starts, and of the random projection of more than 2,000 departments.
        algorithm: how departments are assigned to k clusters: one of `METHODS`.
        losses: loss of department i's adapter on j's held-out records, for the representation ``cross_loss``.
        clients: of the departments, for the rule ``dynamic``.
        earlier: dissimilarity of earlier rounds, to be averaged with this round's.
        smoothing: weight of `earlier` in that average, in [0, 1).

    Returns:
        ``({cluster id: [departments]}, {department: cluster id})``, a tuple that also has the attributes of
        `DepartmentClusters`. Ids start at 0, in order of first appearance over the sorted departments.

    Raises:
        ValueError: unknown method, representation or algorithm, no department, or ``delta`` without reference.

    Example:
        >>> a = torch.eye(2)
        >>> states = {"hr": {"lora_A": a}, "it": {"lora_A": -a}, "ops": {"lora_A": -0.9 * a}}
        >>> clusters, assignments = department_level_clustering(states, seed=0)
        >>> clusters, assignments
        ({0: ['hr'], 1: ['it', 'ops']}, {'hr': 0, 'it': 1, 'ops': 1})
    """
    if representation is None:
        representation = "raw" if reference is None else "delta"
    current = pairwise_dissimilarity(states, representation, reference=reference, losses=losses, seed=seed)
    dissimilarity = smooth(earlier, current, smoothing)
    clustering = cluster(
        dissimilarity,
        method=algorithm,
        select=method,
        min_clusters=min_clusters,
        max_clusters=max_clusters,
        clients=clients,
        seed=seed,
        n_init=n_init,
    )
    return DepartmentClusters(clustering, dissimilarity)


def determine_optimal_clusters(
    x: Matrix, min_clusters: int = 2, max_clusters: int = 5, *, seed: int, n_init: int = 10
) -> tuple[int, dict[int, float]]:
    """Number of clusters of the rows of x by the elbow of the k-means inertia.

    Args:
        x: shape (n, d), fp32 or fp64. More than 2,000 rows are clustered after a random projection, and the inertias
            are those of the projected rows.
        min_clusters: the smallest answer; 1 or more.
        max_clusters: the largest answer.
        seed: seed of the k-means++ starts and of the random projection.
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
    x = np.asarray(x)
    x = x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"x: expected a finite (n, d) matrix with n at least 1, got shape {x.shape}")
    names = [f"{i:0{len(str(len(x)))}}" for i in range(len(x))]
    rows = from_rows(names, x, seed=seed)
    clustering = cluster(rows, min_clusters=min_clusters, max_clusters=max_clusters, seed=seed, n_init=n_init)
    return clustering.n_clusters, clustering.inertias


def cluster_states(
    states: Mapping[str, Mapping[str, torch.Tensor]], weights: Mapping[str, float], assignments: Mapping[str, int]
) -> dict[int, LoraState]:
    """The weighted mean state of each cluster, fp32: {cluster id: state}."""
    clusters = clusters_from_labels({name: assignments[name] for name in sorted(states)})
    return {c: {n: t.float() for n, t in _mean(states, weights, names).items()} for c, names in clusters.items()}


def _mean(
    states: Mapping[str, Mapping[str, torch.Tensor]], weights: Mapping[str, float], names: Iterable[str]
) -> LoraState:
    """Weighted mean of the named states, fp64."""
    mean = WeightedMean()
    mean.add_all([(states[name], weights[name]) for name in names])
    return mean.value()


def cluster_aware_average_selected(
    states: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    num_clusters: int = 2,
    global_mix: float = 0.2,
    *,
    global_state: Mapping[str, torch.Tensor] | None = None,
    assignments: Mapping[str, int] | None = None,
    seed: int,
    n_init: int = 10,
) -> tuple[dict[str, LoraState], dict[str, int]]:
    """Start states of clients from their cluster inside a department.

    ``start_c = (1 − global_mix) · cluster mean + global_mix · global state``, with k-means on all given tensors.

    Args:
        states: {client: selected tensors of its state}, the shared factor.
        weights: {client: num_examples}.
        num_clusters: reduced to the number of distinct clients if necessary.
        global_mix: share of the department's state, in [0, 1].
        global_state: the department's state θ_d'; None takes the weighted mean of the states.
        assignments: {client: cluster id}, if they are known; None computes them.
        seed: seed of the k-means++ starts, and of the random projection of more than 2,000 clients.
        n_init: k-means restarts.

    Returns:
        ({client: start state}, {client: cluster id}); clients of one cluster share one start state. Ids are numbered by
        first appearance in sorted client order.

    Raises:
        ValueError: no states, a number out of range, or states that do not match.

    Example:
        >>> states = {c: {"lora_A": torch.tensor([v])} for c, v in {"c0": 0.0, "c1": 1.0, "c2": 10.0}.items()}
        >>> starts, ids = cluster_aware_average_selected(states, dict.fromkeys(states, 1), global_mix=0.0, seed=0)
        >>> ids, starts["c0"]["lora_A"].item()
        ({'c0': 0, 'c1': 0, 'c2': 1}, 0.5)
    """
    if not states:
        raise ValueError("states: expected at least one client, got none")
    if num_clusters < 1 or not 0 <= global_mix <= 1:
        bounds = "num_clusters ≥ 1 and global_mix in [0, 1]"
        raise ValueError(f"expected {bounds}, got num_clusters {num_clusters}, global_mix {global_mix}")
    check_same_layout([*states.values(), *([] if global_state is None else [global_state])])
    names = sorted(states)
    if assignments is None:
        rows = from_rows(names, stack_rows((flatten(states[n]).numpy() for n in names), len(names)), seed=seed)
        assignments = cluster(
            rows, select="fixed", min_clusters=num_clusters, max_clusters=num_clusters, seed=seed, n_init=n_init
        ).assignments
    means = cluster_states(states, weights, assignments)
    if global_state is None:
        global_state = _mean(states, weights, names)
    starts = {
        c: {n: (t.double() + global_mix * (global_state[n].double() - t.double())).float() for n, t in mean.items()}
        for c, mean in means.items()
    }
    return {name: starts[assignments[name]] for name in names}, dict(assignments)
