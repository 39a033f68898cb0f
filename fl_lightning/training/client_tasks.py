"""The tasks of a round: which clients train, and from what they start."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from fl_lightning.aggregation.products.client_start import ClientStarts
from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.config import FederationConfig, LoraConfig
from fl_lightning.data.client_data import CENTRAL_CLIENT
from fl_lightning.federation.fit_buffers import RoundPlan
from fl_lightning.federation.protocol import ClientTask
from fl_lightning.federation.state import FederationState
from fl_lightning.training.client_sampling import sample_clients


def round_tasks(
    config: FederationConfig,
    lora: LoraConfig,
    state: FederationState,
    clients: Mapping[str, Sequence[str]],
    *,
    round_num: int,
    seed: int,
    evaluate: bool,
    plan: RoundPlan | None = None,
    present: Collection[str] | None = None,
) -> list[ClientTask]:
    """A task for each sampled client, departments in order; under ``share: central`` one for all records together.

    Args:
        config: the ``federation`` block.
        lora: the ``lora`` block, for its profiles.
        state: of the federation before the round.
        clients: {department: ids of all its clients}, departments in order.
        round_num: from 1.
        seed: the run seed.
        evaluate: whether clients evaluate their fitted adapters.
        plan: of the round in virtual time; None takes a sample of each department's clients.
        present: the clients that can be asked, if some of `clients` cannot: then a sample goes without them.
    """
    policy = share_policy(config.share)
    trainable_factor = policy.trainable_factor(round_num)
    if policy.is_central:
        shared = next(iter(state.departments.values()))  # all departments are alike
        return [ClientTask(CENTRAL_CLIENT, round_num, shared, seed, trainable_factor=trainable_factor)]
    starts = ClientStarts(config.combiner, state, round_num, seed)
    tasks = []
    for department, all_clients in clients.items():
        if plan is not None:
            chosen = [client_id for client_id in all_clients if client_id in plan.fits]
        else:
            chosen = sample_clients(
                all_clients,
                clients_per_round=config.clients_per_round,
                client_fraction=config.client_fraction,
                seed=seed,
                round_num=round_num,
                department=department,
            )
        for client_id in (c for c in chosen if present is None or c in present):
            scaling = lora.relative_scaling(client_id)
            start, product = starts.of(client_id, lora.rank(client_id), scaling)
            task = ClientTask(
                client_id, round_num, start, seed, evaluate, trainable_factor, scaling, frozen_product=product
            )
            version = round_num - 1 if plan is None else plan.fits[client_id].version
            if version < round_num - 1:  # it started rounds ago: compatibility.py allows no product and no other start
                task = replace(task, start=state.start_of(client_id, version), started_round=version + 1)
            tasks.append(task)
    return tasks
