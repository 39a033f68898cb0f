"""The tree over the departments: which groups there are, and one step of aggregating, clustering and mixing at each.

Clients make departments, departments make groups, groups make larger ones, up to the federation as a whole (`ROOT`). At
every group the step is the one between departments: the members' states are averaged into the group's, the members are
clustered, and each is mixed with its cluster's average. A group that is mixed takes along all that is below it: what
it moved by is added to each of its departments. For means, as here, a group so stays its members' mean, and what two
divisions learn of each other arrives in every department of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fl_lightning.clustering import Grouping, cluster_states
from fl_lightning.clustering.rounds import Evidence, group_round
from fl_lightning.config import DeptClustersConfig
from fl_lightning.errors import InputError, nearest
from fl_lightning.flora import flora_weighted_aggregate
from fl_lightning.mixing import mix_with_cluster_average
from fl_lightning.state import LoraState, num_bytes, select
from fl_lightning.storage.files import check_name

ROOT = ""
"""The federation as a whole; it has members and no state."""

KEY = "federation.hierarchy.groups"


def teams(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """{client_id: its team} of the groups whose members are clients; a team is a department of its own.

    Raises:
        InputError: a group of clients and others, or a client in two teams.

    Example:
        >>> teams({"shell": ["it/client_0", "it/client_1"], "technical": ["shell", "data"]})
        {'it/client_0': 'shell', 'it/client_1': 'shell'}
    """
    found: dict[str, str] = {}
    for group, names in groups.items():
        clients = [name for name in names if "/" in name]
        if clients and len(clients) < len(names):
            other = next(name for name in names if "/" not in name)
            raise InputError(f"{KEY}.{group}: got {clients[0]!r} and {other!r}, wanted clients only, or none")
        for client_id in clients:
            if client_id in found:
                raise InputError(f"{KEY}: {client_id!r} is in {found[client_id]!r} and in {group!r}, wanted one team")
            found[client_id] = check_name(group, KEY)
    return found


@dataclass(frozen=True)
class Tree:
    """Groups of departments.

    Attributes:
        members: {group: its members, sorted}, members before their groups; `ROOT` comes last.
    """

    members: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, groups: Mapping[str, Sequence[str]], departments: Iterable[str]) -> Tree:
        """Check the groups against the departments there are and put them in order.

        Args:
            groups: {group: departments and other groups, or a team's clients}; what is in no group belongs to the
                federation directly.
            departments: all of them.

        Raises:
            InputError: a name that is nobody's, is in two groups, or stands for a group and a department; a circle.

        Example:
            >>> Tree.of({"company": ["trade", "hr"], "trade": ["finance", "sales"]}, ["finance", "hr", "sales"]).members
            {'trade': ('finance', 'sales'), 'company': ('hr', 'trade'), '': ('company',)}
        """
        departments, of_clients = set(departments), set(teams(groups).values())
        if absent := sorted(of_clients - departments):
            raise InputError(
                f"{KEY}: {absent[0]!r} has no clients here; wanted data that `with_teams` has dealt to teams"
            )
        groups = {group: names for group, names in groups.items() if group not in of_clients}
        known = {*departments, *groups}
        owner: dict[str, str] = {}
        for group, names in groups.items():
            check_name(group, KEY)
            if group in departments:
                raise InputError(f"{KEY}: {group!r} is a department too; wanted another name for the group")
            for name in names:
                if name not in known:
                    hint = nearest(name, known)
                    raise InputError(f"{KEY}.{group}: got {name!r}, wanted a department or another group{hint}")
                if name in owner:
                    raise InputError(f"{KEY}: {name!r} is in {owner[name]!r} and in {group!r}, wanted one group")
                owner[name] = group
        ordered: dict[str, tuple[str, ...]] = {}
        while waiting := [group for group in sorted(groups) if group not in ordered]:
            ready = [group for group in waiting if not set(groups[group]) & set(waiting)]
            if not ready:
                raise InputError(f"{KEY}: {waiting[0]!r} would be a member of itself, wanted a tree")
            ordered.update({group: tuple(sorted(groups[group])) for group in ready})
        ordered[ROOT] = tuple(sorted(known - owner.keys()))
        return cls(ordered)

    @property
    def groups(self) -> list[str]:
        """The groups, members before their groups, without `ROOT`."""
        return [group for group in self.members if group != ROOT]

    def below(self, name: str) -> Iterator[str]:
        """All groups and departments under a name, itself first."""
        yield name
        for member in self.members.get(name, ()):
            yield from self.below(member)

    def departments(self, name: str) -> list[str]:
        """The departments under a name, sorted; of a department itself."""
        return sorted(below for below in self.below(name) if below not in self.members)


NO_GROUPS = Tree({})
"""Of a federation without groups, where only their names are asked for."""


@dataclass
class Level:
    """What a round's step at all groups comes to.

    Attributes:
        states: {department or group: its next state}.
        assignments: {department or group: its cluster among the members of its group}.
        memory: {group: what its clusters go by from round to round}, JSON values.
        found: {group: the clusters of its members}; empty where nothing is clustered.
        mixed_bytes: bytes that departments, or groups, send up to be mixed: {"department": ..., "group": ...}.
    """

    states: dict[str, LoraState]
    assignments: dict[str, int] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    found: dict[str, Grouping] = field(default_factory=dict)
    mixed_bytes: dict[str, int] = field(default_factory=dict)


def step_all(
    clusters: DeptClustersConfig,
    tree: Tree,
    departments: Mapping[str, LoraState],
    weights: Mapping[str, float],
    *,
    groups: Mapping[str, LoraState],
    momentum: float = 1.0,
    previous: Mapping[str, int],
    memory: Mapping[str, Any],
    evidence: Callable[[Mapping[str, LoraState]], Evidence],
    seed: Callable[[str], int],
) -> Level:
    """Aggregate, cluster and mix at every group, from the departments up.

    Args:
        clusters: the ``dept_clusters`` block, for the members of every group alike.
        tree: the groups.
        departments: {department: θ_d'} of those that have a new state; the others are left out of this round.
        weights: {department: its weight in averages}.
        groups: {group: its state before}.
        momentum: the step of a group towards its members' mean.
        previous: {department or group: cluster} of the round before.
        memory: {group: ...} as this gave it the round before.
        evidence: what a group's members are compared by, from their states.
        seed: of a group's clustering.

    Returns:
        The next states and how the members of each group were clustered.

    Raises:
        ValueError: if the states do not fit the representation.
    """
    level, weights = Level(dict(departments)), dict(weights)
    for group, names in tree.members.items():
        members = {name: level.states[name] for name in names if name in level.states}
        if not members:
            continue
        if group != ROOT:
            items = [(state, weights[name]) for name, state in members.items()]
            level.states[group] = flora_weighted_aggregate(items, groups.get(group), momentum)
            weights[group] = sum(weights[name] for name in members)
        if not clusters.enabled:
            continue
        found, remembered = group_round(
            clusters, evidence(members), previous=previous, memory=memory.get(group, {}), seed=seed(group)
        )
        if remembered:
            level.memory[group] = remembered
        level.found[group] = found
        level.assignments.update(found.assignments)
        means = cluster_states(members, weights, found.assignments)
        for name, state in members.items():
            kind = "group" if name in tree.members else "department"
            level.mixed_bytes[kind] = level.mixed_bytes.get(kind, 0) + num_bytes(select(state, clusters.mix))
            mean = means[found.assignments[name]]
            mixed = mix_with_cluster_average(state, mean, clusters.mixing_ratio, mix=clusters.mix)
            for below in tree.below(name):
                if below in level.states:
                    level.states[below] = mixed if below == name else _moved(level.states[below], state, mixed)
    return level


def _moved(state: LoraState, before: LoraState, after: LoraState) -> LoraState:
    """A state below a group that went from `before` to `after`: moved by the same."""
    return {
        name: (tensor.double() + (after[name].double() - before[name].double())).to(torch.float32)
        for name, tensor in state.items()
    }
