"""What the members of a group are clustered by, beyond their states: the clients' fits, and losses on each other."""

from __future__ import annotations

from collections.abc import Mapping

from fl_lightning.aggregation.updates import RoundUpdates
from fl_lightning.clustering.rounds import ClusteringInputs
from fl_lightning.clustering.tree import Tree
from fl_lightning.config import DeptClustersConfig
from fl_lightning.data.client_data import ClientData
from fl_lightning.evaluation.cross_loss import cross_losses
from fl_lightning.federation.protocol import ClientTask, ClientTransport
from fl_lightning.federation.round_report import RoundReport
from fl_lightning.state import LoraState


def collect_clustering_inputs(
    config: DeptClustersConfig,
    members: Mapping[str, LoraState],
    initial: LoraState,
    *,
    tree: Tree,
    updates: RoundUpdates,
    tasks: Mapping[str, ClientTask],
    report: RoundReport,
    clients: ClientTransport,
    data: Mapping[str, ClientData],
) -> ClusteringInputs:
    """The inputs that the configured representation and rule need.

    Args:
        config: the ``dept_clusters`` block.
        members: {department or group: state} of one group.
        initial: the common start.
        tree: of groups.
        updates: valid updates of the round; rejected clients are left out.
        tasks: {client_id: task} of the round.
        report: of the round, for the rejected clients.
        clients: evaluate adapters, for ``representation: cross_loss``.
        data: {client_id: records}.
    """
    owners = {department: member for member in members for department in tree.departments(member)}
    fits: dict[str, LoraState] = {}
    weights: dict[str, float] = {}
    if config.select == "dynamic":
        for client_id, update in updates.items():
            department, client = client_id.split("/", 1)
            if department not in owners or client in report.departments[department].rejected:
                continue
            start, member = tasks[client_id].start, owners[department]
            name = client_id if member == department else f"{member}/{department}.{client}"
            fits[name] = {key: initial[key] + tensor - start[key] for key, tensor in update.shared.items()}
            weights[name] = float(update.stats.num_examples)
    losses = cross_losses(clients, data, members, owners) if config.representation == "cross_loss" else None
    return ClusteringInputs(members, initial, fits, weights, losses)
