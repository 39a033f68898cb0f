"""Choose what each client of a finished run takes: its own adapter, a shared one, or a mixture of their predictions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from rich.console import Console

from fl_lightning.config import PersonalConfig, RunConfig
from fl_lightning.data.tokenization import Example
from fl_lightning.errors import InputError
from fl_lightning.federation.state import FederationState, clients_by_department
from fl_lightning.linalg.own_mixture import ALPHA, alpha_of, is_gated
from fl_lightning.modeling.lora import export_lora_adapter
from fl_lightning.personalization.choice import Choice, choose_levels
from fl_lightning.personalization.mixture import mixture_losses
from fl_lightning.runs.artifacts import PERSONAL_LOSSES
from fl_lightning.runs.build import build_components, load_run_config
from fl_lightning.runs.chains import train_chain
from fl_lightning.runs.choice_table import show_choices
from fl_lightning.runs.level_adapters import adapters_by_level, department_clusters, export_level_adapters
from fl_lightning.runs.one_adapter import MADE_BY, one_adapter
from fl_lightning.runs.resume import load_finished_state
from fl_lightning.state import LoraState
from fl_lightning.storage.components import MATES, level_of, split_weights
from fl_lightning.storage.files import write_json
from fl_lightning.storage.run_folder import locked
from fl_lightning.storage.run_layout import PERSONAL_EVALUATION, personal_adapter
from fl_lightning.training.local_clients import LocalClients

log = logging.getLogger(__name__)

HURT = 0.02
"""A client is hurt if its loss is higher by more than this than with its own adapter."""


def personalize(run_folder: Path, *, console: Console | None = None) -> dict[str, Any]:
    """Choose for every client by its selection records, and measure on its held-out records, which choose nothing.

    Trains what the levels need and the run does not have: the clients' own adapters, and that of the root under
    ``personal.root: trained``.

    Args:
        run_folder: of a finished run with ``data.selection_fraction``.
        console: for progress bars; None is standard error.

    Returns:
        What is written to ``personal_eval.json``: ``levels``; ``clients`` with, for each client, its held-out loss of
        ``own``, ``level``, ``mixture`` and ``adapter``, the ``chosen`` level, the ``weights`` by level (and of each of
        several ``own_adapters`` and of its ``mates``), the folders of the ``adapters``, ``apfl_alpha`` if it has
        learned one, and ``gated`` if its own adapter is no plain one: that has no folder, and a client that chooses it
        no ``adapter``; the ``mean`` over clients of these losses; ``hurt``, the share of clients that lose by what
        `personal.choose` gives them. Losses are mean nats for each target token; a client without held-out records has
        none.

    Raises:
        InputError: if the run is not finished, has no selection records, or was trained with another config or base or
            on other records than are there now.
        RunError: if the training of a level cannot go on.
    """
    config = load_run_config(run_folder)
    check_selection(config, run_folder)
    with locked(run_folder):
        config = replace(config, fabric=config.fabric.alone())
        components = build_components(config, run_folder)
        state = load_finished_state(components, run_folder, config)
        clients = LocalClients(
            components.fabric, components.module, components.data, config.training, config.training.clients_at_once
        )
        of_run = partial(adapters_by_level, run_folder, config, components, clients, console=console)
        adapters = of_run(state)
        choices = choose(config, clients, adapters)
        if config.personal.refit:
            refitted = train_chain("department", run_folder, config, components, clients, refit=True, console=console)
            # The choice is between these clusters; those that the other records find may be others.
            state = replace(refitted, cluster_assignments=state.cluster_assignments)
            adapters = of_run(state, refit=True)
        ones = one_adapters(config, clients, adapters, choices, refit=config.personal.refit)
        result = measure(config.personal, clients, adapters, choices, ones)
        add_alphas(result, state)
        write_choices(run_folder, components.module.model, adapters, ones, result, department_clusters(config, state))
    return result


def check_selection(config: RunConfig, run_folder: Path) -> None:
    """Check that a run has selection records.

    Raises:
        InputError: if it has none.
    """
    if not config.data.selection_fraction:
        raise InputError(
            f"{run_folder}: expected a run with selection records, which have not trained, got data.selection_fraction "
            "0; start one with --data.selection_fraction 0.2"
        )


def choose(
    config: RunConfig, clients: LocalClients, adapters: Mapping[str, Mapping[str, LoraState]]
) -> dict[str, Choice]:
    """{client_id: what its selection records choose}.

    Args:
        config: of the run.
        clients: with the records of all clients.
        adapters: {client_id: {level: adapter}}, own first.

    Raises:
        InputError: if no client of a department has a selection record.
    """
    choices: dict[str, Choice] = {}
    for names in clients_by_department(adapters).values():
        records = {client_id: clients.data[client_id].selection for client_id in names}
        losses = {c: clients.target_losses_of(list(adapters[c].values()), [c], "selection") for c in names}
        try:
            named = {c: list(map(level_of, adapters[c])) for c in names}
            chosen = choose_levels(losses, config.personal.prior, levels=named)
        except ValueError as error:
            raise InputError(
                f"data.selection_fraction: {names[0]}: {error}; a client with one training record has none"
            ) from error
        for client_id, choice in chosen.items():
            if any(map(is_gated, adapters[client_id].values())):
                choice = replace(choice, mixes_parameters=False)
            elif records[client_id]:
                kind = replace(choice, mixes_parameters=True)
                mixed = one_adapter(config, clients, client_id, adapters[client_id], kind)
                loss = clients.target_losses_of([mixed], [client_id], "selection").mean()
                of_level = losses[client_id][:, choice.level].mean()
                choice = replace(choice, mixes_parameters=bool(loss <= of_level))
            choices[client_id] = choice
    return choices


def one_adapters(
    config: RunConfig,
    clients: LocalClients,
    adapters: Mapping[str, Mapping[str, LoraState]],
    choices: Mapping[str, Choice],
    *,
    refit: bool = False,
) -> dict[str, LoraState]:
    """{client_id: `one_adapter` of its choice}."""
    return {c: one_adapter(config, clients, c, levels, choices[c], refit=refit) for c, levels in adapters.items()}


def add_alphas(result: dict[str, Any], state: FederationState) -> None:
    """Add the weight that each client has learned under ``personal.apfl_rate`` to the result of `measure`."""
    for client_id, values in result["clients"].items():
        if (alpha := alpha_of(state.own_adapters.get(client_id, {}))) is not None:
            values[ALPHA] = alpha


def write_choices(
    run_folder: Path,
    model: PeftModel,
    adapters: Mapping[str, Mapping[str, LoraState]],
    ones: Mapping[str, LoraState],
    result: dict[str, Any],
    assignments: Mapping[str, int],
) -> None:
    """Write what clients have chosen: their one adapters, those of all levels, and ``personal_eval.json`` last.

    Args:
        run_folder: locked by this process.
        model: of the run.
        adapters: {client_id: {level: adapter}}.
        ones: {client_id: one adapter}.
        result: of `measure`; gets the folders of the levels.
        assignments: {department: cluster}.
    """
    for client_id, adapter in ones.items():
        if not is_gated(adapter):
            export_lora_adapter(model, run_folder / personal_adapter(client_id), adapter)
    if gated := [client_id for client_id, levels in adapters.items() if any(map(is_gated, levels.values()))]:
        log.warning(
            "own adapters of %d clients have gates (personal.fedalt_gate), for which PEFT has no format: none is "
            "written, none is part of one adapter, and serve and chat have no mixture with one; their losses are right",
            len(gated),
        )
    folders = export_level_adapters(model, run_folder, adapters, assignments)
    for client_id, values in result["clients"].items():
        values["adapters"] = folders[client_id]
        values |= {"gated": True} if client_id in gated else {}
    write_json(run_folder / PERSONAL_EVALUATION, result)


def measure(
    config: PersonalConfig,
    clients: LocalClients,
    adapters: Mapping[str, Mapping[str, LoraState]],
    choices: Mapping[str, Choice],
    ones: Mapping[str, LoraState],
) -> dict[str, Any]:
    """Losses of what the clients have chosen on their held-out records, as `personalize` returns them.

    Args:
        config: the ``personal`` block.
        clients: with the records of all clients.
        adapters: {client_id: {level: adapter}}, own first.
        choices: {client_id: choice between them}.
        ones: {client_id: one adapter}.
    """
    results: dict[str, dict[str, Any]] = {}
    for client_id, components in adapters.items():
        choice = choices[client_id]
        results[client_id] = {
            **_held_out_losses(clients, components, choice, ones[client_id], clients.data[client_id].eval),
            "chosen": list(components)[choice.level],
            **split_weights(dict(zip(components, map(float, choice.weights), strict=True))),
            "adapter_is": MADE_BY[config.adapter] if choice.mixes_parameters else list(components)[choice.level],
        }
    measured = [values for values in results.values() if values["level"] is not None]
    kinds = (
        [kind for kind in PERSONAL_LOSSES if all(values[kind] is not None for values in measured)] if measured else []
    )
    hurt = [values[config.choose] - values["own"] > HURT for values in measured if "own" in kinds]
    levels = [level for level in config.levels if level != "own" or config.own != "off"]
    return {
        "levels": [*levels, *([MATES] if config.mates != "off" else [])],
        "choose": config.choose,
        "refit": config.refit,
        "clients": results,
        "mean": {
            kind: float(np.mean([v[kind] for v in measured])) if kind in kinds else None for kind in PERSONAL_LOSSES
        },
        "hurt": float(np.mean(hurt)) if hurt else None,
    }


def _held_out_losses(
    clients: LocalClients, levels: Mapping[str, LoraState], choice: Choice, one: LoraState, records: Sequence[Example]
) -> dict[str, float | None]:
    if not records:
        return dict.fromkeys(PERSONAL_LOSSES)
    by_level = np.concatenate(clients.target_losses(list(levels.values()), records))
    level = float(by_level[:, choice.level].mean())
    adapter = None if is_gated(one) else level
    if choice.mixes_parameters:  # evaluated alone, since its rank may be the sum of theirs
        adapter = float(np.concatenate(clients.target_losses([one], records)).mean())
    return {
        "own": float(by_level[:, 0].mean()) if "own" in levels else None,
        "level": level,
        "mixture": float(mixture_losses(by_level, choice.weights).mean()),
        "adapter": adapter,
    }


def show(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a line for each client, the mean, and how many are hurt."""
    console = console or Console()
    show_choices(result, "client", PERSONAL_LOSSES, console)
    if result["hurt"] is not None:
        num = sum(values["own"] is not None for values in result["clients"].values())
        console.print(
            f"{round(result['hurt'] * num)} of {num} clients lose more than {HURT} by their {result['choose']} against "
            "their own adapter"
        )
