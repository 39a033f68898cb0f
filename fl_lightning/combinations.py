"""Which choices of the ``federation`` block go together: a table of those that do not, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fl_lightning.errors import InputError

if TYPE_CHECKING:
    from fl_lightning.federation_config import FederationConfig


def check_combination(federation: FederationConfig) -> None:
    """Check that the choices make sense together.

    Raises:
        InputError: with the reason and what to choose instead.
    """
    for applies, reason in NONSENSE:
        if applies(federation):
            raise InputError(f"federation: got {_choices(federation)}; {reason}")


def _choices(federation: FederationConfig) -> str:
    guard, server = federation.guard.name, federation.server
    return f"share {federation.share}, guard {guard}, server step {server.step}, schedule {server.schedule}"


def _clusters_departments(federation: FederationConfig) -> bool:
    return federation.dept_clusters.enabled


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
)
