"""Losses of adapters on records that are not only their own: a matrix of pairs, and a mean without one client."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fl_lightning.data.client_data import ClientData
from fl_lightning.federation.protocol import ClientTransport
from fl_lightning.federation.state import clients_by_department
from fl_lightning.flora import WeightedMean
from fl_lightning.state import LoraState


def cross_losses(
    clients: ClientTransport, data: Mapping[str, ClientData], states: Mapping[str, LoraState], owners: Mapping[str, str]
) -> npt.NDArray[np.float64]:
    """Loss of adapter i on the held-out records of j.

    Args:
        clients: evaluates adapters.
        data: {client_id: records}.
        states: {department or group: adapter}.
        owners: {department: the department or group of `states` that it belongs to}.

    Returns:
        Shape (n, n), rows and columns sorted by name, in nats per token. Pairs without a measurement get the mean, so
        they do not affect the clustering.
    """
    names = sorted(states)
    jobs = [(name, client_id) for name in names for client_id in data if client_id.split("/", 1)[0] in owners]
    results = clients.evaluate((states[name], client_id) for name, client_id in jobs)
    loss_sums, num_tokens = np.zeros((2, len(names), len(names)))
    for (name, client_id), metrics in zip(jobs, results, strict=True):
        pair = names.index(name), names.index(owners[client_id.split("/", 1)[0]])
        loss_sums[pair] += metrics.loss_sum
        num_tokens[pair] += metrics.num_tokens
    measured = num_tokens > 0
    losses: npt.NDArray[np.float64] = loss_sums / np.where(measured, num_tokens, 1.0)
    return np.where(measured, losses, losses[measured].mean() if measured.any() else 0.0)


def contribution_measure(
    clients: ClientTransport, data: Mapping[str, ClientData], departments: Mapping[str, LoraState]
) -> Callable[[str, Mapping[str, Mapping[str, torch.Tensor]], Mapping[str, int]], Mapping[str, Any]]:
    """A function that measures what ``weighting: contribution`` needs, department by department.

    Args:
        clients: evaluates adapters.
        data: {client_id: records}.
        departments: {department: state before the round}.

    Returns:
        From (department, {client_id: shared tensors}, {client_id: weight}) to the options of the weighting.
    """
    members = functools.cache(lambda: clients_by_department(data))  # most rounds never ask

    def measure(
        department: str, updates: Mapping[str, Mapping[str, torch.Tensor]], examples: Mapping[str, int]
    ) -> Mapping[str, Any]:
        here = members()[department]
        with_all, without = leave_one_out(clients, here, departments[department], updates, examples)
        return {"loss_with": with_all, "loss_without": without}

    return measure


def leave_one_out(
    clients: ClientTransport,
    client_ids: Sequence[str],
    department: LoraState,
    updates: Mapping[str, Mapping[str, torch.Tensor]],
    examples: Mapping[str, int],
) -> tuple[float, dict[str, float]]:
    """Losses of a department's weighted mean with all its clients, and without each of them.

    For n updates, n + 1 adapters are evaluated on the held-out records of the department.

    Args:
        clients: evaluates adapters.
        client_ids: the clients whose held-out records are used.
        department: the department's state; tensors that are not in the updates are taken from it.
        updates: {client_id: shared tensors after its fit}.
        examples: {client_id: weight in the mean}.

    Returns:
        (loss with all clients, {client_id: loss without it}), in nats per token; the second is empty for one client.
    """

    def mean_without(excluded: str | None) -> LoraState:
        mean = WeightedMean()
        for client_id in updates:
            if client_id != excluded:
                mean.add(updates[client_id], examples[client_id])
        return {**department, **{name: tensor.float() for name, tensor in mean.value().items()}}

    excluded_clients: list[str | None] = [None, *(updates if len(updates) > 1 else ())]
    jobs = ((state, c) for excluded in excluded_clients for state in [mean_without(excluded)] for c in client_ids)
    results = clients.evaluate(jobs)
    losses = {}
    for number, excluded in enumerate(excluded_clients):
        metrics = results[number * len(client_ids) : (number + 1) * len(client_ids)]
        losses[excluded] = sum(m.loss_sum for m in metrics) / max(1, sum(m.num_tokens for m in metrics))
    return losses.pop(None), {str(client_id): loss for client_id, loss in losses.items()}
