"""Adapters of a run by name: departments and groups, and each client's adapter of its last or its best round.

After `personalize` a client ``hr/client_0`` has two more names: ``hr/client_0+`` is the mixture of its levels, several
adapters whose predictions are mixed, and ``hr/client_0+adapter`` the one adapter made of them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fl_lightning.errors import InputError, nearest
from fl_lightning.storage.files import check_name, natural_key, read_json
from fl_lightning.storage.run_layout import (
    CLIENT_INDEX,
    DEPARTMENT_INDEX,
    EARLY_STOPPING,
    GROUP_INDEX,
    PERSONAL_EVALUATION,
    personal_adapter,
)

BASE = "base"
"""The name of the base model among adapters."""
MIXTURE, ONE_ADAPTER = "+", "+adapter"
"""After a client's name: the mixture of its levels, and the one adapter made of them."""
NEGLIGIBLE_WEIGHT = 0.005
"""A level with a smaller weight in a client's mixture is left out."""


@dataclass(frozen=True)
class MixtureSource:
    """Where the adapters of a mixture are.

    Attributes:
        folders: of its adapters; None is the base model.
        weights: of the adapters, of sum 1.
    """

    folders: tuple[Path | None, ...]
    weights: tuple[float, ...]


ModelSource: TypeAlias = Path | MixtureSource
"""The folder of an adapter, or those of a mixture."""


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


def personal_adapters(run_folder: Path) -> dict[str, Path]:
    """{``hr/client_0+adapter``: folder} of the one adapter that `personalize` has made for each client.

    Raises:
        InputError: if ``personal_eval.json`` is not as `personalize` writes it.
    """
    folders = {client_id: run_folder / personal_adapter(client_id) for client_id in _personalized(run_folder)}
    return {f"{client_id}{ONE_ADAPTER}": folder for client_id, folder in folders.items() if folder.is_dir()}


def client_mixtures(run_folder: Path) -> dict[str, MixtureSource]:
    """{``hr/client_0+``: mixture} of the clients of a run that `personalize` has seen; none before.

    With ``personal.choose: level`` a client has its level alone. Levels below `NEGLIGIBLE_WEIGHT` are left out, and the
    other weights divided by their sum.

    Raises:
        InputError: if ``personal_eval.json`` is not as `personalize` writes it, or the levels' adapters are not there.
    """
    path = run_folder / PERSONAL_EVALUATION
    mixtures: dict[str, MixtureSource] = {}
    for client_id, values in _personalized(run_folder).items():
        folders: dict[str, Path | None] = {BASE: None}
        weights = {level: weight for level, weight in values["weights"].items() if weight >= NEGLIGIBLE_WEIGHT}
        for level in (level for level in weights if level != BASE):
            entry = values.get("adapters", {}).get(level)
            folder = None if entry is None else resolve_inside(run_folder, path, client_id, entry)
            if folder is None or not folder.is_dir():
                raise InputError(
                    f"{path}: {client_id}: expected the adapter of its level {level}, got none; earlier versions did "
                    f"not keep it: fl-lightning personalize --run {run_folder} writes it without training again"
                )
            folders[level] = folder
        total = sum(weights.values())
        mixtures[f"{client_id}{MIXTURE}"] = MixtureSource(
            tuple(folders[level] for level in weights), tuple(weight / total for weight in weights.values())
        )
    return mixtures


def _personalized(run_folder: Path) -> dict[str, dict[str, Any]]:
    """{client_id: what personalize has written about it}, in natural order; empty before."""
    path = run_folder / PERSONAL_EVALUATION
    value: Any = read_json(path) if path.exists() else {"clients": {}}
    clients: Any = value.get("clients") if isinstance(value, dict) else None
    if not isinstance(clients, dict) or not all(map(_has_weights, clients.values())):
        raise InputError(
            f"{path}: expected {{clients: {{client: {{weights: {{level: weight}}}}}}}}, as personalize writes it"
        )
    for name in (name for client_id in clients for name in client_id.split("/", 1)):
        check_name(name, f"{path}: name")
    if value.get("choose") == "level":
        clients = {client_id: {**values, "weights": {values["chosen"]: 1.0}} for client_id, values in clients.items()}
    return {client_id: clients[client_id] for client_id in sorted(clients, key=natural_key)}


def _has_weights(values: Any) -> bool:
    """Whether an entry of a client has weights of sum 1, and a level with one of them."""
    weights = values.get("weights") if isinstance(values, dict) else None
    return (
        isinstance(weights, dict)
        and isinstance(values.get("chosen"), str)
        and values["chosen"] in weights
        and isinstance(values.get("adapters", {}), dict)
        and all(isinstance(weight, float) and weight >= 0 for weight in weights.values())
        and math.isclose(sum(weights.values()), 1.0, abs_tol=1e-6)
    )


def all_adapters(run_folder: Path) -> dict[str, Path]:
    """{name: folder} of `shared_adapters`, then of `client_adapters`, then of `personal_adapters`.

    Raises:
        InputError: if an index is not as `fit` writes it.
    """
    of_clients = {name: folder for name, (_, folder) in client_adapters(run_folder).items()}
    return shared_adapters(run_folder) | of_clients | personal_adapters(run_folder)


def all_models(run_folder: Path, wanted: str | None = None) -> dict[str, ModelSource]:
    """{name: where its adapters are} of `all_adapters`, then of `client_mixtures`.

    Args:
        run_folder: of the run.
        wanted: the name that is asked for. If it is not a mixture's, mixtures without adapters are left out.

    Raises:
        InputError: if an index is not as `fit` writes it, or a mixture is wanted and its adapters are not there.
    """
    mixtures: dict[str, MixtureSource] = {}
    with contextlib.suppress(*() if wanted and wanted.endswith(MIXTURE) else (InputError,)):
        mixtures = client_mixtures(run_folder)
    return {**all_adapters(run_folder), **mixtures}


def chosen_adapters(run_folder: Path, names: Sequence[str] = ()) -> dict[str, Path]:
    """{name: folder} of the adapters named, in that order; of all departments and groups if none is named.

    Args:
        run_folder: of the run.
        names: departments, groups, clients such as ``hr/client_0``, and ``hr/client_0+adapter``.

    Raises:
        InputError: if the run has no adapter of a name, or an index is not as `fit` writes it.
    """
    shared = shared_adapters(run_folder)
    if not names:
        return shared
    adapters = all_adapters(run_folder)
    for name in names:
        if name.endswith(MIXTURE):
            raise InputError(
                f"--models {name}: a mixture has several adapters, which only serve and chat can use; "
                f"{name.removesuffix(MIXTURE)}{ONE_ADAPTER} is one adapter made of them"
            )
        if name not in adapters:
            hint = nearest(name, adapters) or f"; expected one of {', '.join(shared)}, or a client such as hr/client_0"
            raise InputError(f"--models: {run_folder} has no adapter of {name!r}{hint}")
    return {name: adapters[name] for name in names}


def folder_names(names: Iterable[str]) -> dict[str, str]:
    """{name: the same with ``-`` in place of ``/`` and ``+``}, in the order of `names`.

    Raises:
        InputError: if two results are equal, ignoring case.

    Example:
        >>> folder_names(["hr", "hr/client_0"])
        {'hr': 'hr', 'hr/client_0': 'hr-client_0'}
    """
    folders = {name: name.replace("/", "-").replace("+", "-") for name in names}
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
