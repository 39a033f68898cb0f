"""Which departments, and which clients of a department, belong together, and the average of each group."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
import torch

from fl_lightning.clustering.kmeans import (
    Array,
    cluster_rows,
    determine_optimal_clusters,
    kmeans,
    number_by_first_appearance,
    reduce_rows,
)
from fl_lightning.clustering.representations.vectors import Representation, cosine_similarity, represent, stack_rows
from fl_lightning.flora import WeightedMean
from fl_lightning.state import LoraState, check_same_layout, flatten

__all__ = [
    "Grouping",
    "cluster_aware_average_selected",
    "cluster_states",
    "department_level_clustering",
    "determine_optimal_clusters",
    "group_departments",
    "members",
]

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Grouping:
    """A clustering of departments and what it was decided on.

    Attributes:
        assignments: {department: cluster id}; ids from 0 by first appearance in sorted department order.
        inertias: {k: within-cluster sum of squared distances} for every k that was tried.
        departments: the order of rows and columns of `cosine`.
        cosine: cosine similarity of the departments under the representation, shape (n, n); None for more than 2,000
            departments (`kmeans.EXACT_ROWS`), which are clustered without their n × n inner products, and for
            representations that are no inner products.
        scores: {k: what the rule that chose k went by}, where it is not the inertias.
        p_values: {k: p of "k clusters are enough"}, under the rule dynamic.
        quality: silhouette, Davies–Bouldin and Calinski–Harabasz figures, those that are defined.
    """

    assignments: dict[str, int]
    inertias: dict[int, float]
    departments: list[str]
    cosine: Array | None
    scores: dict[int, float] = field(default_factory=dict)
    p_values: dict[int, float] = field(default_factory=dict)
    quality: dict[str, float] = field(default_factory=dict)

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return len(set(self.assignments.values()))

    @property
    def clusters(self) -> dict[int, list[str]]:
        """{cluster id: [departments]}."""
        return members(self.assignments)


def members(assignments: Mapping[Name, int]) -> dict[int, list[Name]]:
    """{cluster id: [names]} from {name: cluster id}, ids ascending."""
    return {c: [n for n in assignments if assignments[n] == c] for c in sorted(set(assignments.values()))}


def group_departments(
    states: Mapping[str, Mapping[str, torch.Tensor]],
    *,
    reference: Mapping[str, torch.Tensor] | None = None,
    representation: Representation = "delta",
    min_clusters: int = 2,
    max_clusters: int = 5,
    n_init: int = 10,
    seed: int,
) -> Grouping:
    """Cluster departments by their A-matrices: k-means, k by the elbow.

    Args:
        states: {department: state}.
        reference: the state everybody started from; wanted for the representation ``delta``.
        representation: see `represent`.
        min_clusters: the smallest number of clusters.
        max_clusters: the largest number of clusters.
        n_init: k-means restarts for each k.
        seed: of the k-means++ starts and of the sketch.

    Returns:
        The grouping with inertias and similarities; for more than 2,000 departments inertias are those of a sketch (see
        `kmeans.sketch`) and similarities are left out.
    """
    if not states:
        raise ValueError("states: got no department, wanted at least one")
    x = represent(states, representation, reference, dtype=np.float32)
    found = cluster_rows(x, min_clusters, max_clusters, seed=seed, n_init=n_init)
    names = sorted(states)
    assignments = dict(zip(names, number_by_first_appearance(found.labels), strict=True))
    gram = found.reduction.gram
    return Grouping(assignments, found.inertias, names, None if gram is None else cosine_similarity(gram))


def department_level_clustering(
    states: Mapping[str, Mapping[str, torch.Tensor]],
    method: Literal["elbow"] = "elbow",
    *,
    reference: Mapping[str, torch.Tensor] | None = None,
    representation: Representation | None = None,
    min_clusters: int = 2,
    max_clusters: int = 5,
    n_init: int = 10,
    seed: int,
) -> tuple[dict[int, list[str]], dict[str, int]]:
    """Clusters of departments, as ({cluster id: [departments]}, {department: cluster id}).

    Args:
        states: {department: state}; the A-matrices are compared.
        method: how the number of clusters is chosen: ``elbow``.
        reference: the shared start state, A₀.
        representation: ``delta`` (the default where a reference is given), ``raw`` (the default where none is) or
            ``subspace``.
        min_clusters: the smallest number of clusters.
        max_clusters: the largest number of clusters.
        n_init: k-means restarts for each k.
        seed: of the k-means++ starts.

    Raises:
        ValueError: an unknown method or representation, no department, or ``delta`` without reference.

    Example:
        >>> a = torch.eye(2)
        >>> states = {"hr": {"lora_A": a}, "it": {"lora_A": -a}, "ops": {"lora_A": -0.9 * a}}
        >>> department_level_clustering(states, seed=0)
        ({0: ['hr'], 1: ['it', 'ops']}, {'hr': 0, 'it': 1, 'ops': 1})
    """
    if method != "elbow":
        raise ValueError(f"method: got {method!r}, wanted 'elbow'")
    grouping = group_departments(
        states,
        reference=reference,
        representation=representation or ("raw" if reference is None else "delta"),
        min_clusters=min_clusters,
        max_clusters=max_clusters,
        n_init=n_init,
        seed=seed,
    )
    return grouping.clusters, grouping.assignments


def cluster_states(
    states: Mapping[str, Mapping[str, torch.Tensor]], weights: Mapping[str, float], assignments: Mapping[str, int]
) -> dict[int, LoraState]:
    """The weighted mean state of each cluster, fp32: {cluster id: state}."""
    clusters = members({name: assignments[name] for name in sorted(states)})
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

    ``start_c = (1 − global_mix) · cluster mean + global_mix · global state``, k-means on all tensors given.

    Args:
        states: {client: selected tensors of its state}, the shared factor.
        weights: {client: num_examples}.
        num_clusters: clamped to the number of distinct clients.
        global_mix: share of the department's state, in [0, 1].
        global_state: the department's state θ_d'; None takes the weighted mean of the states.
        assignments: {client: cluster id}, where they are known; None finds them.
        seed: of the k-means++ starts, and of the sketch that stands in for more than 2,000 clients.
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
        raise ValueError("states: got no client, wanted at least one")
    if num_clusters < 1 or not 0 <= global_mix <= 1:
        raise ValueError(f"got num_clusters {num_clusters}, global_mix {global_mix}; wanted ≥ 1 and in [0, 1]")
    check_same_layout([*states.values(), *([] if global_state is None else [global_state])])
    names = sorted(states)
    if assignments is None:
        x = stack_rows((flatten(states[n]).numpy() for n in names), len(names))
        reduced = reduce_rows(x, limit=num_clusters, seed=seed)
        labels, _ = kmeans(reduced.points, reduced.distinct, seed=seed, n_init=n_init)
        assignments = dict(zip(names, number_by_first_appearance(labels), strict=True))
    means = cluster_states(states, weights, assignments)
    if global_state is None:
        global_state = _mean(states, weights, names)
    starts = {
        c: {n: (t.double() + global_mix * (global_state[n].double() - t.double())).float() for n, t in mean.items()}
        for c, mean in means.items()
    }
    return {name: starts[assignments[name]] for name in names}, dict(assignments)
