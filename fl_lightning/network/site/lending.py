"""Own adapters that sites lend each other at the end of a run: what a site gives away, and what it takes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch

from fl_lightning.config import RunConfig
from fl_lightning.federation.state import FederationState
from fl_lightning.network.site.levels import check_client_id
from fl_lightning.network.validation import problem_with_adapter
from fl_lightning.personalization.mates import lent_adapters
from fl_lightning.state import LoraState, norm, snapshot
from fl_lightning.training.own_adapters import own_adapter

log = logging.getLogger(__name__)


def lent_adapter(
    config: RunConfig, state: FederationState, client_id: str, department: Mapping[str, torch.Tensor]
) -> LoraState:
    """The own adapter that a site lends, as `personalize` would use it there.

    Args:
        config: of the site; it alone decides.
        state: the site's own adapter, from `from_store`.
        client_id: of the site.
        department: the department's adapter after the run, with which an own adapter is mixed under APFL.

    Raises:
        ValueError: unless ``network.lend`` is on.
    """
    if config.network.lend == "off":
        raise ValueError("network.lend: expected department or all at a site that is to lend its own adapter, got off")
    state = replace(state, departments={client_id.split("/", 1)[0]: dict(department)})
    log.info("lending this site's own adapter (network.lend: %s)", config.network.lend)
    return snapshot(own_adapter(config.personal, state, client_id))


def borrowed_adapters(
    config: RunConfig,
    client_id: str,
    lent: Mapping[object, LoraState],
    initial: Mapping[str, torch.Tensor],
    round_num: int,
) -> dict[str, LoraState]:
    """{client_id: own adapter} of those that the server has handed over and that this site can use.

    One that does not fit the model, or has moved further than fits of so many rounds may move, is logged and left out.

    Args:
        config: of the site.
        client_id: of the site.
        lent: {client_id: own adapter}, as received.
        initial: the adapter from which everybody starts.
        round_num: the run's last round.

    Raises:
        InputError: for a name that is none of a client.
        ValueError: if this site has not asked for one of them.
    """
    names = {check_client_id(name): state for name, state in lent.items()}
    asked_for = lent_adapters(client_id, names, config.personal.mates)
    if len(asked_for) != len(names):
        raise ValueError(
            f"personal.mates: expected own adapters that {config.personal.mates} asks for, got those of "
            f"{', '.join(sorted(names))[:200]}"
        )
    # A round moves an adapter by this at most, see `problem_with_update`. Under APFL the department's is joined to it.
    limit = 2 * norm(initial) * (1 + int(round_num) * config.federation.max_update_norm)
    borrowed: dict[str, LoraState] = {}
    for name, state in names.items():
        problem = problem_with_adapter(state, initial)
        if problem is None and (length := norm(state)) > limit:
            problem = f"norm: expected at most {limit:.3g}, got {length:.3g}"
        if problem is None:
            borrowed[name] = state
        else:
            log.warning("the own adapter that %s lends is left out: %s", name, problem)
    return borrowed
