"""The adapters of a finished run that an audit attacks, with the clients whose records are in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fl_lightning.clustering.tree import Tree
from fl_lightning.config import RunConfig
from fl_lightning.federation.state import FederationState, clients_by_department
from fl_lightning.modeling.scaled_adapter import ScaledAdapter, read_adapter
from fl_lightning.state import LoraState, is_lora_a
from fl_lightning.storage.run_adapters import client_adapters, shared_adapters

Kind = Literal["client", "department", "mixed", "group"]
"""A client's adapter after its last fit; a department's before its cluster was mixed, and after; a group's."""


@dataclass(frozen=True)
class AuditedAdapter:
    """An adapter that somebody receives.

    Attributes:
        kind: at which step of a round.
        owner: the client, department or group.
        client_ids: whose records are in it.
        adapter: its tensors.
    """

    kind: Kind
    owner: str
    client_ids: tuple[str, ...]
    adapter: ScaledAdapter


def audited_adapters(
    run_folder: Path,
    config: RunConfig,
    state: FederationState,
    tree: Tree,
    client_ids: Mapping[str, object],
    initial: LoraState,
    scaling: float,
) -> list[AuditedAdapter]:
    """Clients' adapters, departments' before and after mixing, and groups', in this order.

    Args:
        run_folder: of a finished run.
        config: of the run.
        state: after its last round.
        tree: of its groups.
        client_ids: of the clients with records.
        initial: an adapter of the model.
        scaling: the model's lora_alpha / r.

    Raises:
        InputError: if the adapters cannot be read.
    """
    members = clients_by_department(client_ids)
    adapters = [
        AuditedAdapter("client", client_id, (client_id,), read_adapter(folder, initial, scaling))
        for client_id, (_, folder) in client_adapters(run_folder).items()
        if client_id in client_ids
    ]
    before = unmixed_departments(config, state)
    adapters += [
        AuditedAdapter("department", name, tuple(members[name]), ScaledAdapter(department))
        for name, department in before.items()
        if name in members
    ]
    mixes = _is_mixed(config)
    for name, folder in shared_adapters(run_folder).items():
        kind: Kind = "group" if name in tree.members else "mixed" if mixes else "department"
        owners = tuple(c for department in tree.departments(name) for c in members.get(department, ()))
        if owners:
            adapters.append(AuditedAdapter(kind, name, owners, read_adapter(folder, initial, scaling)))
    return adapters


def unmixed_departments(config: RunConfig, state: FederationState) -> dict[str, LoraState]:
    """{department: its state before its cluster was mixed in the last round}, computed from the states after it.

    Mixing leaves the weighted mean M of a cluster where it was, so ``θ = (θ_mixed − ρ M) / (1 − ρ)``: whoever has the
    adapters of all departments can undo it.

    Returns:
        Nothing where departments were not mixed, or where it cannot be undone: with a mixing ratio of 1, groups above
        the departments, adapters of an earlier round (early stopping), or a department in no cluster.
    """
    clusters = config.federation.dept_clusters
    ratio, assignments = clusters.mixing_ratio, state.cluster_assignments
    if not _is_mixed(config) or ratio == 1 or state.groups or state.best or state.products:
        return {}
    if not state.departments.keys() <= assignments.keys():
        return {}
    examples = state.department_examples()
    weights = {d: 1.0 if state.privacy else float(examples[d]) for d in state.departments}
    before: dict[str, LoraState] = {}
    for name, mixed in state.departments.items():
        mates = [d for d in state.departments if assignments[d] == assignments[name]]
        total = sum(weights[d] for d in mates)
        if not total:
            return {}
        before[name] = {}
        for key, tensor in mixed.items():
            if clusters.mix == "all" or is_lora_a(key):
                mean = sum((weights[d] / total * state.departments[d][key].double() for d in mates), torch.zeros(()))
                tensor = ((tensor.double() - ratio * mean) / (1 - ratio)).float()
            before[name][key] = tensor
    return before


def _is_mixed(config: RunConfig) -> bool:
    clusters = config.federation.dept_clusters
    return clusters.enabled and not clusters.mixes_predictions and clusters.mixing_ratio > 0
