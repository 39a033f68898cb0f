"""One adapter out of a client's mixture: the weights on the parameters, exact or truncated, or distilled."""

from __future__ import annotations

from collections.abc import Mapping

from fl_lightning.config import RunConfig
from fl_lightning.linalg.adapter_algebra import concatenate_adapters
from fl_lightning.linalg.truncation import decompose, truncate
from fl_lightning.personalization.choice import Choice
from fl_lightning.seeding import derive_seed
from fl_lightning.state import LoraState
from fl_lightning.training.local_clients import LocalClients

MADE_BY = {"average": "mixture", "svd": "svd", "distill": "distillation"}
"""{``personal.adapter``: how files call what an adapter is made of, unless it is a level's}."""


def one_adapter(
    config: RunConfig,
    clients: LocalClients,
    client_id: str,
    levels: Mapping[str, LoraState],
    choice: Choice,
    *,
    refit: bool = False,
) -> LoraState:
    """One adapter for a client, made as ``personal.adapter`` says, or its level's where that is its choice.

    Distillation starts from the truncated average and trains on the client's training records.

    Args:
        config: of the run.
        clients: with the records of all clients.
        client_id: the client.
        levels: {level: adapter} of the client.
        choice: between them.
        refit: whether the levels have trained on the selection records, so that the adapter may, too.
    """
    states, kind = list(levels.values()), config.personal.adapter
    if not choice.mixes_parameters:
        return states[choice.level]
    weights = [float(weight) for weight in choice.weights]
    average = concatenate_adapters(states, weights)
    if kind == "average":
        return average
    nearest = truncate(decompose({client_id: average}, {client_id: 1}), config.lora.r).state
    if kind == "svd":
        return nearest
    client = clients.data[client_id]
    records = [*client.train, *(client.selection if refit else [])]
    seed = derive_seed(config.seed, "distill", client_id)
    return clients.distill(nearest, states, weights, records, epochs=config.personal.distill_epochs, seed=seed)
