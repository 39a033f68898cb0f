"""One round's step at every group of a tree of departments: average, cluster, mix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fl_lightning import flora
from fl_lightning.clustering.federated import cluster_states
from fl_lightning.clustering.partition import Clustering
from fl_lightning.clustering.rounds import ClusteringInputs
from fl_lightning.clustering.tree import ROOT, Tree
from fl_lightning.config import DeptClustersConfig
from fl_lightning.state import Factor, LoraState, num_bytes, select


@dataclass
class HierarchyStep:
    """Result of a round's step at all groups.

    Attributes:
        states: {department or group: its next state}.
        assignments: {department or group: its cluster among the members of its group}.
        memory: {group: JSON values that its clustering needs in the next round}.
        clusterings: {group: clustering of its members}; empty if clustering is off.
        mixed_bytes: bytes that departments and groups send up to be mixed: {"department": ..., "group": ...}; empty
            where no states are mixed.
    """

    states: dict[str, LoraState]
    assignments: dict[str, int] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    clusterings: dict[str, Clustering] = field(default_factory=dict)
    mixed_bytes: dict[str, int] = field(default_factory=dict)


def step_groups(
    config: DeptClustersConfig,
    tree: Tree,
    departments: Mapping[str, LoraState],
    weights: Mapping[str, float],
    *,
    groups: Mapping[str, LoraState],
    momentum: float = 1.0,
    previous: Mapping[str, int],
    memory: Mapping[str, Any],
    inputs: Callable[[Mapping[str, LoraState]], ClusteringInputs],
    seed: Callable[[str], int],
    cluster: Callable[..., tuple[Clustering, dict[str, Any]]],
    mix: Callable[..., LoraState],
) -> HierarchyStep:
    """Average, cluster and mix at every group, from the lowest groups up to the federation.

    At every group the members' states are averaged into the group's state, the members are clustered, and each one is
    mixed with its cluster's average. When mixing changes a group's state, the same change is added to every department
    and group below it. The group therefore stays the mean of its members (with momentum 1), and whatever two divisions
    exchange reaches all of their departments.

    Args:
        config: the ``dept_clusters`` block, for the members of every group alike.
        tree: the groups.
        departments: {department: θ_d'} of those with a new state; the others take no part in this round.
        weights: {department: its weight in averages}.
        groups: {group: its previous state}.
        momentum: step size of a group towards its members' mean.
        previous: {department or group: cluster id} of the round before.
        memory: {group: ...} as returned in the round before.
        inputs: from the states of a group's members to the inputs of their clustering.
        seed: from a group to the seed of its clustering.
        cluster: clusters the members of a group: `rounds.cluster_round`.
        mix: mixes a state with its cluster's mean: `mixing.mix_with_cluster_average`.

    Raises:
        ValueError: the states do not fit the representation.
    """
    step, weights = HierarchyStep(dict(departments)), dict(weights)
    for group, names in tree.members.items():
        members = {name: step.states[name] for name in names if name in step.states}
        if not members:
            continue
        if group != ROOT:
            items = [(state, weights[name]) for name, state in members.items()]
            step.states[group] = flora.flora_weighted_aggregate(items, groups.get(group), momentum)
            weights[group] = sum(weights[name] for name in members)
        if config.enabled:
            clusters, remembered = cluster(
                config, inputs(members), previous=previous, memory=memory.get(group, {}), seed=seed(group)
            )
            if remembered:
                step.memory[group] = remembered
            step.clusterings[group] = clusters
            step.assignments.update(clusters.assignments)
            if not config.mixes_predictions:
                _mix(step, config, tree, members, cluster_states(members, weights, clusters.assignments), mix)
    return step


def _mix(
    step: HierarchyStep,
    config: DeptClustersConfig,
    tree: Tree,
    members: Mapping[str, LoraState],
    cluster_means: Mapping[int, LoraState],
    mix: Callable[..., LoraState],
) -> None:
    """Pull the members of a group towards the averages of their clusters, each with everything below it."""
    factor: Factor = "a" if config.mix == "a" else "all"
    for name, state in members.items():
        kind = "group" if name in tree.members else "department"
        step.mixed_bytes[kind] = step.mixed_bytes.get(kind, 0) + num_bytes(select(state, factor))
        cluster_mean = cluster_means[step.assignments[name]]
        mixed = mix(state, cluster_mean, config.mixing_ratio, mix=factor)
        for below in tree.subtree(name):
            if below in step.states:
                step.states[below] = mixed if below == name else _shift(step.states[below], state, mixed)


def _shift(state: LoraState, before: LoraState, after: LoraState) -> LoraState:
    """`state` plus the change from `before` to `after`."""
    return {
        name: (tensor.double() + (after[name].double() - before[name].double())).float()
        for name, tensor in state.items()
    }
