"""Adapters of a run by name: departments and groups, and each client's adapter of its last or its best round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fl_lightning.errors import InputError
from fl_lightning.storage.files import check_name, natural_key, read_json
from fl_lightning.storage.forgotten import check_not_forgotten
from fl_lightning.storage.run_layout import (
    CLIENT_INDEX,
    DEPARTMENT_INDEX,
    EARLY_STOPPING,
    GROUP_INDEX,
)

BASE = "base"
"""The name of the base model among adapters."""


def shared_adapters(run_folder: Path) -> dict[str, Path]:
    """{department or group: folder of its adapter}, in natural order.

    Raises:
        InputError: if the run has none, something was taken out of it, or an index is not as `fit` writes it.
    """
    check_not_forgotten(run_folder)
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
    """{client_id: (round, folder)} of each client's adapter, in natural order: of its best round, else of the newest.

    Raises:
        InputError: if an index is not as `fit` writes it.
    """
    path = run_folder / CLIENT_INDEX
    best = best_rounds(run_folder)
    adapters: dict[str, tuple[int, Path]] = {}
    for round_num, departments in sorted(client_exports(run_folder).items() if path.exists() else ()):
        for department, clients in departments.items():
            for client, export in clients.items():
                names = [check_name(name, f"{path}: name") for name in (department, client)]
                folder = resolve_inside(run_folder, path, client, export)
                if folder.is_dir() and round_num <= best.get("/".join(names), round_num):
                    adapters["/".join(names)] = round_num, folder
    return {name: adapters[name] for name in sorted(adapters, key=natural_key)}


def best_rounds(run_folder: Path) -> dict[str, int]:
    """{department, group or client: round that early stopping has taken}; empty without early stopping.

    Raises:
        InputError: if the file is not as `fit` writes it.
    """
    path = run_folder / EARLY_STOPPING
    value: Any = read_json(path) if path.exists() else {}
    if not isinstance(value, dict) or not all(
        isinstance(best, dict) and type(best.get("round")) is int for best in value.values()
    ):
        raise InputError(f"{path}: expected {{name: {{round, loss}}}}, as fit writes it")
    return {name: best["round"] for name, best in value.items()}


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
