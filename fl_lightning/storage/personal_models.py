"""Mixtures of adapters that a run has for its departments, and those that `personalize` has made for its clients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fl_lightning.errors import InputError
from fl_lightning.storage.components import MATES, OWN, OWN_ADAPTERS, join_weights
from fl_lightning.storage.files import check_name, natural_key, read_json
from fl_lightning.storage.run_adapters import BASE, resolve_inside
from fl_lightning.storage.run_layout import DEPARTMENT_MIXTURES, MIXTURE_LEVELS, PERSONAL_EVALUATION, personal_adapter

MIXTURE, ONE_ADAPTER = "+", "+adapter"
"""After a client's name: the mixture of its levels, and the one adapter made of them. Departments have the first."""
NEGLIGIBLE_WEIGHT = 0.005
"""A level with a smaller weight in a mixture is left out."""


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
    other weights divided by their sum. Clients whose mixture has an own adapter with gates (``personal.fedalt_gate``)
    are left out.

    Raises:
        InputError: if ``personal_eval.json`` is not as `personalize` writes it, or the levels' adapters are not there.
    """
    mend = f"earlier versions did not keep it: fl-lightning personalize --run {run_folder} writes it without training"
    path = run_folder / PERSONAL_EVALUATION
    return {
        f"{client_id}{MIXTURE}": _mixture(run_folder, path, client_id, values, f"{mend} again")
        for client_id, values in _personalized(run_folder).items()
        if not (values.get("gated") and values["weights"].get(OWN, 0.0) >= NEGLIGIBLE_WEIGHT)
    }


def department_mixtures(run_folder: Path) -> dict[str, MixtureSource]:
    """{``hr+``: mixture} of the departments of a run with ``dept_clusters.mix: predictions``; else none.

    Raises:
        InputError: if ``department_mixtures.json`` is not as `fit` writes it, or the levels' adapters are not there.
    """
    path = run_folder / DEPARTMENT_MIXTURES
    value: Any = read_json(path) if path.exists() else {"departments": {}}
    departments: Any = value.get("departments") if isinstance(value, dict) else None
    if not isinstance(departments, dict) or not all(map(_has_weights, departments.values())):
        raise InputError(f"{path}: expected {{departments: {{name: {{weights: …}}}}}}, as fit writes it")
    return {
        f"{check_name(name, f'{path}: name')}{MIXTURE}": _mixture(
            run_folder, path, name, departments[name], f"copy {MIXTURE_LEVELS}/ with the run"
        )
        for name in sorted(departments, key=natural_key)
    }


def _mixture(run_folder: Path, path: Path, owner: str, values: dict[str, Any], mend: str) -> MixtureSource:
    """The mixture of the levels whose weight counts.

    Raises:
        InputError: if an adapter is not there, with how to mend it.
    """
    folders: dict[str, Path | None] = {BASE: None}
    weights = {level: weight for level, weight in values["weights"].items() if weight >= NEGLIGIBLE_WEIGHT}
    for level in (level for level in weights if level != BASE):
        entry = values.get("adapters", {}).get(level)
        folder = None if entry is None else resolve_inside(run_folder, path, owner, entry)
        if folder is None or not folder.is_dir():
            raise InputError(f"{path}: {owner}: expected the adapter of its level {level}, got none; {mend}")
        folders[level] = folder
    total = sum(weights.values())
    return MixtureSource(
        tuple(folders[level] for level in weights), tuple(weight / total for weight in weights.values())
    )


def _personalized(run_folder: Path) -> dict[str, dict[str, Any]]:
    """{client_id: what personalize has written about it}, in natural order; empty before."""
    path = run_folder / PERSONAL_EVALUATION
    value: Any = read_json(path) if path.exists() else {"clients": {}}
    clients: Any = value.get("clients") if isinstance(value, dict) else None
    if not isinstance(clients, dict) or not all(map(_has_choice, clients.values())):
        raise InputError(
            f"{path}: expected {{clients: {{client: {{weights: {{level: weight}}}}}}}}, as personalize writes it"
        )
    for name in (name for client_id in clients for name in client_id.split("/", 1)):
        check_name(name, f"{path}: name")
    clients = {client_id: {**values, "weights": join_weights(values)} for client_id, values in clients.items()}
    if value.get("choose") == "level":
        clients = {client_id: {**values, "weights": {values["chosen"]: 1.0}} for client_id, values in clients.items()}
    return {client_id: clients[client_id] for client_id in sorted(clients, key=natural_key)}


def _has_choice(values: Any) -> bool:
    """Whether an entry of a client has weights, and a component with one of them."""
    if not _has_weights(values) or not isinstance(values.get("chosen"), str):
        return False
    return values["chosen"] in join_weights(values)


def _has_weights(values: Any) -> bool:
    """Whether an entry has weights of sum 1, those of several own adapters and of mates included."""
    keys = ("weights", OWN_ADAPTERS, MATES)
    if not isinstance(values, dict) or not all(isinstance(values.get(key, {}), dict) for key in keys):
        return False
    weights = join_weights(values)
    return (
        isinstance(values.get("adapters", {}), dict)
        and all(isinstance(weight, float) and weight >= 0 for weight in weights.values())
        and math.isclose(sum(weights.values()), 1.0, abs_tol=1e-6)
    )
