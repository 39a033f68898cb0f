"""Early stopping: keep every adapter's best round, the one in which its selection records have their lowest loss.

The rounds go on, since others may still gain by them; what a run gives out is `FederationState.final_adapter`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Container, Mapping
from dataclasses import replace
from statistics import fmean

from fl_lightning.clustering.tree import Tree
from fl_lightning.data.client_data import ClientData
from fl_lightning.federation.protocol import ClientTransport, Metrics
from fl_lightning.federation.state import BestRound, FederationState, clients_by_department
from fl_lightning.state import LoraState

log = logging.getLogger(__name__)

OWN = "/own"
"""Ends the name of a client's adapter that is trained beside the federation."""


def keep_best_rounds(
    state: FederationState,
    clients: ClientTransport,
    data: Mapping[str, ClientData],
    tree: Tree,
    *,
    take_rounds: Mapping[str, int] | None = None,
    panel: Mapping[str, ClientData] | None = None,
    trained: Container[str] | None = None,
) -> tuple[FederationState, dict[str, float]]:
    """Take this round for every adapter whose selection loss is lower than in all rounds before.

    Adapters are those of departments, of groups, and of clients that share nothing or train one beside the federation
    (``<client_id>/own``). One whose clients have no selection records has no best round; the run gives out its last. A
    round in which one of its clients with selection records does not answer is not judged, since the others' mean could
    not be compared with that of other rounds; clients on other machines may be away.

    Args:
        state: after the round.
        clients: evaluate adapters.
        data: {client_id: records}.
        tree: of the groups above the departments.
        take_rounds: {name: round to take}; None measures.
        panel: {client_id: records} of the clients that evaluate departments and groups; None takes all.
        trained: clients whose own adapters are measured, since only theirs have changed; None takes all.

    Returns:
        (the state with its best rounds, metrics to log: ``<name>/selection/loss`` of each adapter, ``selection/loss``
        as the mean over departments, ``selection/own_loss`` as that over clients' adapters).
    """
    adapters = _adapters(state, tree)
    if take_rounds is not None:
        now = {name: adapter for name, adapter in adapters.items() if take_rounds.get(name) == state.round_num}
        best = {name: BestRound(state.round_num, None, adapter) for name, adapter in now.items()}
        return replace(state, best={**state.best, **best}), {}
    if trained is not None:
        adapters = {name: a for name, a in adapters.items() if _owner(name) not in data or _owner(name) in trained}
    losses = _selection_losses(clients, data, tree, adapters, data if panel is None else panel)
    lowest = {name: best.loss for name, best in state.best.items() if best.loss is not None}
    better = {
        name: BestRound(state.round_num, loss, adapters[name])
        for name, loss in losses.items()
        if loss < lowest.get(name, math.inf)  # False for NaN too
    }
    metrics = {f"{name}/selection/loss": loss for name, loss in losses.items()}
    for key, owners in (("selection/loss", state.departments), ("selection/own_loss", data)):
        if values := [loss for name, loss in losses.items() if _owner(name) in owners]:
            metrics[key] = fmean(values)
    return replace(state, best={**state.best, **better}), metrics


def _adapters(state: FederationState, tree: Tree) -> dict[str, LoraState]:
    """{name: adapter after this round}."""
    departments = {name: state.adapter(name) for name in state.departments}
    groups = {name: state.groups[name] for name in tree.groups}
    whole = {name: factor for name, factor in state.personal.items() if factor.keys() == state.initial.keys()}
    own = {f"{client_id}{OWN}": adapter for client_id, adapter in state.own_adapters.items()}
    return {**departments, **groups, **whole, **own}  # type: ignore[dict-item]


def _owner(name: str) -> str:
    """The department, group or client that has an adapter."""
    return name.removesuffix(OWN) if name.count("/") > 1 else name


def _selection_losses(
    clients: ClientTransport,
    data: Mapping[str, ClientData],
    tree: Tree,
    adapters: Mapping[str, LoraState],
    panel: Mapping[str, ClientData],
) -> dict[str, float]:
    """{name: mean loss over the target tokens of the selection records of all its clients in the panel}."""
    by_department = clients_by_department(panel)
    jobs = [
        (name, client_id)
        for name in adapters
        for client_id in ([_owner(name)] if _owner(name) in data else _clients_below(name, tree, by_department))
        if data[client_id].selection
    ]
    sums: dict[str, Metrics] = {}
    silent: dict[str, str] = {}
    results = clients.evaluate([(adapters[name], client_id) for name, client_id in jobs], "selection")
    for (name, client_id), metrics in zip(jobs, results, strict=True):
        sums[name] = sums[name] + metrics if name in sums else metrics
        if not metrics.num_examples:
            silent[name] = client_id
    for name, client_id in silent.items():
        log.warning("early stopping: this round of %s is not judged, without an answer of %s", name, client_id)
    return {n: m.loss_sum / m.num_tokens for n, m in sums.items() if m.num_tokens and n not in silent}


def _clients_below(name: str, tree: Tree, by_department: Mapping[str, list[str]]) -> list[str]:
    departments = tree.departments(name) if name in tree.groups else [name]
    return [client_id for department in departments for client_id in by_department[department]]
