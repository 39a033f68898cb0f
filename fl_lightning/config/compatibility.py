"""Choices of the ``federation`` block that do not go together: a table, each row with its reason and the way out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from fl_lightning.config.federation import FederationConfig, ProductCombiner
from fl_lightning.config.lora import LoraConfig
from fl_lightning.config.personal import PersonalConfig
from fl_lightning.config.schedule_compatibility import check_schedule
from fl_lightning.config.secure_compatibility import check_secure_aggregation
from fl_lightning.errors import InputError


@dataclass(frozen=True)
class Incompatible:
    """Choices that do not go together."""

    applies: Callable[[FederationConfig], bool]
    """Whether a config makes these choices."""
    reason: str
    """Why they do not go together."""
    expected: str
    """What to choose instead."""


def check_compatible(federation: FederationConfig, lora: LoraConfig) -> None:
    """Check that the choices of the ``federation`` block, and the ranks of the ``lora`` block, go together.

    Raises:
        InputError: with the reason and what to choose instead.

    Example:
        >>> check_compatible(FederationConfig(share="a", combiner="svd"), LoraConfig())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        fl_lightning.errors.InputError: federation: products need both factors of every client; expected ...
    """
    for row in INCOMPATIBLE:
        if row.applies(federation):
            raise InputError(f"federation: {row.reason}; expected {row.expected}, got {_choices(federation)}")
    check_schedule(federation)
    check_secure_aggregation(federation)
    if lora.is_mixed() and federation.combiner not in ("stack", "svd"):
        raise InputError(
            f"lora.profiles: {federation.combiner} averages factors of equal rank and scale; expected "
            f"federation.combiner: stack or svd, or one rank and scale for all clients, got {federation.combiner}"
        )


def check_own_adapters(personal: PersonalConfig, federation: FederationConfig, lora: LoraConfig) -> None:
    """Check that clients' own adapters can be trained beside the federation, or lent, if they are to be.

    Raises:
        InputError: with the reason and what to choose instead.
    """
    if personal.mates != "off" and federation.guard.name == "dp":
        raise InputError(
            "personal.mates: guard.name: dp adds noise to what leaves clients, and own adapters have none; expected "
            f"off, or another guard, got {personal.mates}"
        )
    if personal.own != "during":
        return
    reasons = {
        "share: none trains nothing else": federation.share == "none",
        "share: central has one client for all records": federation.share == "central",
        "guard.name: dp adds noise to every state that is kept, and own adapters have none": federation.guard.name
        == "dp",
        "lora.profiles gives clients several ranks or scales": lora.is_mixed(),
        "federation.schedule.mode: buffered has late clients, whose departments have moved on": (
            federation.schedule.mode == "buffered"
        ),
        "FedALT averages own adapters, which no guard looks at": personal.uses_fedalt
        and federation.guard.name != "none",
        f"ditto_lambda pulls towards factors, and combiner: {federation.combiner} keeps products": bool(
            personal.ditto_lambda
        )
        and _by_products(federation),
    }
    for reason, applies in reasons.items():
        if applies:
            raise InputError(f"personal.own: {reason}; expected after, or another choice there, got during")


def _choices(federation: FederationConfig) -> str:
    guard, server = federation.guard.name, federation.server
    return (
        f"share {federation.share}, combiner {federation.combiner}, guard {guard}, server step {server.step}, "
        f"schedule {server.schedule}"
        + ("" if federation.share_layers is None else ", share_layers")
        + (", dept_clusters.mix predictions" if federation.dept_clusters.mixes_predictions else "")
    )


def _clusters_departments(federation: FederationConfig) -> bool:
    return federation.dept_clusters.enabled


def _by_products(federation: FederationConfig) -> bool:
    return federation.combiner in get_args(ProductCombiner)


def _has_groups(federation: FederationConfig) -> bool:
    """Whether there are groups of departments; a team of clients is a department like others."""
    return any("/" not in name for members in federation.hierarchy.groups.values() for name in members)


INCOMPATIBLE: tuple[Incompatible, ...] = (
    Incompatible(
        lambda f: f.share_layers is not None and (f.share in ("none", "central") or _by_products(f)),
        "share_layers divides an adapter by layers, and there is none that is averaged in part",
        "share_layers: null, or share: all with combiner: flora or fedavg",
    ),
    Incompatible(
        lambda f: f.share_layers is not None and (_clusters_departments(f) or _has_groups(f)),
        "departments are compared and mixed by all layers, and clients keep some",
        "share_layers: null, or dept_clusters.enabled: false (--no-dept-clustering) and hierarchy.groups: {}",
    ),
    Incompatible(
        lambda f: (
            f.share_layers is not None
            and f.client_clusters.num_clusters > 1
            and (f.client_clusters.method, f.client_clusters.representation) != ("kmeans", "raw")
        ),
        "clients are compared by layers that they do not all send",
        "client_clusters.representation: raw with method: kmeans, or share_layers: null",
    ),
    Incompatible(
        lambda f: f.share_layers is not None and f.weighting == "contribution",
        "clients keep layers, so the loss of their mean says little of them",
        "share_layers: null, or another weighting",
    ),
    Incompatible(
        lambda f: f.share == "none" and _clusters_departments(f),
        "nothing is sent, so departments have nothing to compare or to mix",
        "dept_clusters.enabled: false (--no-dept-clustering)",
    ),
    Incompatible(
        lambda f: f.share == "none" and f.client_clusters.num_clusters > 1,
        "nothing is sent, so clients cannot be clustered",
        "client_clusters.num_clusters: 1 (--num-clusters 1)",
    ),
    Incompatible(
        lambda f: not f.flora.use_residual and (f.server.step != "sgd" or f.server.schedule != "constant"),
        "flora.use_residual: false takes the mean as it is, without a step",
        "server.step: sgd and server.schedule: constant, or flora.use_residual: true",
    ),
    Incompatible(
        lambda f: f.guard.name in ("median", "trimmed_mean") and f.server.schedule == "agreement",
        "the guard gives no weights by which the clients' agreement could be measured",
        "another server.schedule or guard.name",
    ),
    Incompatible(
        lambda f: f.guard.name in ("median", "trimmed_mean") and f.weighting != "examples",
        "the guard takes every client alike",
        "weighting: examples, or another guard.name",
    ),
    Incompatible(
        lambda f: f.weighting == "contribution" and f.share in ("a", "b", "none"),
        "clients keep a factor, so the loss of their mean says little of them",
        "share: all, freeze_a or alternate, or another weighting",
    ),
    Incompatible(
        lambda f: f.share == "none" and f.guard.name != "none",
        "nothing is sent, so there is nothing to guard",
        "guard.name: none",
    ),
    Incompatible(
        lambda f: f.share == "freeze_a" and _clusters_departments(f),
        "A stays as it was drawn, and departments are clustered by their A",
        "dept_clusters.enabled: false (--no-dept-clustering)",
    ),
    Incompatible(
        lambda f: f.share == "b" and _clusters_departments(f) and f.dept_clusters.mix == "a",
        "clients keep their A, so a mixed A reaches nobody",
        "dept_clusters.mix: all or predictions, or dept_clusters.enabled: false (--no-dept-clustering)",
    ),
    Incompatible(
        lambda f: f.combiner != "flora" and (f.server.step != "sgd" or f.server.schedule != "constant"),
        "only flora takes a step towards the mean, the other combiners take the mean itself",
        "server.step: sgd and server.schedule: constant, or combiner: flora",
    ),
    Incompatible(
        lambda f: _by_products(f) and f.share != "all",
        "products need both factors of every client",
        "share: all, or combiner: flora or fedavg",
    ),
    Incompatible(
        lambda f: _by_products(f) and f.guard.name != "none",
        "the guards judge factors, and these combiners add up products",
        "guard.name: none, or combiner: flora or fedavg",
    ),
    Incompatible(
        lambda f: _by_products(f) and f.client_clusters.num_clusters > 1,
        "a client that starts from its cluster's factors would not start from the exact product",
        "client_clusters.num_clusters: 1 (--num-clusters 1), or combiner: flora or fedavg",
    ),
    Incompatible(
        lambda f: _by_products(f) and f.weighting == "contribution",
        "the worth of a client is measured on means of factors",
        "another weighting, or combiner: flora or fedavg",
    ),
    Incompatible(
        lambda f: f.combiner in ("stack", "svd") and _clusters_departments(f),
        "departments keep no A that could be compared with another's",
        "dept_clusters.enabled: false (--no-dept-clustering), or combiner: residual",
    ),
    Incompatible(
        lambda f: f.share == "central" and (_clusters_departments(f) or f.client_clusters.num_clusters > 1),
        "one client has all records, so there is nobody to cluster",
        "dept_clusters.enabled: false (--no-dept-clustering) and client_clusters.num_clusters: 1 (--num-clusters 1)",
    ),
    Incompatible(
        lambda f: f.share == "central" and (f.guard.name, f.weighting, f.combiner) != ("none", "examples", "fedavg"),
        "one client has all records and its state is taken as it is",
        "combiner: fedavg, guard.name: none and weighting: examples",
    ),
    Incompatible(
        lambda f: f.share == "central" and (f.clients_per_round is not None or f.client_fraction < 1),
        "one client has all records, so nobody is sampled",
        "clients_per_round: null and client_fraction: 1.0",
    ),
    Incompatible(
        lambda f: f.guard.name == "dp" and f.weighting != "uniform",
        "what one client can do is bounded only where all weigh the same",
        "weighting: uniform",
    ),
    Incompatible(
        lambda f: f.guard.name == "dp" and f.client_clusters.num_clusters > 1,
        "a client that starts from its cluster's mean would see it without noise",
        "client_clusters.num_clusters: 1 (--num-clusters 1)",
    ),
    Incompatible(
        lambda f: f.guard.name == "dp" and f.server.schedule == "agreement",
        "the step would follow the clients' own updates, without noise",
        "another server.schedule",
    ),
    Incompatible(
        lambda f: f.guard.name == "dp" and f.min_clients > 1,
        "a department whose state stays shows that few answered",
        "min_clients: 1",
    ),
    Incompatible(
        lambda f: _clusters_departments(f) and f.dept_clusters.representation == "product" and f.share != "all",
        "products are compared, and a factor stays with the clients",
        "share: all, or another dept_clusters.representation",
    ),
    Incompatible(
        lambda f: (
            _clusters_departments(f)
            and (f.dept_clusters.select, f.dept_clusters.representation) == ("dynamic", "cross_loss")
        ),
        "clients' fits are compared by their factors, and losses between departments say nothing of them",
        "another dept_clusters.select or dept_clusters.representation",
    ),
    Incompatible(
        lambda f: (
            _clusters_departments(f)
            and f.guard.name == "dp"
            and (f.dept_clusters.select == "dynamic" or f.dept_clusters.representation == "cross_loss")
        ),
        "clients' own fits and losses, without noise, would decide who is mixed",
        "another dept_clusters.select and dept_clusters.representation",
    ),
    Incompatible(
        lambda f: f.dept_clusters.mixes_predictions and f.guard.name == "dp",
        "the clients' losses, without noise, would set the weights of the predictions",
        "dept_clusters.mix: a or all",
    ),
    Incompatible(
        lambda f: f.dept_clusters.mixes_predictions and _has_groups(f),
        "a group reaches its departments by mixing their states, and predictions leave them as they are",
        "dept_clusters.mix: a or all, or hierarchy.groups: {}",
    ),
    Incompatible(
        lambda f: (
            f.client_clusters.num_clusters > 1
            and (f.client_clusters.method, f.client_clusters.representation) != ("kmeans", "raw")
            and (f.share not in ("all", "a") or (f.share == "a" and f.client_clusters.representation == "product"))
        ),
        "clients are compared by factors that they do not all send",
        "client_clusters.representation: raw with method: kmeans, or share: all",
    ),
    Incompatible(
        lambda f: _has_groups(f) and f.share in ("none", "central"),
        "departments have no states of their own that a group could average",
        "hierarchy.groups: {}, or share: all",
    ),
    Incompatible(
        lambda f: _has_groups(f) and _by_products(f),
        "a group averages factors, and these combiners keep whole products beside them",
        "hierarchy.groups: {}, or combiner: flora or fedavg",
    ),
)
