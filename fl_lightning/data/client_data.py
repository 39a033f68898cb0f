"""Clients' tokenized records, read once and used in every round."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl_lightning.data.layout import ClientFiles, entries_not_read, find_client, find_clients, unread_files
from fl_lightning.data.record_keys import describe_unread_keys
from fl_lightning.data.records import Record
from fl_lightning.data.splits import draw_selection, read_splits
from fl_lightning.data.tokenization import Example, encode
from fl_lightning.errors import InputError, nearest

log = logging.getLogger(__name__)

Splits = Mapping[ClientFiles, tuple[list[Record], list[Record]]]
"""{client: (training records, held-out records)}."""


@dataclass(frozen=True)
class ClientData:
    """One client's tokenized records.

    Attributes:
        department: of the client.
        client: its name.
        train: records that train.
        eval: held-out records, which choose nothing.
        selection: records that neither train nor evaluate: they choose between adapters.
    """

    department: str
    client: str
    train: Sequence[Example]
    eval: Sequence[Example]
    selection: Sequence[Example] = ()

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
    selection: float = 0.0,
    eval_records: int | None = None,
    seed: int = 0,
) -> dict[str, ClientData]:
    """{client_id: data}, departments sorted, clients in natural order. Only the chosen clients' records are read.

    A client without training records is left out. What is left out, or not read, is logged once.

    Args:
        root: folder of departments, or ``bundled:departments``; see `fl_lightning.data.layout`.
        tokenizer: a transformers tokenizer.
        department: load this department only.
        client_id: load this client only; `department` is then ignored.
        clients_per_dept: use the first n clients of each department, in natural sort order; None uses all.
        max_records: at most n training records per client.
        max_length: at most n tokens per record.
        eval_fraction: share held out if a client has no eval file.
        selection: share of the training records that are selection records instead, or from 1 on their number.
        eval_records: at most n held-out records per client; None takes all.
        seed: the run seed, for these splits.

    Raises:
        InputError: naming folder, file or line; or if a department has no training or no held-out records.
    """
    if client_id is not None:
        files = [find_client(root, client_id, clients_per_dept)]
    else:
        files = [client for clients in find_clients(root, clients_per_dept, department).values() for client in clients]
    records = {c: read_splits(c, max_records=max_records, eval_fraction=eval_fraction, seed=seed) for c in files}
    _check_departments(records, whole=client_id is None)
    data = {}
    for client, (training, held_out) in records.items():
        if training:
            examples = encode(training, tokenizer, max_length, str(client.train))
            chosen = draw_selection(len(examples), client.department, client.client, selection, seed)
            data[client.client_id] = ClientData(
                client.department,
                client.client,
                [example for index, example in enumerate(examples) if index not in chosen],
                encode(held_out[:eval_records], tokenizer, max_length, str(client.eval or client.train)),
                [examples[index] for index in sorted(chosen)],
            )
    _warn(records)
    if client_id is None and (paths := entries_not_read(root, department)):
        log.warning("%s in the folder of departments not read, no client: %s", _count(paths, "path"), _first(paths))
    return data


def _warn(records: Splits) -> None:
    """One line for each kind of what is left out: clients without records, and files and keys that are not read."""
    empty = [client for client, (training, _) in records.items() if not training]
    unheld = [client for client, (training, held_out) in records.items() if training and not held_out]
    unread = [path for client in records for path in unread_files(client)]
    keys = Counter(key for splits in records.values() for split in splits for r in split for key in r.unread_keys)
    if empty:
        log.warning(
            "%s without training records, left out: %s", _count(empty, "client"), _first(c.train for c in empty)
        )
    if unheld:
        log.warning(
            "%s without held-out records, trained on but not evaluated: %s",
            _count(unheld, "client"),
            _first(c.train for c in unheld),
        )
    if unread:
        log.warning("%s not read, beside train.jsonl and its held-out file: %s", _count(unread, "file"), _first(unread))
    if keys:
        log.warning("%s", describe_unread_keys(keys))


def _count(things: Sequence[object], what: str) -> str:
    return f"{len(things):,} {what}{'' if len(things) == 1 else 's'}"


def _first(paths: Iterable[Path]) -> str:
    names = [str(path) for path in paths]
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _check_departments(records: Splits, *, whole: bool) -> None:
    """Check that every department can be trained and, if all its clients are here, evaluated.

    Raises:
        InputError: naming the first that cannot.
    """
    departments: dict[str, list[ClientFiles]] = {}
    for client in records:
        departments.setdefault(client.department, []).append(client)
    for department, clients in departments.items():
        first, trained = clients[0], [client for client in clients if records[client][0]]
        if not trained:
            raise InputError(f"{first.train}: no records; expected some in department {department}, or remove it")
        if whole and not any(records[client][1] for client in trained):
            raise InputError(
                f"{first.eval or first.train}: no records to hold out; expected some in department {department}: at "
                "least 2 records of a client, or an eval.jsonl"
            )
