"""What is to be taken out of a run, and the config of the run without it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fl_lightning.clustering.tree import client_teams
from fl_lightning.config import RunConfig
from fl_lightning.data.exclusion import check_records_exist, find_records, is_excluded
from fl_lightning.data.layout import find_clients, find_places
from fl_lightning.data.teams import regroup_ids
from fl_lightning.errors import InputError, nearest
from fl_lightning.storage.record_digest import read_digests


@dataclass(frozen=True)
class ForgetRequest:
    """What the user names.

    Attributes:
        clients: such as ``hr/client_1``.
        departments: such as ``hr``.
        records: digests of records.
    """

    clients: Sequence[str] = ()
    departments: Sequence[str] = ()
    records: Sequence[str] = ()

    @classmethod
    def of(
        cls, clients: Sequence[str] = (), departments: Sequence[str] = (), records: Path | None = None
    ) -> ForgetRequest:
        """A request, with the digests of the records in a file.

        Raises:
            InputError: if nothing is named, a name has the wrong form, or the file cannot be read.
        """
        for names, option, slashes in ((clients, "--client", 1), (departments, "--department", 0)):
            for name in names:
                if name.count("/") != slashes or not all(name.split("/")):
                    example = "hr/client_1" if slashes else "hr"
                    raise InputError(f"{option}: expected a name such as {example}, got {name!r}")
        if not clients and not departments and records is None:
            raise InputError("forget: expected --client, --department or --records, got none; name what to take out")
        digests = [] if records is None else read_digests(records)
        return cls(tuple(dict.fromkeys(clients)), tuple(dict.fromkeys(departments)), tuple(digests))


@dataclass(frozen=True)
class Removal:
    """A request, looked up in the data of a run.

    Attributes:
        config: of the run without what is taken out.
        before: {client_id in the run: its id in the data} of everybody in the run before, without those that its config
            leaves out.
        gone: ids in the run of the clients that are taken out.
        changed: ids in the run of the clients that lose records.
        places: ids in the run of all clients before, those that its config leaves out in their places.
        taken_out: for the certificate.
    """

    config: RunConfig
    before: Mapping[str, str]
    gone: frozenset[str]
    changed: frozenset[str]
    places: Sequence[str]
    taken_out: Mapping[str, Any] = field(default_factory=dict)


def look_up(config: RunConfig, request: ForgetRequest, known: Collection[str] = ()) -> Removal:
    """Find what is to be taken out.

    Args:
        config: of the run.
        request: what the user names.
        known: ids of clients that the run has; their files may have been deleted.

    Raises:
        InputError: naming what was not in the run, or if nobody would be left.
    """
    data, names = config.data, [*request.departments, *request.clients]
    sources = {c.client_id: c for some in find_clients(data.root, columns=data.columns).values() for c in some}
    before, places = _clients_before(config, [name for name in request.clients if name in known])
    _check_names(names, before.values(), data.root)
    owners = find_records(sources.values(), request.records) if request.records else {}
    check_records_exist(request.records, owners, data.root)
    gone = frozenset(new for new, old in before.items() if is_excluded(old, names))
    changed = frozenset(new for new, old in before.items() if old in owners) - gone
    if not gone and not changed:
        raise InputError(f"--records: expected records of clients of the run, got some of {', '.join(sorted(owners))}")
    if gone == before.keys():
        raise InputError("forget: expected that some client is left, got all of them; delete the run instead")
    new_data = replace(
        data,
        exclude=[*data.exclude, *(name for name in names if name not in data.exclude)],
        exclude_records=sorted({*data.exclude_records, *request.records}),
    )
    taken_out = {
        "clients": list(request.clients),
        "departments": list(request.departments),
        "records": {client_id: len(owners[before[client_id]]) for client_id in sorted(changed)},
    }
    return Removal(
        replace(config, data=new_data), before, gone, changed, places, {k: v for k, v in taken_out.items() if v}
    )


def _clients_before(config: RunConfig, absent: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The clients of the run, see `Removal.before`, and their places.

    Args:
        config: of the run.
        absent: ids in the data of clients that it had and whose files may have been deleted.
    """
    data = config.data
    found = find_places(data.root, data.max_clients, columns=data.columns, exclude=[*data.exclude, *absent])
    teams = client_teams(config.federation.hierarchy.groups)
    ids = regroup_ids([client_id for clients in found.values() for client_id in clients], teams)
    before = {new: old for new, old in ids.items() if not is_excluded(old, data.exclude)}
    departments = {client_id.split("/", 1)[0] for client_id in before}
    return before, [client_id for client_id in ids if client_id.split("/", 1)[0] in departments]


def _check_names(names: Sequence[str], client_ids: Collection[str], root: object) -> None:
    """Check that the run has clients and departments of these names.

    Raises:
        InputError: naming the first that it has not.
    """
    ids = {*client_ids, *(client_id.split("/", 1)[0] for client_id in client_ids)}
    for name in names:
        if name not in ids:
            option = "--client" if "/" in name else "--department"
            hint = nearest(name, ids)
            raise InputError(
                f"{option}: expected a client or department that the run has of {root}, got {name!r}{hint}"
            )
