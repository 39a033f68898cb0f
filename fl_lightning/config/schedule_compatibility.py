"""Choices of the ``federation`` block that do not go with its schedule, each with its reason and the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl_lightning.config.checks import Refusal, check_refusals
from fl_lightning.errors import InputError

if TYPE_CHECKING:
    from fl_lightning.config.federation import FederationConfig

BUFFERED: tuple[Refusal, ...] = (
    (
        "combiner",
        lambda f: f.combiner in ("stack", "residual", "svd"),
        "these combiners add up products, and a late client's product is not a change of the newest factors",
        "flora or fedavg",
    ),
    ("share", lambda f: f.share == "central", "one client has all records, so nobody is late", "another share"),
    ("share", lambda f: f.share == "none", "nothing is sent, so departments have no steps", "another share"),
    (
        "share",
        lambda f: f.share == "alternate",
        "clients that started in different rounds train different factors",
        "all, a, b or freeze_a",
    ),
    (
        "client_clusters.num_clusters",
        lambda f: f.client_clusters.num_clusters > 1,
        "a buffer is too small a part of a department to be clustered",
        "1 (--num-clusters 1)",
    ),
    (
        "guard.name",
        lambda f: f.guard.name == "dp",
        "the accountant counts rounds in which clients are sampled at random, and who answers first is not random",
        "another guard",
    ),
    (
        "dept_clusters.select",
        lambda f: f.dept_clusters.enabled and f.dept_clusters.select == "dynamic",
        "clients' fits of all departments are compared, and a step has those of one",
        "another rule",
    ),
    (
        "dept_clusters.mix",
        lambda f: f.dept_clusters.mixes_predictions,
        "predictions are weighed after every round, and a step is of one department",
        "a or all",
    ),
    (
        "clients_per_round",
        lambda f: f.clients_per_round is not None,
        "schedule.concurrency says how many clients train, and schedule.buffer how many a step takes",
        "null",
    ),
    (
        "client_fraction",
        lambda f: f.client_fraction < 1,
        "schedule.concurrency says how many clients train, and schedule.buffer how many a step takes",
        "1.0",
    ),
    (
        "min_clients",
        lambda f: f.min_clients > f.schedule.buffer,
        "no buffer has so many updates",
        "at most schedule.buffer",
    ),
    (
        "guard.f",
        lambda f: f.guard.name in ("krum", "multi_krum") and 2 * f.guard.f + 3 > f.schedule.buffer,
        "the guard needs 2 f + 3 updates, and no buffer has so many",
        "a smaller f, or a larger schedule.buffer",
    ),
)
"""Choices of the ``federation`` block: what does not go with buffered steps."""


def check_schedule(federation: FederationConfig) -> None:
    """Check that the choices of the ``federation`` block go together with its schedule.

    Raises:
        InputError: with the reason and what to choose instead.
    """
    if federation.schedule.mode == "sync":
        if federation.share == "central" and federation.schedule.clients.speed is not None:
            raise InputError(
                "federation.schedule.clients.speed: expected null with share: central, whose one client has no "
                f"profile, got {federation.schedule.clients.speed}"
            )
        return
    check_refusals(federation, "federation", BUFFERED, "with schedule.mode: buffered, or mode: sync")
