"""Choices of the ``federation`` block that do not go with secure aggregation, each with its reason and the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl_lightning.config.checks import Refusal, check_refusals
from fl_lightning.errors import InputError

if TYPE_CHECKING:
    from fl_lightning.config.federation import FederationConfig
    from fl_lightning.config.run import RunConfig

SECURE: tuple[Refusal, ...] = (
    (
        "guard.name",
        lambda f: f.guard.name not in ("none", "dp"),
        "guards compare single updates, and there is only a sum",
        "none or dp",
    ),
    (
        "privacy.target_quantile",
        lambda f: f.guard.name == "dp" and f.privacy.target_quantile is not None,
        "the norm follows how many updates are clipped, and each client clips its own",
        "null, and a constant privacy.clip",
    ),
    (
        "privacy.curious_clients",
        lambda f: f.guard.name == "dp" and f.privacy.curious_clients >= f.masking.min_clients,
        "a sum of masking.min_clients needs the noise of one that is not",
        "fewer than masking.min_clients, or a larger masking.min_clients",
    ),
    (
        "combiner",
        lambda f: f.combiner in ("stack", "residual", "svd"),
        "products of single clients' factors are combined, and there are only sums of factors",
        "flora or fedavg",
    ),
    (
        "share",
        lambda f: f.share in ("none", "central"),
        "clients send no updates that could be added up",
        "all, freeze_a or alternate",
    ),
    (
        "share",
        lambda f: f.share in ("a", "b"),
        "the department's adapter has the mean of what single clients keep, which is not masked",
        "all, freeze_a or alternate",
    ),
    (
        "share_layers",
        lambda f: f.share_layers is not None,
        "the department's adapter has the mean of what single clients keep, which is not masked",
        "null",
    ),
    (
        "weighting",
        lambda f: f.weighting not in ("examples", "tokens", "uniform"),
        "clients weigh by numbers that the server compares, and it knows the sum of their weights only",
        "examples, tokens or uniform",
    ),
    (
        "server.schedule",
        lambda f: f.server.schedule == "agreement",
        "the step follows the lengths of single updates",
        "another schedule",
    ),
    (
        "client_clusters.num_clusters",
        lambda f: f.client_clusters.num_clusters > 1,
        "clients are clustered by their single updates",
        "1 (--num-clusters 1)",
    ),
    (
        "dept_clusters.select",
        lambda f: f.dept_clusters.enabled and f.dept_clusters.select == "dynamic",
        "the fits of single clients decide how many clusters there are",
        "another rule",
    ),
    (
        "schedule.mode",
        lambda f: f.schedule.mode == "buffered",
        "clients that finish at different times have no round in which masks cancel",
        "sync",
    ),
)
"""Choices of the ``federation`` block: what does not go with secure aggregation."""


def check_secure_aggregation(federation: FederationConfig) -> None:
    """Check that nothing in the ``federation`` block needs a single client's update, if there are only sums.

    Raises:
        InputError: with the reason and what to choose instead.
    """
    if not federation.secure_aggregation:
        return
    check_refusals(federation, "federation", SECURE, "with secure_aggregation: true")


def check_secure_run(config: RunConfig) -> None:
    """Check that nothing else in a config needs a single client's update or adapter, if there are only sums.

    Raises:
        InputError: with the reason and what to choose instead.
    """
    if not config.federation.secure_aggregation:
        return
    weighting, limit = config.federation.weighting, config.federation.masking.max_weight
    largest = _largest_weight(config)
    reasons = {
        f"personal.mates: own adapters are lent as they are; expected off, got {config.personal.mates}": (
            config.personal.mates != "off"
        ),
        "personal.fedalt_weight: own adapters of single clients are averaged; expected 0, got "
        f"{config.personal.fedalt_weight}": config.personal.fedalt_weight > 0,
        f"personal.root: its adapter is trained without masks; expected mean, got {config.personal.root}": (
            config.personal.root != "mean"
        ),
        "retention.client_exports: the server has no client's adapter that it could export; expected 0, got "
        f"{config.retention.client_exports}": config.retention.client_exports > 0,
        f"federation.masking.max_weight: a client may weigh up to {largest} (weighting: {weighting}); expected at "
        f"least that, got {limit}": largest > limit,
    }
    for reason, applies in reasons.items():
        if applies:
            raise InputError(f"{reason}, with federation.secure_aggregation: true")


def _largest_weight(config: RunConfig) -> int:
    """The largest weight that the config allows a client."""
    if config.federation.weighting == "uniform":
        return 1
    records = config.data.max_records
    return records if config.federation.weighting == "examples" else records * _tokens_per_record(config)


def _tokens_per_record(config: RunConfig) -> int:
    """The most tokens that a client trains on for a record."""
    return config.data.max_length * config.training.local_epochs
