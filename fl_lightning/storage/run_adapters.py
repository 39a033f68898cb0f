"""Adapters of a run by name: departments and groups, and each client's adapter of its last round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fl_lightning.errors import InputError, nearest
from fl_lightning.storage.files import check_name, natural_key, read_json
from fl_lightning.storage.run_layout import CLIENT_INDEX, DEPARTMENT_INDEX, GROUP_INDEX

BASE = "base"
"""The name of the base model among adapters."""


def shared_adapters(run_folder: Path) -> dict[str, Path]:
    """{department or group: folder of its adapter}, in natural order.

    Raises:
        InputError: if the run has none, or an index is not as `fit` writes it.
    """
    adapters: dict[str, Path] = {}
    for index in (DEPARTMENT_INDEX, GROUP_INDEX):
        path = run_folder / index
        if index == GROUP_INDEX and not path.exists():
            continue
        folders = read_json(path)
        if not isinstance(folders, dict):
            raise InputError(f"{path}: expected {{name: folder}}, got {type(folders).__name__}")
        for name in sorted(folders, key=natural_key):
            adapters[check_name(name, f"{path}: name")] = resolve_inside(run_folder, path, name, folders[name])
    return adapters


def client_adapters(run_folder: Path) -> dict[str, tuple[int, Path]]:
    """{client_id: (round, folder)} of each client's newest adapter that the run still has, in natural order.

    Raises:
        InputError: if the index is not as `fit` writes it.
    """
    path = run_folder / CLIENT_INDEX
    adapters: dict[str, tuple[int, Path]] = {}
    for round_num, departments in sorted(client_exports(run_folder).items() if path.exists() else ()):
        for department, clients in departments.items():
            for client, export in clients.items():
                names = [check_name(name, f"{path}: name") for name in (department, client)]
                folder = resolve_inside(run_folder, path, client, export)
                if folder.is_dir():
                    adapters["/".join(names)] = round_num, folder
    return {name: adapters[name] for name in sorted(adapters, key=natural_key)}


def all_adapters(run_folder: Path) -> dict[str, Path]:
    """{name: folder} of `shared_adapters`, then of `client_adapters`.

    Raises:
        InputError: if an index is not as `fit` writes it.
    """
    return shared_adapters(run_folder) | {name: folder for name, (_, folder) in client_adapters(run_folder).items()}


def chosen_adapters(run_folder: Path, names: Sequence[str] = ()) -> dict[str, Path]:
    """{name: folder} of the adapters named, in that order; of all departments and groups if none is named.

    Args:
        run_folder: of the run.
        names: departments, groups, and clients such as ``hr/client_0``.

    Raises:
        InputError: if the run has no adapter of a name, or an index is not as `fit` writes it.
    """
    shared = shared_adapters(run_folder)
    if not names:
        return shared
    adapters = all_adapters(run_folder)
    for name in names:
        if name not in adapters:
            hint = nearest(name, adapters) or f"; expected one of {', '.join(shared)}, or a client such as hr/client_0"
            raise InputError(f"--models: {run_folder} has no adapter of {name!r}{hint}")
    return {name: adapters[name] for name in names}


def folder_names(names: Iterable[str]) -> dict[str, str]:
    """{name: the same without ``/``}, in the order of `names`.

    Raises:
        InputError: if two results are equal, ignoring case.

    Example:
        >>> folder_names(["hr", "hr/client_0"])
        {'hr': 'hr', 'hr/client_0': 'hr-client_0'}
    """
    folders = {name: name.replace("/", "-") for name in names}
    owners: dict[str, str] = {}
    for name, folder in folders.items():
        if (other := owners.setdefault(folder.casefold(), name)) != name:
            raise InputError(f"--models: {other!r} and {name!r} would share the name {folder!r}; name one at a time")
    return folders


def resolve_inside(run_folder: Path, index: Path, name: str, entry: object) -> Path:
    """The folder that an index has for a name, if it is inside the run.

    Args:
        run_folder: of the run.
        index: the index's file, for messages.
        name: of the adapter, for messages.
        entry: the index's value.

    Raises:
        InputError: if the entry is no path, or leads out of the run.
    """
    if not isinstance(entry, str) or "\0" in entry:
        raise InputError(f"{index}: {name}: expected a folder within the run, got {entry!r}")
    folder = run_folder / entry
    try:
        inside = folder.resolve().is_relative_to(run_folder.resolve())
    except (OSError, RuntimeError) as error:  # RuntimeError: Python 3.12 and older, for a circle of links
        raise InputError(f"{folder}: expected an adapter's folder, got a circle of links") from error
    if not inside:
        raise InputError(
            f"{index}: {name}: expected a folder within the run, got {entry!r}, which leads out of the run folder"
        )
    return folder


def client_exports(run_folder: Path) -> dict[int, dict[str, dict[str, object]]]:
    """{round: {department: {client: folder within the run}}}, as the index has it.

    Raises:
        InputError: if the index is not as `fit` writes it.
    """
    path = run_folder / CLIENT_INDEX
    value: Any = read_json(path)
    rounds: Any = value.get("rounds") if isinstance(value, dict) else None
    ok = isinstance(rounds, dict) and all(
        number.isdecimal() and isinstance(departments, dict) for number, departments in rounds.items()
    )
    if not ok or not all(
        isinstance(clients, dict) for departments in rounds.values() for clients in departments.values()
    ):
        raise InputError(
            f"{path}: expected {{rounds: {{round: {{department: {{client: folder}}}}}}}}, as fit writes it"
        )
    return {int(number): departments for number, departments in rounds.items()}
