"""Which choices of the ``federation`` block go together: a table of those that do not, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fl_lightning.errors import InputError

if TYPE_CHECKING:
    from fl_lightning.config.federation import FederationConfig
    from fl_lightning.config.lora import LoraConfig


def check_combination(federation: FederationConfig) -> None:
    """Check that the choices make sense together.

    Raises:
        InputError: with the reason and what to choose instead.
    """
    for applies, reason in NONSENSE:
        if applies(federation):
            raise InputError(f"federation: got {_choices(federation)}; {reason}")


def check_ranks(lora: LoraConfig, federation: FederationConfig) -> None:
    """Check that clients of several ranks or scales are combined by what can combine them.

    Raises:
        InputError: with the reason and what to choose instead.
    """
    if lora.is_mixed() and federation.combiner not in ("stack", "svd"):
        raise InputError(
            f"lora.profiles: got clients of several ranks or scales with federation.combiner {federation.combiner}, "
            "which averages factors of one shape; wanted combiner: stack or svd"
        )


def _choices(federation: FederationConfig) -> str:
    guard, server = federation.guard.name, federation.server
    return (
        f"share {federation.share}, combiner {federation.combiner}, guard {guard}, server step {server.step}, "
        f"schedule {server.schedule}"
    )


def _clusters_departments(federation: FederationConfig) -> bool:
    return federation.dept_clusters.enabled


def _by_products(federation: FederationConfig) -> bool:
    return federation.combiner in ("stack", "residual", "svd")


def _has_groups(federation: FederationConfig) -> bool:
    """Whether there are groups of departments; a team of clients is a department like others."""
    return any("/" not in name for members in federation.hierarchy.groups.values() for name in members)


NONSENSE: tuple[tuple[Callable[[FederationConfig], bool], str], ...] = (
    (
        lambda f: f.share == "none" and _clusters_departments(f),
        "nothing is sent, so departments have nothing to compare or to mix; wanted dept_clusters.enabled: false "
        "(--no-dept-clustering)",
    ),
    (
        lambda f: f.share == "none" and f.client_clusters.num_clusters > 1,
        "nothing is sent, so clients cannot be clustered; wanted client_clusters.num_clusters: 1 (--num-clusters 1)",
    ),
    (
        lambda f: not f.flora.use_residual and (f.server.step != "sgd" or f.server.schedule != "constant"),
        "flora.use_residual: false takes the mean as it is, without a step; wanted server.step: sgd and "
        "server.schedule: constant, or flora.use_residual: true",
    ),
    (
        lambda f: f.guard.name in ("median", "trimmed_mean") and f.server.schedule == "agreement",
        "the guard gives no weights by which the clients' agreement could be measured; wanted another "
        "server.schedule or guard.name",
    ),
    (
        lambda f: f.guard.name in ("median", "trimmed_mean") and f.weighting != "examples",
        "the guard takes every client alike; wanted weighting: examples, or another guard.name",
    ),
    (
        lambda f: f.weighting == "contribution" and f.share in ("a", "b", "none"),
        "clients keep a factor, so the loss of their mean says little of them; wanted share: all, freeze_a or "
        "alternate, or another weighting",
    ),
    (
        lambda f: f.share == "none" and f.guard.name != "none",
        "nothing is sent, so there is nothing to guard; wanted guard.name: none",
    ),
    (
        lambda f: f.share == "freeze_a" and _clusters_departments(f),
        "A stays as it was drawn, and departments are clustered by their A; wanted dept_clusters.enabled: false "
        "(--no-dept-clustering)",
    ),
    (
        lambda f: f.share == "b" and _clusters_departments(f) and f.dept_clusters.mix == "a",
        "clients keep their A, so a mixed A reaches nobody; wanted dept_clusters.mix: all, or dept_clusters.enabled: "
        "false (--no-dept-clustering)",
    ),
    (
        lambda f: f.combiner != "flora" and (f.server.step != "sgd" or f.server.schedule != "constant"),
        "only flora takes a step towards the mean, the other combiners take the mean itself; wanted server.step: sgd "
        "and server.schedule: constant, or combiner: flora",
    ),
    (
        lambda f: _by_products(f) and f.share != "all",
        "products need both factors of every client; wanted share: all, or combiner: flora or fedavg",
    ),
    (
        lambda f: _by_products(f) and f.guard.name != "none",
        "the guards judge factors, and these combiners add up products; wanted guard.name: none, or combiner: flora "
        "or fedavg",
    ),
    (
        lambda f: _by_products(f) and f.client_clusters.num_clusters > 1,
        "a client that starts from its cluster's factors would not start from the exact product; wanted "
        "client_clusters.num_clusters: 1 (--num-clusters 1), or combiner: flora or fedavg",
    ),
    (
        lambda f: _by_products(f) and f.weighting == "contribution",
        "the worth of a client is measured on means of factors; wanted another weighting, or combiner: flora or fedavg",
    ),
    (
        lambda f: f.combiner in ("stack", "svd") and _clusters_departments(f),
        "departments keep no A that could be compared with another's; wanted dept_clusters.enabled: false "
        "(--no-dept-clustering), or combiner: residual",
    ),
    (
        lambda f: f.share == "central" and (_clusters_departments(f) or f.client_clusters.num_clusters > 1),
        "one client has all records, so there is nobody to cluster; wanted dept_clusters.enabled: false "
        "(--no-dept-clustering) and client_clusters.num_clusters: 1 (--num-clusters 1)",
    ),
    (
        lambda f: f.share == "central" and (f.guard.name, f.weighting, f.combiner) != ("none", "examples", "fedavg"),
        "one client has all records and its state is taken as it is; wanted combiner: fedavg, guard.name: none and "
        "weighting: examples",
    ),
    (
        lambda f: f.share == "central" and (f.clients_per_round is not None or f.client_fraction < 1),
        "one client has all records, so nobody is sampled; wanted clients_per_round: null and client_fraction: 1.0",
    ),
    (
        lambda f: f.guard.name == "dp" and f.weighting != "uniform",
        "what one client can do is bounded only where all weigh the same; wanted weighting: uniform",
    ),
    (
        lambda f: f.guard.name == "dp" and f.client_clusters.num_clusters > 1,
        "a client that starts from its cluster's mean would see it without noise; wanted "
        "client_clusters.num_clusters: 1 (--num-clusters 1)",
    ),
    (
        lambda f: f.guard.name == "dp" and f.server.schedule == "agreement",
        "the step would follow the clients' own updates, without noise; wanted another server.schedule",
    ),
    (
        lambda f: f.guard.name == "dp" and f.min_clients > 1,
        "a department whose state stays shows that few answered; wanted min_clients: 1",
    ),
    (
        lambda f: _clusters_departments(f) and f.dept_clusters.representation == "product" and f.share != "all",
        "products are compared, and a factor stays with the clients; wanted share: all, or another "
        "dept_clusters.representation",
    ),
    (
        lambda f: (
            _clusters_departments(f)
            and (f.dept_clusters.select, f.dept_clusters.representation) == ("dynamic", "cross_loss")
        ),
        "clients' fits are compared by their factors, and losses between departments say nothing of them; wanted "
        "another dept_clusters.select or dept_clusters.representation",
    ),
    (
        lambda f: (
            _clusters_departments(f)
            and f.guard.name == "dp"
            and (f.dept_clusters.select == "dynamic" or f.dept_clusters.representation == "cross_loss")
        ),
        "clients' own fits and losses, without noise, would decide who is mixed; wanted another dept_clusters.select "
        "and dept_clusters.representation",
    ),
    (
        lambda f: (
            f.client_clusters.num_clusters > 1
            and (f.client_clusters.method, f.client_clusters.representation) != ("kmeans", "raw")
            and (f.share not in ("all", "a") or (f.share == "a" and f.client_clusters.representation == "product"))
        ),
        "clients are compared by factors that they do not all send; wanted client_clusters.representation: raw with "
        "method: kmeans, or share: all",
    ),
    (
        lambda f: _has_groups(f) and f.share in ("none", "central"),
        "departments have no states of their own that a group could average; wanted hierarchy.groups: {}, or "
        "share: all",
    ),
    (
        lambda f: _has_groups(f) and _by_products(f),
        "a group averages factors, and these combiners keep whole products beside them; wanted hierarchy.groups: {}, "
        "or combiner: flora or fedavg",
    ),
)
