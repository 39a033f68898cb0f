"""Loss, perplexity and token accuracy of adapters on held-out records, and the two JSON files that hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics import MeanMetric

from fl_lightning.clustering.tree import NO_GROUPS, Tree
from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import InputError, RunError
from fl_lightning.federation.protocol import Clients, Metrics
from fl_lightning.flora import WeightedMean
from fl_lightning.modeling.lora import read_lora_adapter
from fl_lightning.state import LoraState
from fl_lightning.storage.files import write_json
from fl_lightning.storage.run_layout import CLIENTS, DEPARTMENTS, GROUPS, client_exports, shared_adapters, within

Figures = dict[str, float]


def figures(metrics: Metrics) -> Figures:
    """Loss (nats a token), perplexity and token accuracy of one adapter on one set of records."""
    loss, accuracy = _mean(), _mean()
    loss.update(metrics.loss_sum / metrics.num_tokens, weight=metrics.num_tokens)
    accuracy.update(metrics.correct / metrics.num_tokens, weight=metrics.num_tokens)
    return as_figures(float(loss.compute()), float(accuracy.compute()))


def _mean() -> MeanMetric:
    return MeanMetric(sync_on_compute=False)  # the first process computes alone; the others would never join in


def as_figures(loss: float, token_accuracy: float) -> Figures:
    """The three figures; the perplexity of a loss above 700 nats is reported as that of 700."""
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "token_accuracy": token_accuracy}


def mean_figures(departments: Mapping[str, Figures]) -> Figures:
    """Unweighted mean over departments (or clients) of loss and accuracy; perplexity is that of the mean loss."""
    loss, accuracy = _mean(), _mean()
    for values in departments.values():
        loss.update(values["loss"])
        accuracy.update(values["token_accuracy"])
    return as_figures(float(loss.compute()), float(accuracy.compute()))


def evaluate_departments(
    clients: Clients, data: Mapping[str, ClientData], states: Mapping[str, LoraState]
) -> tuple[dict[str, Figures], float]:
    """Each department's figures over all tokens of its clients, and the unweighted mean loss over clients.

    A client that gives no figures, as one on the network may, is left out, and so is a department without any; where
    nobody gives figures the mean is infinite.

    Raises:
        RunError: if a loss is not finite.
    """
    results = clients.evaluate([(states[client.department], client_id) for client_id, client in data.items()])
    departments = _pooled([client.department for client in data.values()], results)
    heard = {client_id: figures(m) for client_id, m in zip(data, results, strict=True) if m.num_tokens}
    return departments, mean_figures(heard)["loss"] if heard else math.inf


def evaluate_groups(
    clients: Clients, data: Mapping[str, ClientData], states: Mapping[str, LoraState], tree: Tree
) -> dict[str, Figures]:
    """Each group's figures over all tokens of all clients below it.

    Raises:
        RunError: if a loss is not finite.
    """
    below = {group: set(tree.departments(group)) for group in tree.groups}
    jobs = [(g, client_id) for g in below for client_id, client in data.items() if client.department in below[g]]
    return _pooled([group for group, _ in jobs], clients.evaluate((states[group], who) for group, who in jobs))


def _pooled(names: Sequence[str], results: Sequence[Metrics]) -> dict[str, Figures]:
    """Figures over all tokens of the results that belong to a name."""
    pooled: dict[str, Metrics] = {}
    for name, metrics in zip(names, results, strict=True):
        if not metrics.num_tokens:
            continue  # nobody answered
        pooled[name] = pooled[name] + metrics if name in pooled else metrics
    for name, metrics in pooled.items():
        if not math.isfinite(metrics.loss_sum):
            raise RunError(
                f"the adapter of {name} gives a loss of {metrics.loss_sum} on its held-out records; lower "
                "training.learning_rate or federation.flora.momentum, or choose another fabric.precision"
            )
    return {name: figures(metrics) for name, metrics in pooled.items()}


def cross_losses(
    clients: Clients, data: Mapping[str, ClientData], states: Mapping[str, LoraState], owners: Mapping[str, str]
) -> npt.NDArray[np.float64]:
    """Loss of i's adapter on j's held-out records: shape (n, n), names sorted.

    Where no client of j gives figures the mean of the others stands.

    Args:
        clients: evaluates adapters.
        data: {client_id: records}.
        states: {department or group: adapter}.
        owners: {department: which of these it belongs to}.
    """
    names = sorted(states)
    jobs = [(name, client_id) for name in names for client_id, client in data.items() if client.department in owners]
    results = clients.evaluate((states[name], client_id) for name, client_id in jobs)
    sums, tokens = np.zeros((2, len(names), len(names)))
    for (name, client_id), metrics in zip(jobs, results, strict=True):
        place = names.index(name), names.index(owners[data[client_id].department])
        sums[place] += metrics.loss_sum
        tokens[place] += metrics.num_tokens
    known = tokens > 0
    found: npt.NDArray[np.float64] = sums / np.where(known, tokens, 1.0)
    # A pair without figures is taken for one like the others: it draws departments neither together nor apart.
    return np.where(known, found, found[known].mean() if known.any() else 0.0)


def leave_one_out(
    clients: Clients,
    client_ids: Sequence[str],
    department: LoraState,
    updates: Mapping[str, Mapping[str, torch.Tensor]],
    examples: Mapping[str, int],
) -> tuple[float, dict[str, float]]:
    """Losses of a department's mean with all its clients, and without each of them.

    That is n + 1 adapters on the held-out records of the department, for n updates.

    Args:
        clients: evaluates adapters.
        client_ids: whose held-out records are looked at.
        department: its state; what the updates do not name is taken from here.
        updates: {client_id: what it sent}.
        examples: {client_id: weight in the mean}.

    Returns:
        (loss with all, {client_id: loss without it}); the second is empty for a single client.
    """

    def mean(left_out: str | None) -> LoraState:
        total = WeightedMean()
        for client_id in updates:
            if client_id != left_out:
                total.add(updates[client_id], examples[client_id])
        return {**department, **{name: tensor.float() for name, tensor in total.value().items()}}

    candidates: list[str | None] = [None, *(updates if len(updates) > 1 else ())]
    jobs = ((state, c) for candidate in candidates for state in [mean(candidate)] for c in client_ids)
    results = clients.evaluate(jobs)
    losses = {}
    for number, candidate in enumerate(candidates):
        own = results[number * len(client_ids) : (number + 1) * len(client_ids)]
        losses[candidate] = sum(m.loss_sum for m in own) / max(1, sum(m.num_tokens for m in own))
    return losses.pop(None), {str(client_id): loss for client_id, loss in losses.items()}


def summary(
    base: Mapping[str, Figures],
    final: Mapping[str, Figures],
    groups: Mapping[str, Mapping[str, Figures]] | None = None,
) -> dict[str, Any]:
    """What stands in ``federated_eval.json``: departments with figures before and after; the mean is over them.

    Args:
        base: {department: figures of the base model}.
        final: {department: figures of its adapter}.
        groups: {group: {"base": figures, "final": figures}}, where there are groups.
    """
    both = sorted(base.keys() & final.keys())
    departments = {d: {"base": base[d], "final": final[d]} for d in both}
    sides = {"base": base, "final": final}
    mean = {side: mean_figures({d: own[d] for d in both}) for side, own in sides.items()} if both else {}
    return {"departments": departments, "mean": mean, **({"groups": groups} if groups else {})}


def evaluate_run(
    run_folder: Path,
    data: Mapping[str, ClientData],
    clients: Clients,
    initial: LoraState,
    *,
    tree: Tree = NO_GROUPS,
    any_rank: bool = False,
) -> dict[str, Any]:
    """Evaluate the adapters of a run folder and write both JSON files anew.

    Args:
        run_folder: with ``dept_lora_federated.json`` and ``client_lora_federated.json``.
        data: {client_id: records}.
        clients: evaluates adapters.
        initial: the fresh adapter, which leaves the base as it is.
        tree: the run's groups, whose adapters ``group_lora_federated.json`` names.
        any_rank: whether the run's adapters may be of other ranks than that.

    Returns:
        What stands in ``federated_eval.json``.

    Raises:
        InputError: if an adapter is missing or does not fit the base.
    """

    def read(client_id: str, place: object) -> LoraState:
        folder = within(run_folder, run_folder / CLIENTS, client_id, place)
        return read_lora_adapter(folder, initial, any_rank=any_rank)

    wanted = {client.department for client in data.values()}
    places, exported = shared_adapters(run_folder), client_exports(run_folder)
    if missing := sorted((wanted | set(tree.groups)) - places.keys()):
        kind = "department" if missing[0] in wanted else "group"
        raise InputError(f"{run_folder}: no adapter of {kind} {missing[0]}, wanted one in {DEPARTMENTS} or {GROUPS}")
    shared = {
        name: read_lora_adapter(places[name], initial, any_rank=any_rank) for name in (*sorted(wanted), *tree.groups)
    }
    base, _ = evaluate_departments(clients, data, dict.fromkeys(wanted, initial))
    final, _ = evaluate_departments(clients, data, {d: shared[d] for d in sorted(wanted)})
    groups: dict[str, dict[str, Figures]] = {}
    if tree.groups:
        before = evaluate_groups(clients, data, dict.fromkeys(tree.groups, initial), tree)
        after = evaluate_groups(clients, data, {g: shared[g] for g in tree.groups}, tree)
        groups = {group: {"base": before[group], "final": after[group]} for group in tree.groups}
    rounds: dict[str, Any] = {}
    for round_num, departments in exported.items():
        for department, exports in departments.items():
            ids = {client: f"{department}/{client}" for client in exports}
            for client_id in ids.values():
                if client_id not in data:
                    strange = f"it has an adapter of {client_id}, which is not in data.root"
                    raise InputError(f"{run_folder}: {strange}; wanted the data of the run")
            results = clients.evaluate((read(ids[c], place), ids[c]) for c, place in exports.items())
            rounds.setdefault(str(round_num), {})[department] = {
                client: {**figures(metrics), "num_examples": metrics.num_examples}
                for client, metrics in zip(exports, results, strict=True)
            }
    result = summary(base, final, groups)
    write_json(run_folder / "federated_eval.json", result)
    write_json(run_folder / "client_eval_all_rounds.json", {"rounds": rounds})
    return result
