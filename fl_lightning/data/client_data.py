"""Clients' tokenized records, read once and used in every round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl_lightning.data.layout import ClientFiles, find_client, find_clients, read_splits
from fl_lightning.data.tokenization import Example, encode
from fl_lightning.errors import InputError, nearest


@dataclass(frozen=True)
class ClientData:
    """One client's tokenized records."""

    department: str
    client: str
    train: Sequence[Example]
    eval: Sequence[Example]

    @property
    def client_id(self) -> str:
        """``department/client``."""
        return f"{self.department}/{self.client}"


def regroup_clients(data: Mapping[str, ClientData], teams: Mapping[str, str]) -> dict[str, ClientData]:
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
    if unknown := [client_id for client_id in teams if client_id not in data]:
        hint = nearest(unknown[0], data)
        raise InputError(f"{key}.{teams[unknown[0]]}: expected a client of the data, got {unknown[0]!r}{hint}")
    departments = {client.department for client in data.values()}
    if taken := sorted(departments & set(teams.values())):
        raise InputError(f"{key}: {taken[0]!r} is also a department of the data; choose another name for the team")
    regrouped: dict[str, ClientData] = {}
    for client_id, client in data.items():
        moved = replace(client, department=teams.get(client_id, client.department))
        if moved.client_id in regrouped:
            raise InputError(f"{key}.{moved.department}: two clients are called {moved.client!r}; rename one of them")
        regrouped[moved.client_id] = moved
    return dict(sorted(regrouped.items(), key=lambda item: item[1].department))


CENTRAL_CLIENT = "pooled/all"
"""The one client of `pool_clients`."""


def pool_clients(data: Mapping[str, ClientData]) -> ClientData:
    """All clients' training records as one client's, in the order of the clients; it has no held-out records.

    Raises:
        InputError: if a department has the name of the pool's.
    """
    department, client = CENTRAL_CLIENT.split("/")
    if any(member.department == department for member in data.values()):
        raise InputError(f"data.root: a department is called {department!r}; rename it, or do not use share: central")
    return ClientData(department, client, [example for member in data.values() for example in member.train], [])


def load_clients(
    root: str | Path,
    tokenizer: Any,
    *,
    department: str | None = None,
    client_id: str | None = None,
    clients_per_dept: int | None = None,
    max_records: int | None = None,
    max_length: int = 512,
    eval_fraction: float = 0.2,
    seed: int = 0,
) -> dict[str, ClientData]:
    """{client_id: data}, departments sorted, clients in natural order. Only the chosen clients' records are read.

    Args:
        root: folder of departments, or ``bundled:departments``; see `fl_lightning.data.layout`.
        tokenizer: a transformers tokenizer.
        department: load this department only.
        client_id: load this client only; `department` is then ignored.
        clients_per_dept: use the first n clients of each department, in natural sort order; None uses all.
        max_records: at most n training records per client.
        max_length: at most n tokens per record.
        eval_fraction: share held out if a client has no eval file.
        seed: the run seed, for that split.

    Raises:
        InputError: naming folder, file or line.
    """
    if client_id is not None:
        files = [find_client(root, client_id, clients_per_dept)]
    else:
        files = [client for clients in find_clients(root, clients_per_dept, department).values() for client in clients]
    return {
        client.client_id: _load(client, tokenizer, max_records, max_length, eval_fraction, seed) for client in files
    }


def _load(
    files: ClientFiles, tokenizer: Any, max_records: int | None, max_length: int, eval_fraction: float, seed: int
) -> ClientData:
    training, held_out = read_splits(files, max_records=max_records, eval_fraction=eval_fraction, seed=seed)
    return ClientData(
        files.department,
        files.client,
        encode(training, tokenizer, max_length, str(files.train)),
        encode(held_out, tokenizer, max_length, str(files.eval or files.train)),
    )
