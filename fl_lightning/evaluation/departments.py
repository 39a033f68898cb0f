"""Departments' and groups' adapters on the held-out records of their clients, and the two JSON files of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_lightning.clustering.tree import NO_GROUPS, Tree
from fl_lightning.data.client_data import ClientData
from fl_lightning.errors import InputError, RunError
from fl_lightning.evaluation.metrics import (
    ClientSample,
    MetricValues,
    compute_metrics,
    estimate_metrics,
    mean_metrics,
)
from fl_lightning.evaluation.panel import EvaluationPanel
from fl_lightning.federation.protocol import ClientTransport, Metrics
from fl_lightning.federation.state import clients_by_department
from fl_lightning.modeling.lora import read_lora_adapter
from fl_lightning.state import LoraState
from fl_lightning.storage.files import write_json
from fl_lightning.storage.run_adapters import client_exports, resolve_inside, shared_adapters
from fl_lightning.storage.run_layout import CLIENT_EVALUATION, CLIENT_INDEX, DEPARTMENT_INDEX, EVALUATION, GROUP_INDEX


def evaluate_departments(
    clients: ClientTransport,
    data: Mapping[str, ClientData],
    states: Mapping[str, LoraState],
    population: Mapping[str, int] | None = None,
) -> tuple[dict[str, MetricValues], float]:
    """Each department's metrics over all tokens of its clients, and the unweighted mean loss over clients.

    A client without metrics (one on the network may not answer) is left out, and so is a department without any.

    Args:
        clients: evaluate adapters.
        data: {client_id: records}.
        states: {department: adapter}.
        population: {department: number of its clients} if `data` has samples of them; then the results are estimates,
            the losses of departments with their standard errors.

    Returns:
        ({department: metrics}, mean loss); the mean loss is infinite if no client has metrics.

    Raises:
        RunError: if a loss is not finite.
    """
    names = [client_id.split("/", 1)[0] for client_id in data]
    results = clients.evaluate([(states[name], client_id) for name, client_id in zip(names, data, strict=True)])
    by_client = {client_id: compute_metrics(m) for client_id, m in zip(data, results, strict=True) if m.num_tokens}
    if not by_client:
        return {}, math.inf
    if not population:
        return _pool(names, results), mean_metrics(by_client)["loss"]
    samples = _samples(names, results, population)
    weights = {name: sample.population / len(sample.results) for name, sample in samples.items()}
    total = sum(weights[client_id.split("/", 1)[0]] * values["loss"] for client_id, values in by_client.items())
    mean = total / sum(sample.population for sample in samples.values())
    return {name: estimate_metrics([sample]) for name, sample in samples.items()}, mean


def evaluate_groups(
    clients: ClientTransport,
    data: Mapping[str, ClientData],
    states: Mapping[str, LoraState],
    tree: Tree,
    population: Mapping[str, int] | None = None,
) -> dict[str, MetricValues]:
    """Each group's metrics over all tokens of all clients below it; `population` as for `evaluate_departments`.

    Raises:
        RunError: if a loss is not finite.
    """
    departments = {group: set(tree.departments(group)) for group in tree.groups}
    jobs = [
        (group, client_id)
        for group in departments
        for client_id in data
        if client_id.split("/", 1)[0] in departments[group]
    ]
    results = clients.evaluate((states[group], client_id) for group, client_id in jobs)
    if not population:
        return _pool([group for group, _ in jobs], results)
    of_groups: dict[str, list[ClientSample]] = {}
    for group in departments:
        here = [(client_id.split("/", 1)[0], m) for (g, client_id), m in zip(jobs, results, strict=True) if g == group]
        samples = _samples([name for name, _ in here], [m for _, m in here], population)
        if samples:
            of_groups[group] = list(samples.values())
    return {group: estimate_metrics(samples) for group, samples in of_groups.items()}


def _pool(names: Sequence[str], results: Sequence[Metrics]) -> dict[str, MetricValues]:
    """Metrics over all tokens of the results that belong to a name."""
    sums: dict[str, Metrics] = {}
    for name, metrics in zip(names, results, strict=True):
        if not metrics.num_tokens:
            continue  # the client did not answer, or has no held-out records
        sums[name] = sums[name] + metrics if name in sums else metrics
    for name, metrics in sums.items():
        _check_finite(name, metrics)
    return {name: compute_metrics(metrics) for name, metrics in sums.items()}


def _samples(
    names: Sequence[str], results: Sequence[Metrics], population: Mapping[str, int]
) -> dict[str, ClientSample]:
    """{department: its clients' results}, without those that have none."""
    by_name: dict[str, list[Metrics]] = {}
    for name, metrics in zip(names, results, strict=True):
        if metrics.num_tokens:
            _check_finite(name, metrics)
            by_name.setdefault(name, []).append(metrics)
    return {name: ClientSample(answers, population[name]) for name, answers in by_name.items()}


def _check_finite(name: str, metrics: Metrics) -> None:
    if not math.isfinite(metrics.loss_sum):
        raise RunError(
            f"the adapter of {name}: expected a finite loss on its held-out records, got {metrics.loss_sum}; lower "
            "training.learning_rate or federation.flora.momentum, or choose another fabric.precision"
        )


def logged_metrics(
    departments: Mapping[str, MetricValues], groups: Mapping[str, MetricValues], client_mean: float | None = None
) -> dict[str, float]:
    """What is logged of an evaluation: each department's and group's metrics, and the means over departments.

    Args:
        departments: {department: metrics}.
        groups: {group: metrics}.
        client_mean: unweighted mean loss over clients; None leaves it out.

    Example:
        >>> logged_metrics({"hr": {"loss": 2.0, "perplexity": 7.4, "token_accuracy": 0.5}}, {})["hr/eval/loss"]
        2.0
    """
    row = {
        f"{name}/eval/{metric}": value
        for name, values in {**departments, **groups}.items()
        for metric, value in values.items()
    }
    if departments:
        row |= {f"eval/{metric}": value for metric, value in mean_metrics(departments).items()}
        row |= {} if client_mean is None else {"eval/loss_client_mean": client_mean}
    return row


def summary(
    base: Mapping[str, MetricValues],
    final: Mapping[str, MetricValues],
    groups: Mapping[str, Mapping[str, MetricValues]] | None = None,
) -> dict[str, Any]:
    """The contents of ``federated_eval.json``: departments that have metrics before and after, and their mean.

    Args:
        base: {department: metrics of the base model}.
        final: {department: metrics of its adapter}.
        groups: {group: {"base": metrics, "final": metrics}}; absent from the result if empty.
    """
    names = sorted(base.keys() & final.keys())
    departments = {name: {"base": base[name], "final": final[name]} for name in names}
    stages = {"base": base, "final": final}
    mean = {stage: mean_metrics({d: values[d] for d in names}) for stage, values in stages.items()} if names else {}
    return {"departments": departments, "mean": mean, **({"groups": groups} if groups else {})}


def evaluate_run(
    run_folder: Path,
    data: Mapping[str, ClientData],
    clients: ClientTransport,
    initial: LoraState,
    *,
    tree: Tree = NO_GROUPS,
    any_rank: bool = False,
    panel: EvaluationPanel | None = None,
) -> dict[str, Any]:
    """Evaluate the adapters of a run folder and write both JSON files again.

    Args:
        run_folder: with the indexes of departments' and clients' adapters.
        data: {client_id: records}.
        clients: evaluates adapters.
        initial: the initial adapter, with which the model equals the base model.
        tree: the run's groups; their adapters must be in the run's index of groups.
        any_rank: whether adapters may have another rank than `initial`.
        panel: on whose records departments and groups are evaluated; None takes all clients.

    Returns:
        The contents of ``federated_eval.json``.

    Raises:
        InputError: if an adapter is missing or does not fit the base.
    """
    names = sorted(clients_by_department(data))
    panel = panel or EvaluationPanel(data, {})
    folders, exports = shared_adapters(run_folder), client_exports(run_folder)
    if missing := sorted({*names, *tree.groups} - folders.keys()):
        kind = "department" if missing[0] in names else "group"
        raise InputError(
            f"{run_folder}: expected an adapter of {kind} {missing[0]} in {DEPARTMENT_INDEX} or {GROUP_INDEX}, got none"
        )
    shared = {name: read_lora_adapter(folders[name], initial, any_rank=any_rank) for name in (*names, *tree.groups)}
    sampled = panel.population
    base, _ = evaluate_departments(clients, panel.data, dict.fromkeys(names, initial), sampled)
    final, _ = evaluate_departments(clients, panel.data, {name: shared[name] for name in names}, sampled)
    groups: dict[str, dict[str, MetricValues]] = {}
    if tree.groups:
        before = evaluate_groups(clients, panel.data, dict.fromkeys(tree.groups, initial), tree, sampled)
        after = evaluate_groups(clients, panel.data, {group: shared[group] for group in tree.groups}, tree, sampled)
        groups = {group: {"base": before[group], "final": after[group]} for group in tree.groups}
    result = summary(base, final, groups)
    rounds = _evaluate_client_exports(run_folder, exports, data, clients, initial, any_rank)
    write_json(run_folder / EVALUATION, result)
    write_json(run_folder / CLIENT_EVALUATION, {"rounds": rounds})
    return result


def _evaluate_client_exports(
    run_folder: Path,
    exports: Mapping[int, Mapping[str, Mapping[str, object]]],
    data: Mapping[str, ClientData],
    clients: ClientTransport,
    initial: LoraState,
    any_rank: bool,
) -> dict[str, dict[str, dict[str, MetricValues]]]:
    """{round: {department: {client: metrics of its adapter on its own records, and ``num_examples``}}}."""

    def read(client_id: str, path: object) -> LoraState:
        folder = resolve_inside(run_folder, run_folder / CLIENT_INDEX, client_id, path)
        return read_lora_adapter(folder, initial, any_rank=any_rank)

    rounds: dict[str, dict[str, dict[str, MetricValues]]] = {}
    for round_num, departments in exports.items():
        for department, paths in departments.items():
            ids = {client: f"{department}/{client}" for client in paths}
            if unknown := [client_id for client_id in ids.values() if client_id not in data]:
                raise InputError(
                    f"{run_folder}: expected the data of the run, got data.root without {unknown[0]}, whose adapter "
                    "the run has"
                )
            results = clients.evaluate((read(ids[client], path), ids[client]) for client, path in paths.items())
            rounds.setdefault(str(round_num), {})[department] = {
                client: {**compute_metrics(metrics), "num_examples": metrics.num_examples}
                for client, metrics in zip(paths, results, strict=True)
                if metrics.num_tokens
            }
    return rounds
