"""All clients' tokenised records, read once and kept for every round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl_lightning.data.layout import ClientFiles, find_clients, read_splits
from fl_lightning.data.tokenization import Example, encode
from fl_lightning.errors import InputError, nearest


@dataclass(frozen=True)
class ClientData:
    """One client's tokenised records."""

    department: str
    client: str
    train: Sequence[Example]
    eval: Sequence[Example]

    @property
    def client_id(self) -> str:
        """``department/client``."""
        return f"{self.department}/{self.client}"


def with_teams(data: Mapping[str, ClientData], teams: Mapping[str, str]) -> dict[str, ClientData]:
    """Clients dealt to teams, each a department of its own; the others stay where they are.

    Args:
        data: {client_id: records}.
        teams: {client_id: team}, see `fl_lightning.clustering.tree.client_teams`.

    Returns:
        {client_id: records}, the clients of a team as ``team/client``; departments sorted, clients as they came.

    Raises:
        InputError: a client that is not there, a team called as a department is, or two clients of one name in a team.
    """
    key = "federation.hierarchy.groups"
    if strange := [client_id for client_id in teams if client_id not in data]:
        hint = nearest(strange[0], data)
        raise InputError(f"{key}.{teams[strange[0]]}: got {strange[0]!r}, wanted a client of the data{hint}")
    departments = {client.department for client in data.values()}
    if taken := sorted(departments & set(teams.values())):
        raise InputError(f"{key}: {taken[0]!r} is a department of the data too; wanted another name for the team")
    moved: dict[str, ClientData] = {}
    for client_id, client in data.items():
        own = replace(client, department=teams.get(client_id, client.department))
        if own.client_id in moved:
            raise InputError(f"{key}.{own.department}: two clients are called {own.client!r}; wanted different names")
        moved[own.client_id] = own
    return dict(sorted(moved.items(), key=lambda item: item[1].department))


CENTRAL_CLIENT = "pooled/all"
"""The one client of `pooled`."""


def pooled(data: Mapping[str, ClientData]) -> ClientData:
    """All clients' training records as one client's, in the order of the clients; it has no held-out records.

    Raises:
        InputError: if a department is called as the pool is.
    """
    department, client = CENTRAL_CLIENT.split("/")
    if any(own.department == department for own in data.values()):
        raise InputError(f"data.root: a department is called {department!r}; wanted another name under share: central")
    return ClientData(department, client, [example for own in data.values() for example in own.train], [])


def load_federation(
    root: str | Path,
    tokenizer: Any,
    *,
    clients_per_dept: int | None = None,
    max_records: int | None = None,
    max_length: int = 512,
    eval_fraction: float = 0.2,
    seed: int = 0,
) -> dict[str, ClientData]:
    """{client_id: data}, departments sorted, clients in natural order.

    Args:
        root: folder of departments, or ``bundled:departments``; layouts in `fl_lightning.data.layout`.
        tokenizer: a transformers tokenizer.
        clients_per_dept: the first so many clients of each department; None takes all.
        max_records: at most so many training records a client.
        max_length: at most so many tokens a record.
        eval_fraction: share held out where a client has no eval file.
        seed: the run seed, for that split.

    Raises:
        InputError: naming folder, file or line.
    """
    found = [files for clients in find_clients(root, clients_per_dept).values() for files in clients]
    return {files.client_id: _load(files, tokenizer, max_records, max_length, eval_fraction, seed) for files in found}


def load_client(
    root: str | Path,
    tokenizer: Any,
    client_id: str,
    *,
    max_records: int | None = None,
    max_length: int = 512,
    eval_fraction: float = 0.2,
    seed: int = 0,
) -> dict[str, ClientData]:
    """{client_id: data} of one client; arguments as for `load_federation`, and no other client's records are read.

    Raises:
        InputError: if the folder has no such client, or naming folder, file or line.
    """
    found = {files.client_id: files for clients in find_clients(root).values() for files in clients}
    if client_id not in found:
        raise InputError(f"data.root: no client {client_id} in {root}, wanted it there{nearest(client_id, found)}")
    return {client_id: _load(found[client_id], tokenizer, max_records, max_length, eval_fraction, seed)}


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
