"""Which adapters a run folder holds, by name: departments and groups, and each client's own of its last round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fl_lightning.errors import InputError, nearest
from fl_lightning.storage.files import check_name, natural_key, read_json

DEPARTMENTS, GROUPS, CLIENTS = "dept_lora_federated.json", "group_lora_federated.json", "client_lora_federated.json"
BASE = "base"
"""The name of the base model among adapters."""


def shared_adapters(run_folder: Path) -> dict[str, Path]:
    """{department or group: folder of its adapter}, in natural order.

    Raises:
        InputError: if the run has none, or an index of it is not as `fit` writes it.
    """
    found: dict[str, Path] = {}
    for index in (DEPARTMENTS, GROUPS):
        path = run_folder / index
        if index == GROUPS and not path.exists():
            continue
        places = read_json(path)
        if not isinstance(places, dict):
            raise InputError(f"{path}: got {type(places).__name__}, wanted {{name: folder}}")
        for name in sorted(places, key=natural_key):
            found[check_name(name, f"{path}: name")] = resolve_inside(run_folder, path, name, places[name])
    return found


def client_adapters(run_folder: Path) -> dict[str, tuple[int, Path]]:
    """{client_id: (round, folder)} of the last adapter of each client that the run still keeps, in natural order.

    Raises:
        InputError: if the index is not as `fit` writes it.
    """
    path = run_folder / CLIENTS
    found: dict[str, tuple[int, Path]] = {}
    for round_num, departments in sorted(client_exports(run_folder).items() if path.exists() else ()):
        for department, clients in departments.items():
            for client, place in clients.items():
                names = [check_name(name, f"{path}: name") for name in (department, client)]
                folder = resolve_inside(run_folder, path, client, place)
                if folder.is_dir():
                    found["/".join(names)] = round_num, folder
    return {name: found[name] for name in sorted(found, key=natural_key)}


def all_adapters(run_folder: Path) -> dict[str, Path]:
    """{name: folder} of `shared_adapters`, then of `client_adapters`.

    Raises:
        InputError: as those do.
    """
    return shared_adapters(run_folder) | {name: folder for name, (_, folder) in client_adapters(run_folder).items()}


def chosen_adapters(run_folder: Path, names: Sequence[str] = ()) -> dict[str, Path]:
    """{name: folder} of the adapters named, in the order given; of all departments and groups where none is.

    Args:
        run_folder: of the run.
        names: departments, groups, and clients such as ``hr/client_0``.

    Raises:
        InputError: if a name is nobody's, or an index of the run is not as `fit` writes it.
    """
    shared = shared_adapters(run_folder)
    if not names:
        return shared
    known = all_adapters(run_folder)
    for name in names:
        if name not in known:
            hint = nearest(name, known) or f"; wanted some of {', '.join(shared)}, or a client such as hr/client_0"
            raise InputError(f"--models: {run_folder} has no adapter of {name!r}{hint}")
    return {name: known[name] for name in names}


def folder_names(names: Iterable[str]) -> dict[str, str]:
    """{name: what it is called where no ``/`` may be}, in the order given.

    Raises:
        InputError: if two would be called alike, upper and lower case not told apart.

    Example:
        >>> folder_names(["hr", "hr/client_0"])
        {'hr': 'hr', 'hr/client_0': 'hr-client_0'}
    """
    found = {name: name.replace("/", "-") for name in names}
    owners: dict[str, str] = {}
    for name, short in found.items():
        if (other := owners.setdefault(short.casefold(), name)) != name:
            raise InputError(f"--models: {other!r} and {name!r} would both be called {short!r}; take them one by one")
    return found


def resolve_inside(run_folder: Path, index: Path, name: str, place: object) -> Path:
    """The folder that an index gives for a name, if it lies inside the run.

    Raises:
        InputError: if it does not, or is no path at all.
    """
    if not isinstance(place, str) or "\0" in place:
        raise InputError(f"{index}: {name}: got {place!r}, expected a folder within the run")
    folder = run_folder / place
    try:
        inside = folder.resolve().is_relative_to(run_folder.resolve())
    except (OSError, RuntimeError) as error:  # RuntimeError is Python 3.12's and older for links in a circle
        raise InputError(f"{folder}: links in a circle; wanted an adapter's folder") from error
    if not inside:
        raise InputError(f"{index}: {name}: adapter path {place!r} leads out of the run folder; expected one within it")
    return folder


def client_exports(run_folder: Path) -> dict[int, dict[str, dict[str, object]]]:
    """{round: {department: {client: folder within the run}}}, as the index says it.

    Raises:
        InputError: if the index is not as `fit` writes it.
    """
    path = run_folder / CLIENTS
    value: Any = read_json(path)
    rounds: Any = value.get("rounds") if isinstance(value, dict) else None
    ok = isinstance(rounds, dict) and all(
        number.isdecimal() and isinstance(departments, dict) for number, departments in rounds.items()
    )
    if not ok or not all(isinstance(clients, dict) for places in rounds.values() for clients in places.values()):
        raise InputError(f"{path}: wanted {{rounds: {{round: {{department: {{client: folder}}}}}}}}, as fit writes it")
    return {int(number): departments for number, departments in rounds.items()}
