"""Clients of several departments as teams, each of which is treated as a department."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from fl_lightning.data.client_data import ClientData
from fl_lightning.data.lazy_clients import LazyClients
from fl_lightning.errors import InputError, nearest


def regroup_ids(client_ids: Iterable[str], teams: Mapping[str, str]) -> dict[str, str]:
    """{client_id: the same client's id before it was moved}; departments sorted, clients in their order.

    Args:
        client_ids: of all clients.
        teams: {client_id: team}, see `fl_lightning.clustering.tree.client_teams`.

    Raises:
        InputError: two clients of one name in a team.
    """
    before: dict[str, str] = {}
    for client_id in client_ids:
        department, client = client_id.split("/", 1)
        team = teams.get(client_id, department)
        if f"{team}/{client}" in before:
            raise InputError(
                f"federation.hierarchy.groups.{team}: two clients are called {client!r}; rename one of them"
            )
        before[f"{team}/{client}"] = client_id
    return dict(sorted(before.items(), key=lambda item: item[0].split("/", 1)[0]))


def regroup_clients(data: Mapping[str, ClientData], teams: Mapping[str, str]) -> Mapping[str, ClientData]:
    """Move clients to teams, each of which becomes a department; all other clients stay in theirs.

    Args:
        data: {client_id: records}.
        teams: {client_id: team}, see `fl_lightning.clustering.tree.client_teams`.

    Returns:
        {client_id: records}, the clients of a team as ``team/client``; departments sorted, clients in their order.

    Raises:
        InputError: an unknown client, a team with the name of a department, or two clients of one name in a team.
    """
    key = "federation.hierarchy.groups"
    if not teams:
        return data
    if unknown := [client_id for client_id in teams if client_id not in data]:
        hint = nearest(unknown[0], data)
        raise InputError(f"{key}.{teams[unknown[0]]}: expected a client of the data, got {unknown[0]!r}{hint}")
    departments = {client_id.split("/", 1)[0] for client_id in data}
    if taken := sorted(departments & set(teams.values())):
        raise InputError(f"{key}: {taken[0]!r} is also a department of the data; choose another name for the team")
    before = regroup_ids(data, teams)

    def moved(client_id: str, old_id: str) -> ClientData:
        return replace(data[old_id], department=client_id.split("/", 1)[0])

    if isinstance(data, LazyClients):
        return LazyClients(before, moved)
    return {client_id: moved(client_id, old_id) for client_id, old_id in before.items()}
