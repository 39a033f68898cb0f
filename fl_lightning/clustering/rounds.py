"""One round's clusters: compare departments, cluster them, keep a partition that is still good, keep cluster ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fl_lightning import clustering
from fl_lightning.clustering.dissimilarity import EXACT_ROWS, Dissimilarity
from fl_lightning.clustering.dynamic import adjusted_share
from fl_lightning.clustering.hysteresis import no_partition, update_partition
from fl_lightning.clustering.label_matching import match_labels
from fl_lightning.clustering.n_clusters import mean_silhouette
from fl_lightning.clustering.partition import Array, Clustering
from fl_lightning.clustering.quality import assess
from fl_lightning.clustering.registry import cluster, pairwise_dissimilarity
from fl_lightning.clustering.representations.factors import States
from fl_lightning.clustering.sums_of_squares import DepartmentClients
from fl_lightning.config import ClientClustersConfig, DeptClustersConfig


@dataclass(frozen=True)
class ClusteringInputs:
    """A round's data about departments (or the members of a group).

    Attributes:
        states: {department: θ_d'}.
        reference: the shared start.
        client_fits: {client_id: A₀ + θ_c − its start}, for the rule ``dynamic``: the state that a client's training
            would have reached from the shared start. Used in the first round, and again when a new department appears.
        client_weights: {client_id: its weight}.
        losses: losses of department i's adapter on j's held-out records, for the representation ``cross_loss``.
    """

    states: States
    reference: Mapping[str, torch.Tensor]
    client_fits: States
    client_weights: Mapping[str, float]
    losses: Array | None = None


def cluster_round(
    config: DeptClustersConfig,
    inputs: ClusteringInputs,
    *,
    previous: Mapping[str, int],
    memory: Mapping[str, Any],
    seed: int,
) -> tuple[Clustering, dict[str, Any]]:
    """The departments' clusters in a round.

    Args:
        config: the ``dept_clusters`` block.
        inputs: this round's data.
        previous: {department: cluster id} of the round before; clusters that persist keep their ids.
        memory: as returned in the round before; empty at first.
        seed: seed of k-means starts, permutations and the random projection.

    Returns:
        (clusters, memory for the next round as JSON values).

    Raises:
        ValueError: the states do not fit the representation, or there are too many departments for it.
    """
    _check_number(config, len(inputs.states))
    first_fits = _first_fits(config, inputs, memory.get("clients")) if config.select == "dynamic" else None
    clients = None if first_fits is None else _clients_of(first_fits, inputs.states)
    result = clustering.department_level_clustering(
        inputs.states,
        config.select,
        reference=inputs.reference,
        representation=config.representation,
        min_clusters=config.min_clusters,
        max_clusters=config.max_clusters,
        seed=seed,
        algorithm=config.method,
        losses=inputs.losses,
        clients=clients,
        earlier=_from_json(memory["relation"]) if config.smoothing and memory.get("relation") else None,
        smoothing=config.smoothing,
    )
    dissimilarity, assignments = result.dissimilarity, match_labels(previous, result.clustering.assignments)
    remembered: dict[str, Any] = {"relation": _to_json(dissimilarity)} if config.smoothing else {}
    if first_fits is not None:
        remembered["clients"] = first_fits
    if config.patience > 1:
        state = update_partition(
            memory.get("hysteresis") or no_partition(),
            result.clustering.assignments,
            lambda labels: _score(dissimilarity, clients, labels),
            margin=config.margin,
            patience=config.patience,
        )
        remembered["hysteresis"], assignments = state, dict(state["held"])
    quality = {} if _is_described_system(config) else assess(dissimilarity, assignments)
    return replace(result.clustering, assignments=assignments, quality=quality), remembered


def cluster_clients(
    config: ClientClustersConfig, states: States, department: Mapping[str, torch.Tensor], *, seed: int
) -> dict[str, int] | None:
    """{client: cluster id} inside a department; None if k-means on everything that clients send is configured.

    Args:
        config: the ``client_clusters`` block.
        states: {client: state that it sent}.
        department: the state from which they began the round.
        seed: seed of k-means starts.
    """
    if (config.method, config.representation) == ("kmeans", "raw"):
        return None
    dissimilarity = pairwise_dissimilarity(states, config.representation, reference=department)
    k = config.num_clusters
    return cluster(
        dissimilarity, method=config.method, select="fixed", min_clusters=k, max_clusters=k, seed=seed
    ).assignments


def _is_described_system(config: DeptClustersConfig) -> bool:
    """k-means with the elbow on A-matrices, every round anew: its files and metrics have no quality indices."""
    return (
        (config.method, config.select, config.smoothing, config.patience) == ("kmeans", "elbow", 0, 1)
        and config.representation in ("delta", "raw", "subspace")
    )  # fmt: skip


def _check_number(config: DeptClustersConfig, n: int) -> None:
    """Refuse more departments than an n × n matrix should have; a random projection needs none."""
    if n > EXACT_ROWS and not (_is_described_system(config) and config.representation != "subspace"):
        raise ValueError(
            f"dept_clusters: expected at most {EXACT_ROWS} departments for method {config.method}, select "
            f"{config.select}, representation {config.representation}, got {n}; kmeans and elbow on delta or raw, "
            "without smoothing or patience, take more"
        )


def _first_fits(
    config: DeptClustersConfig, inputs: ClusteringInputs, remembered: dict[str, Any] | None
) -> dict[str, Any]:
    """Dissimilarity and weights of the clients' first fits, which ``dynamic`` tests; the remembered ones if complete.

    In later rounds the clients of a department start from one state and look alike for that reason alone.
    """
    if remembered is not None and _departments(remembered["weights"]) >= set(inputs.states):
        return remembered
    representation = "delta" if config.representation == "raw" else config.representation
    dissimilarity = pairwise_dissimilarity(inputs.client_fits, representation, reference=inputs.reference)
    return {"relation": _to_json(dissimilarity), "weights": dict(inputs.client_weights)}


def _clients_of(first_fits: Mapping[str, Any], departments: Mapping[str, Any]) -> DepartmentClients:
    """The clients of the departments that are clustered in this round."""
    fits = _from_json(first_fits["relation"])
    indices = [i for i, client_id in enumerate(fits.names) if client_id.split("/", 1)[0] in departments]
    names, square = [fits.names[i] for i in indices], np.ix_(indices, indices)
    gram = None if fits.gram is None else fits.gram[square]
    dissimilarity = Dissimilarity(names, fits.dissimilarity[square], gram, fits.scale)
    department_of = {client_id: client_id.split("/", 1)[0] for client_id in names}
    return DepartmentClients(dissimilarity, department_of, {name: first_fits["weights"][name] for name in names})


def _departments(client_ids: Iterable[str]) -> set[str]:
    return {client_id.split("/", 1)[0] for client_id in client_ids}


def _score(dissimilarity: Dissimilarity, clients: DepartmentClients | None, assignments: Mapping[str, int]) -> float:
    """How well a partition fits the round: the share of the clients' variance explained, or else the silhouette."""
    labels = [assignments[name] for name in dissimilarity.names]
    return mean_silhouette(dissimilarity, labels) if clients is None else adjusted_share(clients, labels)


def _to_json(dissimilarity: Dissimilarity) -> dict[str, Any]:
    gram = dissimilarity.gram
    return {
        "names": dissimilarity.names,
        "dissimilarity": dissimilarity.dissimilarity.tolist(),
        "gram": None if gram is None else gram.tolist(),
        "scale": dissimilarity.scale,
    }


def _from_json(values: Mapping[str, Any]) -> Dissimilarity:
    gram = None if values["gram"] is None else np.array(values["gram"])
    return Dissimilarity(list(values["names"]), np.array(values["dissimilarity"]), gram, float(values["scale"]))
