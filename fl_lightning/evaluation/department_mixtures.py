"""Departments' mixtures of predictions: weights by the clients' selection records, losses on their held-out records.

The levels of a department are its own adapter, its cluster's and the root's, see
`fl_lightning.personalization.shared_levels`; their weights, and the mixture, `fl_lightning.personalization.mixture`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import RunError
from fl_lightning.federation.protocol import ClientTransport
from fl_lightning.federation.state import FederationState, clients_by_department
from fl_lightning.modeling.lora import read_lora_adapter
from fl_lightning.personalization.mixture import fit_weights, mixture_losses
from fl_lightning.personalization.shared_levels import levels_by_department
from fl_lightning.state import LoraState
from fl_lightning.storage.files import read_json, write_json
from fl_lightning.storage.personal_models import department_mixtures
from fl_lightning.storage.run_adapters import resolve_inside
from fl_lightning.storage.run_layout import DEPARTMENT_MIXTURES

MIXTURE = "mixture"
"""The key of a mixture's loss beside those of its levels."""

Levels = Mapping[str, Mapping[str, LoraState]]
"""{department: {level: adapter}}, the department's own first."""
Weights = Mapping[str, Mapping[str, float]]
"""{department: {level: weight}}, of sum 1."""


def levels_of(state: FederationState) -> dict[str, dict[str, LoraState]]:
    """{department: {level: adapter}} of the adapters that the run would give out now."""
    adapters = {name: state.final_adapter(name) for name in state.departments}
    return levels_by_department(adapters, state.cluster_assignments)


def fit_mixtures(
    clients: ClientTransport, data: Mapping[str, ClientData], levels: Levels, prior_tokens: float
) -> dict[str, dict[str, float]]:
    """The weights of every department's mixture, by EM on the selection records of all its clients.

    Args:
        clients: compute the losses.
        data: {client_id: records}.
        levels: of the departments.
        prior_tokens: tokens that count for a department's own adapter before any is seen. Without selection records
            a department keeps to it.

    Returns:
        {department: {level: weight}}.

    Raises:
        RunError: if a loss is not finite.
    """
    by_department = clients_by_department(data)
    weights: dict[str, dict[str, float]] = {}
    for department, adapters in levels.items():
        losses = clients.target_losses_of(list(adapters.values()), by_department[department], "selection")
        for_own = np.zeros(len(adapters))
        for_own[0] = max(prior_tokens, 1e-3)  # above 0, for a department without records
        try:
            fitted = fit_weights(losses, for_own)
        except ValueError as error:
            raise RunError(
                f"the mixture of {department}: {error}; lower training.learning_rate, or choose another "
                "federation.dept_clusters.mix"
            ) from error
        weights[department] = dict(zip(adapters, map(float, fitted), strict=True))
    return weights


def measure_mixtures(
    clients: ClientTransport, data: Mapping[str, ClientData], levels: Levels, weights: Weights
) -> dict[str, dict[str, float]]:
    """Mean held-out losses of every department's levels and of their mixture, over all target tokens of its clients.

    Args:
        clients: compute the losses.
        data: {client_id: records}.
        levels: of the departments.
        weights: of the same levels, in the same order.

    Returns:
        {department: {level or ``mixture``: loss in nats}}; without departments that have no held-out records.
    """
    by_department = clients_by_department(data)
    measured: dict[str, dict[str, float]] = {}
    for department, adapters in levels.items():
        losses = clients.target_losses_of(list(adapters.values()), by_department[department], "eval")
        if len(losses):
            mixture = mixture_losses(losses, np.array(list(weights[department].values())))
            means = {level: float(loss) for level, loss in zip(adapters, losses.mean(axis=0), strict=True)}
            measured[department] = {**means, MIXTURE: float(mixture.mean())}
    return measured


def evaluate_mixtures(
    run_folder: Path, data: Mapping[str, ClientData], clients: ClientTransport, initial: LoraState
) -> dict[str, Any] | None:
    """Evaluate the mixtures of a run folder and write their losses into ``department_mixtures.json`` again.

    Args:
        run_folder: of the run.
        data: {client_id: records}.
        clients: compute the losses.
        initial: the initial adapter.

    Returns:
        The contents of that file; None if the run mixes no predictions.

    Raises:
        InputError: if the file is not as `fit` writes it, or an adapter is missing or does not fit.
    """
    path = run_folder / DEPARTMENT_MIXTURES
    if not path.exists():
        return None
    department_mixtures(run_folder)  # checks the file
    value: dict[str, Any] = read_json(path)
    known = clients_by_department(data)
    entries = {name: entry for name, entry in value["departments"].items() if name in known}

    def read(name: str, level: str) -> LoraState:
        folder = resolve_inside(run_folder, path, name, entries[name]["adapters"].get(level))
        return read_lora_adapter(folder, initial, any_rank=True)

    levels = {name: {level: read(name, level) for level in entry["weights"]} for name, entry in entries.items()}
    losses = measure_mixtures(clients, data, levels, {name: entry["weights"] for name, entry in entries.items()})
    for name, entry in entries.items():
        entry["losses"] = losses.get(name, {})
    value["mean"] = mean_losses(losses)
    write_json(path, value)
    return value


def describe_mixture(department: str, weights: Mapping[str, float], losses: Mapping[str, float]) -> str:
    """A department's weights and held-out losses in words.

    Example:
        >>> describe_mixture("hr", {"department": 0.75, "root": 0.25}, {"department": 2.5, "root": 3.0, "mixture": 2.4})
        'hr mixes department 75 %, root 25 %; held-out loss 2.400 (department 2.500, root 3.000)'
    """
    text = f"{department} mixes {', '.join(f'{level} {100 * weight:.0f} %' for level, weight in weights.items())}"
    if not losses:
        return text
    by_level = ", ".join(f"{level} {losses[level]:.3f}" for level in weights)
    return f"{text}; held-out loss {losses[MIXTURE]:.3f} ({by_level})"


def mean_losses(losses: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Means over departments of the mixture's loss and of those of the levels that all departments have.

    Example:
        >>> mean_losses({"hr": {"department": 1.0, "mixture": 1.0}, "it": {"department": 3.0, "mixture": 2.0}})
        {'department': 2.0, 'mixture': 1.5}
    """
    rows = list(losses.values())
    common = [key for key in (rows[0] if rows else {}) if all(key in row for row in rows)]
    return {key: float(np.mean([row[key] for row in rows])) for key in common}
