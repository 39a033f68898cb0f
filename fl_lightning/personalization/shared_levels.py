"""Adapters that all clients of a department can take: the department's, its cluster's, and the root's."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fl_lightning.linalg.adapter_algebra import concatenate_adapters
from fl_lightning.state import LoraState


def mean_of_departments(adapters: Mapping[str, LoraState], members: Collection[str]) -> LoraState | None:
    """The mean of some departments' products, of the rank of all of them together; None for less than two.

    Example:
        >>> import torch
        >>> x = {"q.lora_A.weight": torch.ones(1, 2), "q.lora_B.weight": torch.ones(2, 1)}
        >>> mean = mean_of_departments({"hr": x, "it": x}, ["hr", "it"])
        >>> (mean["q.lora_B.weight"] @ mean["q.lora_A.weight"]).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    if len(members) < 2:
        return None
    return concatenate_adapters([adapters[name] for name in members], [1 / len(members)] * len(members))


def mean_of_cluster(
    adapters: Mapping[str, LoraState], assignments: Mapping[str, int], department: str
) -> LoraState | None:
    """`mean_of_departments` of a department's cluster.

    Args:
        adapters: of all departments.
        assignments: `Tree.department_clusters`; empty if departments are not clustered.
        department: whose cluster.

    Returns:
        None if it is alone in its cluster, or in none.
    """
    cluster = assignments.get(department)
    members = [name for name in adapters if assignments.get(name) == cluster]
    return None if cluster is None else mean_of_departments(adapters, members)


def levels_by_department(
    adapters: Mapping[str, LoraState], assignments: Mapping[str, int]
) -> dict[str, dict[str, LoraState]]:
    """{department: {level: adapter}}: its own, the mean of its cluster, and as the root's the mean of all departments.

    A cluster of one department or of all is no level beside the others; equal adapters are the same objects.

    Args:
        adapters: of all departments.
        assignments: `Tree.department_clusters`; empty if departments are not clustered.
    """
    if len({assignments.get(name) for name in adapters}) == 1:
        assignments = {}
    root = mean_of_departments(adapters, list(adapters))
    clusters: dict[int, LoraState | None] = {}
    levels: dict[str, dict[str, LoraState]] = {}
    for name, adapter in adapters.items():
        number = assignments.get(name, -1)
        cluster = clusters[number] if number in clusters else mean_of_cluster(adapters, assignments, name)
        clusters[number] = cluster
        available = {"department": adapter, "cluster": cluster, "root": root}
        levels[name] = {level: state for level, state in available.items() if state is not None}
    return levels
