"""A round's clusters of departments: relate, smooth, cluster, settle, and keep the clusters' numbers over rounds.

Everything is in `fl_lightning.clustering.registry`; the described system, k-means with the elbow on A-matrices, stays
with `fl_lightning.clustering`, which scales to any number of departments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fl_lightning.clustering import Grouping, group_departments
from fl_lightning.clustering.dynamic import adjusted_share
from fl_lightning.clustering.kmeans import EXACT_ROWS, Array
from fl_lightning.clustering.n_clusters import mean_silhouette
from fl_lightning.clustering.quality import assess
from fl_lightning.clustering.registry import (
    Clients,
    Partition,
    Relation,
    group,
    match,
    no_partition,
    relate,
    settle,
    smooth,
)
from fl_lightning.clustering.representations.vectors import cosine_similarity
from fl_lightning.config import ClientClustersConfig, DeptClustersConfig

States = Mapping[str, Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Evidence:
    """What a round knows of its departments.

    Attributes:
        states: {department: θ_d'}.
        reference: the shared start.
        moves: {client_id: A₀ + θ_c − its start}, for the rule ``dynamic``, which looks at them in the first round, or
            when a department comes in that had none: where a client's fit alone would have led from the shared start.
        weights: {client_id: its weight}.
        losses: of department i's adapter on j's held-out records, for ``cross_loss``.
    """

    states: States
    reference: Mapping[str, torch.Tensor]
    moves: States
    weights: Mapping[str, float]
    losses: Array | None = None


def group_round(
    config: DeptClustersConfig,
    evidence: Evidence,
    *,
    previous: Mapping[str, int],
    memory: Mapping[str, Any],
    seed: int,
) -> tuple[Grouping, dict[str, Any]]:
    """The departments' clusters in a round.

    Args:
        config: the ``dept_clusters`` block.
        evidence: of this round.
        previous: {department: cluster id} of the round before, whose numbers go on.
        memory: what this gave the round before; empty at first.
        seed: of everything that is drawn.

    Returns:
        (clusters, memory for the next round, JSON values).

    Raises:
        ValueError: if the states do not fit the representation.
    """
    plain = config.method == "kmeans" and config.select == "elbow" and not config.smoothing and config.patience == 1
    if plain and config.representation in ("raw", "delta", "subspace"):
        found = group_departments(
            evidence.states,
            reference=evidence.reference,
            representation=config.representation,
            min_clusters=config.min_clusters,
            max_clusters=config.max_clusters,
            seed=seed,
        )
        return replace(found, assignments=match(previous, found.assignments)), {}
    if len(evidence.states) > EXACT_ROWS:
        raise ValueError(
            f"dept_clusters: got {len(evidence.states)} departments, wanted at most {EXACT_ROWS} for method "
            f"{config.method}, select {config.select}, representation {config.representation}; kmeans and elbow on "
            "delta, raw or subspace take more"
        )
    now = relate(evidence.states, config.representation, reference=evidence.reference, losses=evidence.losses)
    before = _read(memory.get("relation"))
    relation = smooth(before, now, config.smoothing) if config.smoothing else now
    clients, first = None, memory.get("clients")
    if config.select == "dynamic":
        if first is None or not _departments(first["weights"]) >= set(evidence.states):
            first = _first_fits(config, evidence)
        clients = _clients(first, evidence.states)
    partition = group(
        relation,
        method=config.method,
        select=config.select,
        min_clusters=config.min_clusters,
        max_clusters=config.max_clusters,
        clients=clients,
        seed=seed,
    )
    kept: dict[str, Any] = {"relation": _written(relation)} if config.smoothing else {}
    if first is not None:
        kept["clients"] = first
    assignments = match(previous, partition.assignments)
    if config.patience > 1:
        state = settle(
            memory.get("hysteresis") or no_partition(),
            partition.assignments,
            lambda labels: _score(relation, clients, labels),
            margin=config.margin,
            patience=config.patience,
        )
        kept["hysteresis"], assignments = state, dict(state["held"])
    return _grouping(relation, partition, assignments), kept


def group_clients(
    config: ClientClustersConfig, states: States, department: Mapping[str, torch.Tensor], *, seed: int
) -> dict[str, int] | None:
    """{client: cluster id} inside a department; None where k-means on all that is sent is wanted.

    Args:
        config: the ``client_clusters`` block.
        states: {client: what it sent}.
        department: the state that they began the round from.
        seed: of everything that is drawn.
    """
    if (config.method, config.representation) == ("kmeans", "raw"):
        return None
    relation = relate(states, config.representation, reference=department)
    k = config.num_clusters
    return group(relation, method=config.method, select="fixed", min_clusters=k, max_clusters=k, seed=seed).assignments


def _first_fits(config: DeptClustersConfig, evidence: Evidence) -> dict[str, Any]:
    """How far apart the clients' fits were from the start that all departments share: what ``dynamic`` tests by.

    Later on the clients of a department start from one state, and would look alike for that alone.
    """
    representation = "delta" if config.representation == "raw" else config.representation
    relation = relate(evidence.moves, representation, reference=evidence.reference)
    return {"relation": _written(relation), "weights": dict(evidence.weights)}


def _clients(first: Mapping[str, Any], departments: Mapping[str, Any]) -> Clients:
    """Those of the departments that are grouped in this round."""
    relation = _read(first["relation"])
    assert relation is not None
    places = [i for i, client_id in enumerate(relation.names) if client_id.split("/", 1)[0] in departments]
    names, square = [relation.names[i] for i in places], np.ix_(places, places)
    gram = None if relation.gram is None else relation.gram[square]
    own = Relation(names, relation.dissimilarity[square], gram, relation.scale)
    owners = {client_id: client_id.split("/", 1)[0] for client_id in names}
    return Clients(own, owners, {client_id: first["weights"][client_id] for client_id in names})


def _departments(client_ids: Iterable[str]) -> set[str]:
    return {client_id.split("/", 1)[0] for client_id in client_ids}


def _score(relation: Relation, clients: Clients | None, labels: Mapping[str, int]) -> float:
    """How well a partition fits the round: what it explains of the clients, or else its silhouette."""
    ordered = [labels[name] for name in relation.names]
    return mean_silhouette(relation, ordered) if clients is None else adjusted_share(clients, ordered)


def _grouping(relation: Relation, partition: Partition, assignments: dict[str, int]) -> Grouping:
    points, choice = relation.points, partition.choice
    cosine = None if relation.gram is None else cosine_similarity(relation.gram)
    labels = np.array([assignments[name] for name in relation.names])
    clusters = set(labels.tolist())
    inertia = float(sum(((points[labels == c] - points[labels == c].mean(0)) ** 2).sum() for c in clusters))
    inertias = {len(clusters): inertia}
    quality = assess(relation, assignments)
    figures = {name: value for name, value in vars(quality).items() if value is not None}
    return Grouping(assignments, inertias, relation.names, cosine, dict(choice.scores), dict(choice.p_values), figures)


def _written(relation: Relation) -> dict[str, Any]:
    gram = None if relation.gram is None else relation.gram.tolist()
    return {
        "names": relation.names,
        "dissimilarity": relation.dissimilarity.tolist(),
        "gram": gram,
        "scale": relation.scale,
    }


def _read(written: Mapping[str, Any] | None) -> Relation | None:
    if written is None:
        return None
    gram = None if written["gram"] is None else np.array(written["gram"])
    return Relation(list(written["names"]), np.array(written["dissimilarity"]), gram, float(written["scale"]))
