"""What a run's config leaves out of the data: the places of its clients, and whether it is there at all."""

from __future__ import annotations

from collections.abc import Collection

from fl_lightning.clustering.tree import client_teams
from fl_lightning.config import RunConfig
from fl_lightning.data.exclusion import check_names_exist, check_records_exist, find_records, is_excluded
from fl_lightning.data.layout import find_clients, find_places
from fl_lightning.data.teams import regroup_ids


def client_places(config: RunConfig, client_ids: Collection[str]) -> list[str] | None:
    """Ids of a run's clients and of those that `data.exclude` leaves out, in their places.

    Args:
        config: of the run.
        client_ids: of the clients that take part.

    Returns:
        None if nobody is left out, or only whole departments.

    Raises:
        InputError: if the data cannot be listed.
    """
    data, teams = config.data, client_teams(config.federation.hierarchy.groups)
    if not any("/" in name for name in data.exclude):
        return None
    places = find_places(data.root, data.max_clients, columns=data.columns, exclude=data.exclude)
    before = regroup_ids([client_id for clients in places.values() for client_id in clients], teams)
    departments = {client_id.split("/", 1)[0] for client_id in client_ids}
    left_out = {
        new for new, old in before.items() if is_excluded(old, data.exclude) and new.split("/", 1)[0] in departments
    }
    return [client_id for client_id in before if client_id in client_ids or client_id in left_out]


def check_excluded(config: RunConfig) -> dict[str, set[str]]:
    """Check that everything that `data.exclude` and `data.exclude_records` name is in the data, before a new run.

    A run that exists may go on without: the files of those that were left out may have been deleted.

    Returns:
        {client_id: digests of its records that are left out}.

    Raises:
        InputError: naming what is not there.
    """
    data = config.data
    if not data.exclude and not data.exclude_records:
        return {}
    clients = [client for some in find_clients(data.root, columns=data.columns).values() for client in some]
    check_names_exist(data.exclude, [client.client_id for client in clients], data.root)
    owners = find_records(clients, data.exclude_records) if data.exclude_records else {}
    check_records_exist(data.exclude_records, owners, data.root)
    return owners
