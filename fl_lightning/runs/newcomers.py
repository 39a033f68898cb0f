"""Clients and departments that were not in a run: what they take from it, chosen by a few records, without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from fl_lightning.config import RunConfig
from fl_lightning.data.client_data import ClientData, load_clients
from fl_lightning.errors import InputError
from fl_lightning.federation.state import FederationState
from fl_lightning.modeling.limits import limit_length
from fl_lightning.modeling.lora import export_lora_adapter
from fl_lightning.personalization.mates import lent_adapters
from fl_lightning.personalization.shared_levels import mean_of_cluster, mean_of_departments
from fl_lightning.runs.build import RunComponents, build_components, load_run_config
from fl_lightning.runs.chains import ROOT, train_chain
from fl_lightning.runs.choice_table import show_choices
from fl_lightning.runs.level_adapters import department_clusters
from fl_lightning.runs.personalize import choose, measure, one_adapters
from fl_lightning.runs.resume import load_finished_state
from fl_lightning.state import LoraState
from fl_lightning.storage.files import write_json
from fl_lightning.storage.run_folder import locked
from fl_lightning.storage.run_layout import NEWCOMERS, newcomer_adapter
from fl_lightning.training.local_clients import LocalClients
from fl_lightning.training.own_adapters import own_adapter

COLUMNS = ("base", "level", "mixture", "adapter")
"""Held-out losses in the table: of the base model, the chosen level, the mixture, and the one adapter of it."""


def personalize_newcomers(run_folder: Path, data: str | Path, *, console: Console | None = None) -> dict[str, Any]:
    """Choose for newcomers between the adapters of a run by their training records, which train nothing.

    With ``personal.root: trained`` the adapter of all clients, and with ``personal.mates`` their own adapters, are
    trained first if `personalize` has not done it.

    Args:
        run_folder: of a finished run.
        data: folder of departments with the newcomers' records, in the layout of ``data.root``.
        console: for progress bars; None is standard error.

    Returns:
        What is written to ``newcomers.json``: ``clients`` with, for each newcomer, its held-out loss of ``base``,
        ``level``, ``mixture`` and ``adapter``, the loss ``by_level``, the ``chosen`` level and the ``weights``; and the
        ``mean`` over newcomers of these losses. Losses are mean nats for each target token.

    Raises:
        InputError: if the run is not finished, or a newcomer is a client of the run or has no records.
        RunError: if the training of the root cannot go on.
    """
    config = load_run_config(run_folder)
    with locked(run_folder):
        config = replace(config, fabric=config.fabric.alone())
        components = build_components(config, run_folder)
        state = load_finished_state(components, run_folder, config)
        newcomers = load_newcomers(data, config, components)
        clients = LocalClients(
            components.fabric, components.module, components.data, config.training, config.training.clients_at_once
        )
        train = partial(train_chain, console=console)
        root = None
        if "root" in config.personal.levels and config.personal.root == "trained":
            root = train("root", run_folder, config, components, clients).final_adapter(ROOT)
        own: dict[str, LoraState] = {}
        if config.personal.mates != "off":
            after = config.personal.own == "after"
            own_state = train("own", run_folder, config, components, clients) if after else state
            own = {client_id: own_adapter(config.personal, own_state, client_id) for client_id in components.data}
        clients.data = newcomers
        adapters = newcomers_levels(config, state, root, own, newcomers)
        if config.personal.adapter == "distill":
            config = replace(config, personal=replace(config.personal, adapter="svd"))  # which trains nothing
        choices = choose(config, clients, adapters)
        ones = one_adapters(config, clients, adapters, choices)
        result = measure(config.personal, clients, adapters, choices, ones)
        for client_id, levels in adapters.items():
            export_lora_adapter(components.module.model, run_folder / newcomer_adapter(client_id), ones[client_id])
            by_level = _held_out(clients, levels, client_id)
            result["clients"][client_id] |= {"by_level": by_level, "base": by_level.get("base")}
        values = [v for v in result["clients"].values() if v["level"] is not None]
        mean = {column: float(np.mean([v[column] for v in values])) if values else None for column in COLUMNS}
        written = {"data": str(data), "clients": result["clients"], "mean": mean}
        write_json(run_folder / NEWCOMERS, written)
    return written


def load_newcomers(data: str | Path, config: RunConfig, components: RunComponents) -> dict[str, ClientData]:
    """{client_id: records}, with the training records as selection records.

    Raises:
        InputError: if one of them is a client of the run.
    """
    base = components.module.model.get_base_model()
    loaded = load_clients(
        data,
        components.tokenizer,
        max_records=config.data.max_records,
        max_length=limit_length(config.data.max_length, base),
        eval_fraction=config.data.eval_fraction,
        eval_records=config.evaluation.records,
        columns=config.data.columns,
        seed=config.seed,
        exclude=config.data.exclude,
        exclude_records=config.data.exclude_records,
    )
    if known := [client_id for client_id in loaded if client_id in components.data]:
        raise InputError(
            f"{data}: expected clients that were not in the run, got {known[0]}; leave it out, or choose for the run's "
            "own clients without --data"
        )
    return {client_id: replace(client, train=[], selection=client.train) for client_id, client in loaded.items()}


def newcomers_levels(
    config: RunConfig,
    state: FederationState,
    root: LoraState | None,
    own: Mapping[str, LoraState],
    newcomers: Mapping[str, ClientData],
) -> dict[str, dict[str, LoraState]]:
    """{client_id: {level: adapter}}: those of the newcomer's department, or of every department if it has none.

    Args:
        config: of the run; ``personal.levels`` says which levels.
        state: of the run's federation.
        root: the adapter that all clients have trained; None for the mean of the departments.
        own: {client_id: own adapter} of the run's clients that lend it; of a newcomer's department, or of all.
        newcomers: {client_id: records}.
    """
    departments = {name: state.final_adapter(name) for name in state.departments}
    mean, assignments = mean_of_departments(departments, list(departments)), department_clusters(config, state)
    adapters: dict[str, dict[str, LoraState]] = {}
    for client_id, client in newcomers.items():
        shared: dict[str, LoraState | None] = {"root": mean if root is None else root}
        if client.department in departments:
            shared["department"] = departments[client.department]
            shared["cluster"] = mean_of_cluster(departments, assignments, client.department)
        elif "department" in config.personal.levels:
            shared |= {f"department {name}": adapter for name, adapter in departments.items()}
        shared["base"] = state.initial
        wanted = {level: a for level, a in shared.items() if level.split()[0] in config.personal.levels}
        adapters[client_id] = {level: adapter for level, adapter in wanted.items() if adapter is not None}
        adapters[client_id] |= lent_adapters(client_id, own, config.personal.mates)
        if not adapters[client_id]:
            raise InputError("personal.levels: expected department, root or base for newcomers, got none of them")
    return adapters


def _held_out(clients: LocalClients, levels: Mapping[str, LoraState], client_id: str) -> dict[str, float]:
    """{level: mean loss on the held-out records}; empty without any."""
    records = clients.data[client_id].eval
    if not records:
        return {}
    losses = np.concatenate(clients.target_losses(list(levels.values()), records)).mean(axis=0)
    return dict(zip(levels, map(float, losses), strict=True))


def show(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a line for each newcomer, and the mean."""
    show_choices(result, "newcomer", COLUMNS, console or Console())
