"""``personalize`` at a site: nothing leaves it, neither records nor its own adapter, its losses or its weights.

The site chooses between the adapters that it has got at the end of the run: its department's, its cluster's, the mean
of all, and own adapters that other sites lend if it has asked for them.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from fl_lightning.errors import InputError
from fl_lightning.modeling.lora import collect_lora_state
from fl_lightning.network.site.levels import read_client_id, read_levels, read_mates
from fl_lightning.network.site.own_adapter import from_store
from fl_lightning.network.site.run import load_client
from fl_lightning.network.site.store import SiteStore
from fl_lightning.personalization.mates import lent_adapters
from fl_lightning.runs.build import build_model_components, load_run_config
from fl_lightning.runs.chains import train_own_chains
from fl_lightning.runs.personalize import add_alphas, check_selection, choose, measure, one_adapters, write_choices
from fl_lightning.state import LoraState
from fl_lightning.storage.components import level_of
from fl_lightning.storage.run_folder import locked
from fl_lightning.training.local_clients import LocalClients
from fl_lightning.training.own_adapters import own_adapter

log = logging.getLogger(__name__)


def personalize_site(folder: Path, *, console: Console | None = None) -> dict[str, Any]:
    """Choose for one site by its selection records, as `fl_lightning.runs.personalize.personalize` does for a run.

    Trains the site's own adapter first, for as many rounds as the run had, unless it was trained beside the run.

    Args:
        folder: of the site and the run, as ``client`` has left it.
        console: for progress bars; None is standard error.

    Returns:
        What is written to ``personal_eval.json``.

    Raises:
        InputError: if the site has no selection records, asks for a refit, or its base or records are not
            those of the run.
        RunError: if the training of its own adapter cannot go on.
    """
    config = load_run_config(folder)
    check_selection(config, folder)
    if config.personal.refit:
        raise InputError("personal.refit: expected false at a site, which has nobody else's records, got true")
    with locked(folder):
        client_id = read_client_id(folder)
        config = replace(config, fabric=config.fabric.alone())
        components = build_model_components(config, partial(load_client, config, client_id))
        clients = LocalClients(
            components.fabric, components.module, components.data, config.training, config.training.clients_at_once
        )
        initial = collect_lora_state(components.module.model)
        levels: dict[str, LoraState] = {**read_levels(folder, initial), "base": initial}
        if config.personal.own == "during":
            saved = SiteStore(folder).load_before(config.federation.rounds + 1)[1]
            departments = {components.data[client_id].department: levels["department"]}
            state = replace(from_store(client_id, initial, saved), departments=departments)
            levels = {"own": own_adapter(config.personal, state, client_id), **levels}
        elif config.personal.own == "after":
            states = train_own_chains(folder, config, components, clients, console=console)
            levels = {name: state.final_own_adapter(client_id) for name, state in states.items()} | levels
        wanted = [name for level in config.personal.levels for name in levels if level_of(name) == level]
        lent = lent_adapters(client_id, read_mates(folder, initial), config.personal.mates)
        if config.personal.mates != "off" and not lent:
            log.warning("personal.mates: %s: no other site has lent its own adapter", config.personal.mates)
        adapters = {client_id: {name: levels[name] for name in wanted} | lent}
        choices = choose(config, clients, adapters)
        ones = one_adapters(config, clients, adapters, choices)
        result = measure(config.personal, clients, adapters, choices, ones)
        if config.personal.own == "during":
            add_alphas(result, state)
        write_choices(folder, components.module.model, adapters, ones, result, {client_id.split("/")[0]: 0})
    return result
