"""Representations, methods and rules by name, and the two functions that use them.

`pairwise_dissimilarity` applies a representation to states; `cluster` applies a method and a rule to the result. The
names are those of `fl_lightning.config.DeptClustersConfig`; a mismatch fails on import.

Example:
    >>> import torch
    >>> rows = {"hr": [1.0, 9.0, 0.0], "it": [9.0, 1.0, 1.0], "law": [0.0, 9.0, 1.0], "ops": [9.0, 0.0, 1.0]}
    >>> states = {name: {"lora_A": torch.tensor([row])} for name, row in rows.items()}
    >>> dissimilarity = pairwise_dissimilarity(states, "delta", reference={"lora_A": torch.zeros(1, 3)})
    >>> cluster(dissimilarity, method="agglomerative", select="silhouette", seed=0).assignments
    {'hr': 0, 'it': 1, 'law': 0, 'ops': 1}
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_type_hints

import torch

from fl_lightning.clustering import dynamic, methods, n_clusters
from fl_lightning.clustering.dissimilarity import Dissimilarity, cosine_similarity
from fl_lightning.clustering.methods import Method
from fl_lightning.clustering.n_clusters import Rule, SelectionInput
from fl_lightning.clustering.partition import Array, Clustering
from fl_lightning.clustering.representations import cross_loss, factors, product, subspace
from fl_lightning.clustering.sums_of_squares import DepartmentClients
from fl_lightning.config import ClientClustersConfig, DeptClustersConfig
from fl_lightning.errors import InputError, nearest

REPRESENTATIONS: dict[str, Callable[..., Dissimilarity]] = {
    "delta": factors.delta,
    "raw": factors.raw,
    "subspace": subspace.subspace,
    "subspace_residual": subspace.subspace_residual,
    "product": product.product,
    "cross_loss": cross_loss.cross_loss,
}
METHODS: dict[str, Method] = {
    "kmeans": methods.kmeans,
    "agglomerative": methods.agglomerative,
    "spectral": methods.spectral,
}
SELECT: dict[str, Rule] = {
    "elbow": n_clusters.elbow,
    "silhouette": n_clusters.silhouette,
    "eigengap": n_clusters.eigengap,
    "fixed": n_clusters.fixed,
    "dynamic": dynamic.dynamic,
}


def pairwise_dissimilarity(
    states: Mapping[str, Mapping[str, torch.Tensor]],
    representation: str = "delta",
    *,
    reference: Mapping[str, torch.Tensor] | None = None,
    losses: Array | None = None,
    seed: int | None = None,
) -> Dissimilarity:
    """Pairwise dissimilarity of states under a representation.

    Args:
        states: {name: LoRA state}.
        representation: one of `REPRESENTATIONS`.
        reference: the shared start; ignored by representations that do not need it.
        losses: as in `cross_loss.cross_loss`; ignored by the other representations.
        seed: seed of the random projection of more than `dissimilarity.EXACT_ROWS` states under raw and delta; None
            compares all of them exactly, in an n × n matrix.

    Raises:
        InputError: unknown representation, or an argument that it needs is missing.
        ValueError: states that it cannot compare.
    """
    function = _lookup("representation", representation, REPRESENTATIONS)
    available: dict[str, Any] = {"reference": reference, "losses": losses, "seed": seed}
    arguments = {name: available[name] for name in options_of(function)}
    for name, value in arguments.items():
        if value is None and name != "seed":
            raise InputError(f"representation {representation!r}: expected {name}, got none; pass {name}=")
    dissimilarity: Dissimilarity = function(states, **arguments)
    return dissimilarity


def cluster(
    dissimilarity: Dissimilarity,
    *,
    method: str = "kmeans",
    select: str = "elbow",
    min_clusters: int = 2,
    max_clusters: int = 5,
    clients: DepartmentClients | None = None,
    seed: int,
    n_init: int = 10,
    **options: Any,
) -> Clustering:
    """Departments in clusters: the rule chooses the number of clusters, the method assigns departments to them.

    Args:
        dissimilarity: of the departments.
        method: one of `METHODS`.
        select: one of `SELECT`.
        min_clusters: the smallest number of clusters; ``dynamic`` may answer 1 nevertheless.
        max_clusters: the largest number of clusters.
        clients: of the departments; for ``dynamic``.
        seed: seed of k-means starts and of permutations.
        n_init: restarts of k-means.
        options: options of the rule.

    Returns:
        The clustering, without quality indices.

    Raises:
        InputError: unknown method, rule or option of the rule.
        ValueError: bounds out of order, or inputs that the rule refuses.
    """
    assign, rule = _lookup("method", method, METHODS), _lookup("select", select, SELECT)
    for option in options:
        if option not in (known := options_of(rule)):
            expected = f"expected one of {', '.join(known)}" if known else "expected no options"
            raise InputError(f"select {select!r}: {expected}, got {option!r}{nearest(option, known)}")
    fit = functools.cache(lambda k: assign(dissimilarity, k, seed=seed, n_init=n_init))
    selection = SelectionInput(dissimilarity, fit, min_clusters, max_clusters, clients, seed)
    dissimilarity.count_distinct(max_clusters + 2)  # once; methods and rules ask for smaller limits
    result = rule(selection, **options)
    labels, inertia = fit(result.n_clusters)
    scores_are_inertias = select == "elbow"
    return Clustering(
        dict(zip(dissimilarity.names, labels, strict=True)),
        dict(result.scores) if scores_are_inertias else {result.n_clusters: inertia},
        dissimilarity.names,
        None if dissimilarity.gram is None else cosine_similarity(dissimilarity.gram),
        {} if scores_are_inertias else dict(result.scores),
        dict(result.p_values),
    )


def options_of(function: Callable[..., Any]) -> list[str]:
    """Names of a registered function's keyword-only arguments."""
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def _check_choices(field: str, registered: Mapping[str, object]) -> None:
    """The config allows the registered names, and for clients only some of them."""
    allowed, allowed_for_clients = (
        set(get_args(get_type_hints(config).get(field))) for config in (DeptClustersConfig, ClientClustersConfig)
    )
    if allowed != registered.keys() or not allowed_for_clients <= allowed:
        raise TypeError(f"{field}: expected the choices of the config, {sorted(allowed)}, got {sorted(registered)}")


def _lookup(what: str, name: str, registry: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if name not in registry:
        raise InputError(f"{what}: expected one of {', '.join(registry)}, got {name!r}{nearest(name, registry)}")
    return registry[name]


_check_choices("representation", REPRESENTATIONS)
_check_choices("method", METHODS)
_check_choices("select", SELECT)
