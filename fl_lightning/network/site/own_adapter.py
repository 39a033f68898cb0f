"""A site's own adapter beside the federation, under ``personal.own: during``: it is trained here and sent by no fit.

Its fits are those of `fl_lightning.training.own_adapters` in one process: the site is a federation of one client, whose
own adapter, and under early stopping that of its best round, are in the site's store between rounds.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch

from fl_lightning.aggregation.updates import problem_with_update
from fl_lightning.clustering.tree import NO_GROUPS
from fl_lightning.config import PersonalConfig, RunConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.evaluation.early_stopping import OWN, keep_best_rounds
from fl_lightning.federation.protocol import ClientTask, ClientTransport, ClientUpdate
from fl_lightning.federation.state import BestRound, FederationState
from fl_lightning.state import LoraState, norm
from fl_lightning.training.own_adapters import own_tasks

log = logging.getLogger(__name__)

NEWEST, BEST, BEST_ROUND = "own_adapter", "best_own_adapter", "best_own_round"
"""Kinds of tensors in the store: the adapter, that of the best round, and this round's ``number`` and ``loss``."""


def from_store(client_id: str, initial: LoraState, saved: Mapping[str, LoraState]) -> FederationState:
    """The own adapter of a site, as a federation of this client alone; without one before its first fit.

    Args:
        client_id: of the site.
        initial: the adapter from which everybody starts.
        saved: {kind: tensors} of a round, see `SiteStore`.
    """
    newest, best = ({n: saved.get(kind, {})[n] for n in sorted(saved.get(kind, {}))} for kind in (NEWEST, BEST))
    best_round = saved.get(BEST_ROUND, {})
    return FederationState(
        0,
        initial,
        {},
        own_adapters={client_id: newest} if newest else {},
        best={client_id + OWN: BestRound(int(best_round["number"]), float(best_round["loss"]), best)} if best else {},
    )


def to_store(state: FederationState) -> dict[str, Mapping[str, torch.Tensor]]:
    """{kind: tensors} of a `from_store`."""
    saved: dict[str, Mapping[str, torch.Tensor]] = {}
    for own in state.own_adapters.values():
        saved[NEWEST] = own
    for best in state.best.values():
        saved[BEST] = best.adapter
        saved[BEST_ROUND] = {name: torch.tensor(value, dtype=torch.float64)
                             for name, value in (("number", best.round_num), ("loss", best.loss))}  # fmt: skip
    return saved


def own_fit(config: PersonalConfig, state: FederationState, task: ClientTask) -> list[ClientTask]:
    """The fit of the own adapter beside the task that the server has sent; none unless ``own: during``.

    Under Ditto and APFL the start of the task is the department's adapter, see `check_between_machines`.
    """
    product = {task.department: dict(task.frozen_product)} if task.frozen_product else {}
    return own_tasks(config, replace(state, departments={task.department: dict(task.start)}, products=product), [task])


def after_fit(
    config: RunConfig,
    state: FederationState,
    task: ClientTask,
    update: ClientUpdate,
    clients: ClientTransport,
    data: ClientData,
) -> FederationState:
    """The own adapter after a fit; it stays if the fit has failed, and under early stopping its best round is kept.

    Args:
        config: of the site.
        state: before the fit.
        task: from `own_fit`.
        update: the result.
        clients: evaluate adapters.
        data: the site's records.
    """
    if problem := problem_with_update(update, task, config.federation.max_update_norm * norm(state.initial)):
        log.warning("round %d: dropping the fit of this site's own adapter: %s", task.round_num, problem)
        return state
    if update.metrics is not None and update.metrics.num_tokens:
        loss = update.metrics.loss_sum / update.metrics.num_tokens
        log.info("round %d: own adapter fitted, held-out loss %.4g", task.round_num, loss)
    state = replace(state, round_num=task.round_num, own_adapters={data.client_id: update.state})
    is_evaluated = task.round_num % config.evaluation.every == 0 or task.round_num == config.federation.rounds
    if config.training.early_stopping and is_evaluated:
        state, metrics = keep_best_rounds(state, clients, {data.client_id: data}, NO_GROUPS)
        if "selection/own_loss" in metrics:
            log.info("round %d: own adapter: selection loss %.4g", task.round_num, metrics["selection/own_loss"])
    return state
