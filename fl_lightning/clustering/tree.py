"""Groups of departments as a tree: clients form departments, departments groups, groups larger groups, up to `ROOT`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fl_lightning.errors import InputError, nearest
from fl_lightning.storage.files import check_name

ROOT = ""
"""The federation as a whole; it has members and no state."""

KEY = "federation.hierarchy.groups"


def client_teams(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """{client_id: its team} from the groups whose members are clients; a team is treated as a department.

    Raises:
        InputError: a group of clients and others, or a client in two teams.

    Example:
        >>> client_teams({"shell": ["it/client_0", "it/client_1"], "technical": ["shell", "data"]})
        {'it/client_0': 'shell', 'it/client_1': 'shell'}
    """
    team_of: dict[str, str] = {}
    for group, names in groups.items():
        clients = [name for name in names if "/" in name]
        if clients and len(clients) < len(names):
            other = next(name for name in names if "/" not in name)
            raise InputError(f"{KEY}.{group}: expected only clients or none, got {clients[0]!r} and {other!r}")
        for client_id in clients:
            if client_id in team_of:
                raise InputError(
                    f"{KEY}: expected {client_id!r} in one team, got it in {team_of[client_id]!r} and {group!r}"
                )
            team_of[client_id] = check_name(group, KEY)
    return team_of


@dataclass(frozen=True)
class Tree:
    """Groups of departments.

    Attributes:
        members: {group: its members, sorted}, every group after the groups inside it; `ROOT` comes last.
    """

    members: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, groups: Mapping[str, Sequence[str]], departments: Iterable[str]) -> Tree:
        """Check the groups against the existing departments and put them in order.

        Args:
            groups: {group: departments and other groups, or a team's clients}; a department or group that is in no
                group is a direct member of the federation.
            departments: all of them.

        Raises:
            InputError: a name that does not exist or is in two groups, a group named as a department, or a cycle.

        Example:
            >>> Tree.of({"company": ["trade", "hr"], "trade": ["finance", "sales"]}, ["finance", "hr", "sales"]).members
            {'trade': ('finance', 'sales'), 'company': ('hr', 'trade'), '': ('company',)}
        """
        departments, teams = set(departments), set(client_teams(groups).values())
        if absent := sorted(teams - departments):
            raise InputError(
                f"{KEY}: expected data for team {absent[0]!r}, got no clients; apply `regroup_clients` first"
            )
        groups = {group: names for group, names in groups.items() if group not in teams}
        parent = _parents(groups, departments)
        ordered: dict[str, tuple[str, ...]] = {}
        while waiting := [group for group in sorted(groups) if group not in ordered]:
            ready = [group for group in waiting if not set(groups[group]) & set(waiting)]
            if not ready:
                raise InputError(f"{KEY}: expected a tree, got {waiting[0]!r} as a member of itself")
            ordered.update({group: tuple(sorted(groups[group])) for group in ready})
        ordered[ROOT] = tuple(sorted({*departments, *groups} - parent.keys()))
        return cls(ordered)

    @property
    def groups(self) -> list[str]:
        """The groups in order, without `ROOT`."""
        return [group for group in self.members if group != ROOT]

    def subtree(self, name: str) -> Iterator[str]:
        """A group or department and everything below it, itself first."""
        yield name
        for member in self.members.get(name, ()):
            yield from self.subtree(member)

    def departments(self, name: str) -> list[str]:
        """The departments below a group, sorted; a department itself."""
        return sorted(below for below in self.subtree(name) if below not in self.members)

    def department_clusters(self, assignments: Mapping[str, int]) -> dict[str, int]:
        """{department: number of its cluster} from {department or group: number of its cluster inside its group}.

        Every group counts its clusters from 0; here those of the next group go on after them.

        Example:
            >>> tree = Tree.of({"trade": ["finance", "sales"], "staff": ["hr", "it"]}, ["finance", "hr", "it", "sales"])
            >>> tree.department_clusters({"finance": 0, "sales": 0, "hr": 0, "it": 1, "trade": 0, "staff": 0})
            {'hr': 0, 'it': 1, 'finance': 2, 'sales': 2}
        """
        clusters: dict[str, int] = {}
        for members in self.members.values():
            first = max(clusters.values(), default=-1) + 1
            departments = [name for name in members if name in assignments and name not in self.members]
            clusters |= {name: first + assignments[name] for name in departments}
        return clusters


NO_GROUPS = Tree({})
"""The tree of a federation without groups, for callers that only need names."""


def _parents(groups: Mapping[str, Sequence[str]], departments: set[str]) -> dict[str, str]:
    """{department or group: the group it is in}; every name is checked."""
    known = {*departments, *groups}
    parent: dict[str, str] = {}
    for group, names in groups.items():
        check_name(group, KEY)
        if group in departments:
            raise InputError(f"{KEY}: expected a name that no department has, got {group!r}")
        for name in names:
            if name not in known:
                hint = nearest(name, known)
                raise InputError(f"{KEY}.{group}: expected departments or other groups, got {name!r}{hint}")
            if name in parent:
                raise InputError(f"{KEY}: expected {name!r} in one group, got it in {parent[name]!r} and {group!r}")
            parent[name] = group
    return parent
