"""Clients, departments and records that are left out of the data, as if they had never been in it.

A client that is left out keeps its place: ``clients_per_dept`` moves nobody up, and a round's sample of clients is
drawn as if it were there and goes without it. So all other clients do what they did, with fewer partners. A record that
is left out keeps no place: everything is as if its line were not in the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from fl_lightning.data.client_files import ClientSource
from fl_lightning.data.records import Record
from fl_lightning.errors import InputError, nearest
from fl_lightning.storage.files import natural_key
from fl_lightning.storage.record_digest import record_digest

Source = TypeVar("Source", bound=ClientSource)


def is_excluded(client_id: str, names: Collection[str]) -> bool:
    """Whether names of clients and departments include a client or its department."""
    return client_id in names or client_id.split("/", 1)[0] in names


def with_places(department: str, clients: Sequence[Source], names: Collection[str]) -> dict[str, Source | None]:
    """{client_id: the client, or None at the place of one that is left out} of a department, in natural order.

    Args:
        department: its name.
        clients: that are in the data, those to be left out as well; in natural order.
        names: clients and departments to leave out. A client among them has its place even if it is not in the data.
    """
    if not names:
        return {client.client_id: client for client in clients}
    found: dict[str, Source | None] = {
        client.client_id: None if is_excluded(client.client_id, names) else client for client in clients
    }
    absent = [name for name in names if name.startswith(f"{department}/") and name not in found]
    if not absent:
        return found
    ids = sorted([*found, *absent], key=lambda client_id: natural_key(client_id.split("/", 1)[1]))
    return {client_id: found.get(client_id) for client_id in ids}


def without_records(records: list[Record], digests: Collection[str]) -> list[Record]:
    """The records whose `record_digest` is not among the digests, in their order."""
    return [record for record in records if record_digest(record.value) not in digests] if digests else records


def find_records(sources: Iterable[ClientSource], digests: Collection[str]) -> dict[str, set[str]]:
    """{client_id: digests of its records that are among these}, of the clients that have some. Reads all records.

    Raises:
        InputError: naming file and line of what is no record.
    """
    owners: dict[str, set[str]] = {}
    for source in sources:
        records = [*source.training_records(), *(source.held_out_records() or ())]
        if found := {record_digest(record.value) for record in records} & set(digests):
            owners[source.client_id] = found
    return owners


def check_names_exist(names: Iterable[str], client_ids: Collection[str], root: object) -> None:
    """Check that every name to leave out is a client or a department of the data.

    Raises:
        InputError: naming the first that is not, with the nearest name.
    """
    known = {*client_ids, *(client_id.split("/", 1)[0] for client_id in client_ids)}
    for name in names:
        if name not in known:
            raise InputError(
                f"data.exclude: expected clients (hr/client_0) and departments (hr) of {root}, got {name!r}"
                f"{nearest(name, known)}"
            )


def check_records_exist(digests: Iterable[str], owners: Mapping[str, Collection[str]], root: object) -> None:
    """Check that every record to leave out is in the data.

    Args:
        digests: of the records.
        owners: `find_records` of these digests.
        root: of the data, for the message.

    Raises:
        InputError: naming the first that is not.
    """
    found = {digest for some in owners.values() for digest in some}
    if missing := [digest for digest in digests if digest not in found]:
        raise InputError(
            f"data.exclude_records: expected records of {root}, got {len(missing)} that are in no file of a client; "
            f"the first has the digest {missing[0]}. Give each line as it is in the data"
        )
