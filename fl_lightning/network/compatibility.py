"""What a run between machines refuses, what the configs of both sides must share, and what a site says about itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from fl_lightning.aggregation.sharing import share_policy
from fl_lightning.config import RunConfig
from fl_lightning.errors import InputError
from fl_lightning.network.masked_compatibility import check_masked

MUST_MATCH = (
    "seed",
    "data.chat_template",
    "data.chat_template_kwargs",
    "data.system_turns",
    "data.template_date",
    "lora.r",
    "lora.lora_alpha",
    "lora.lora_dropout",
    "lora.target_modules",
    "lora.use_rslora",
    "lora.profiles",
    "training.local_epochs",
    "training.learning_rate",
    "training.max_grad_norm",
    "training.weight_decay",
    "training.proximal_mu",
    "training.early_stopping",
    "federation.share",
    "federation.share_layers",
    "federation.combiner",
    "federation.schedule.mode",
    "federation.secure_aggregation",
    "personal.ditto_lambda",
    "personal.apfl_alpha",
    "personal.apfl_rate",
    "network.transport",
    "network.local_privacy",
)
"""Keys that must be equal on all machines of a run. Records, batch size, devices and precision may differ."""
MUST_MATCH_MASKED = (
    "federation.masking",
    "federation.weighting",
    "federation.max_update_norm",
    "federation.guard.name",
    "federation.privacy",
)
"""Further ones with secure aggregation, under which sites do what else the server does."""

PROTOCOL_VERSION = 9
"""Of the messages between server and site; it grows with every change that the other side would not understand."""


def check_between_machines(config: RunConfig) -> None:
    """Check that a run can keep records, private tensors and own adapters at its sites.

    Raises:
        InputError: with the key, the reason and what to choose instead.
    """
    federation, personal = config.federation, config.personal
    policy = share_policy(federation.share, federation.share_layers)
    if policy.is_central:
        raise InputError(
            "federation.share: expected a share without central training, got central, which brings all records to one "
            "place; use another one, or fit"
        )
    if config.data.exclude:
        raise InputError(
            f"data.exclude: expected no names between machines, got {config.data.exclude[0]}; leave out the site by "
            "taking its key out of network.certificates. A site itself leaves out records by data.exclude_records"
        )
    check_masked(config)
    if config.audit.canaries:
        raise InputError(
            f"audit.canaries: expected 0 between machines, where only sites know which records they train on, got "
            f"{config.audit.canaries}; use fit"
        )
    _check_lending(config)
    _check_schedule(config)
    if personal.root != "mean":
        raise InputError(
            f"personal.root: expected mean between machines, got {personal.root}; at the end sites get the mean of all "
            "departments, and another run would be needed to train one adapter of all"
        )
    if config.training.early_stopping and policy.keeps_private:
        part = f"share {federation.share}" if federation.share_layers is None else "share_layers"
        raise InputError(
            f"training.early_stopping: expected false between machines with {part}, got true: a part of the adapter "
            "stays at each site, so nobody has the department's adapter that its clients' selection records would judge"
        )
    if federation.dept_clusters.mixes_predictions:
        raise InputError(
            "federation.dept_clusters.mix: expected a or all between machines, whose sites send sums over records "
            "and never the losses of single tokens, got predictions; use fit"
        )
    if personal.uses_fedalt:
        key, off = ("fedalt_gate", "false") if personal.fedalt_gate else ("fedalt_weight", "0")
        raise InputError(
            f"personal.{key}: expected {off} between machines, where own adapters stay at their sites, got "
            f"{getattr(personal, key)}; use fit"
        )
    starts_elsewhere = policy.keeps_private or federation.client_clusters.num_clusters > 1
    if (personal.ditto_lambda or personal.apfl_alpha < 1) and (
        starts_elsewhere or federation.combiner in ("stack", "svd")
    ):
        key = "ditto_lambda" if personal.ditto_lambda else "apfl_alpha"
        raise InputError(
            f"personal.{key}: expected the default between machines, or sites that start each round from their "
            "department's adapter (share: all, combiner: flora or fedavg, client_clusters.num_clusters: 1), got "
            f"share {federation.share}, combiner {federation.combiner}, "
            f"num_clusters {federation.client_clusters.num_clusters}"
        )


def _check_lending(config: RunConfig) -> None:
    """Check that a site that lends its own adapter has one at the end of the run, and may show it.

    Raises:
        InputError: with the reason and what to choose instead.
    """
    network = config.network
    if network.lend == "off":
        return
    if config.personal.own != "during":
        raise InputError(
            f"network.lend: expected off, or personal.own: during (what a site lends is handed over at the end of the "
            f"run, and personal.own: {config.personal.own} has no own adapter then), got {network.lend}"
        )
    if network.local_privacy.noise_multiplier:
        raise InputError(
            f"network.lend: expected off with network.local_privacy.noise_multiplier "
            f"{network.local_privacy.noise_multiplier:g}, since own adapters are lent without noise, got {network.lend}"
        )


def _check_schedule(config: RunConfig) -> None:
    """Check that time is real, and that no step needs an evaluation: sites train while their departments step.

    Raises:
        InputError: with the key, the reason and what to choose instead.
    """
    federation, clusters = config.federation, config.federation.dept_clusters
    if federation.schedule.clients.speed is not None:
        raise InputError(
            "federation.schedule.clients.speed: expected null between machines, whose clients take the time that they "
            f"take, got {federation.schedule.clients.speed}; use fit for virtual time"
        )
    if federation.schedule.mode == "sync":
        return
    choices = (
        ("training.early_stopping", config.training.early_stopping, "false"),
        ("federation.weighting", federation.weighting == "contribution", "another one"),
        (
            "federation.dept_clusters.representation",
            clusters.enabled and clusters.representation == "cross_loss",
            "another one",
        ),
    )
    for key, is_chosen, expected in choices:
        if is_chosen:
            value = {"federation.weighting": "contribution", "training.early_stopping": "true"}.get(key, "cross_loss")
            raise InputError(
                f"{key}: {value} has all sites evaluate adapters at each step, and sites train while departments step; "
                f"expected {expected} between machines with federation.schedule.mode: buffered, or mode: sync, "
                f"got {value}"
            )


@dataclass(frozen=True)
class SharedSettings:
    """The settings of one side of a run that the other side's must match.

    Attributes:
        values: {dotted key: value} for the keys in `MUST_MATCH`, and `MUST_MATCH_MASKED` with secure aggregation.
        base_precision: of the base model's weights: ``4bit``, or a torch dtype such as ``float32``.
        base_fingerprint: SHA-256 of the base model's weights in this precision.
        protocol: version of the messages.
    """

    values: dict[str, Any]
    base_precision: str
    base_fingerprint: str
    protocol: int = PROTOCOL_VERSION

    @classmethod
    def of(cls, config: RunConfig, base_precision: str, base_fingerprint: str) -> SharedSettings:
        """The settings in a config."""
        blocks = config.to_dict()
        keys = (*MUST_MATCH, *(MUST_MATCH_MASKED if config.federation.secure_aggregation else ()))
        return cls({key: _look_up(blocks, key) for key in keys}, base_precision, base_fingerprint)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, which are sent with each request."""
        return asdict(self)


def find_mismatch(site: SharedSettings, server: object) -> str | None:
    """Why a site cannot take part in a server's run, or None if it can.

    Args:
        site: the site's settings.
        server: the server's settings, as received.

    Example:
        >>> site = SharedSettings({"lora.r": 4}, "fp32", "ab")
        >>> find_mismatch(site, SharedSettings({"lora.r": 8}, "fp32", "ab").to_dict())
        'lora.r: expected the same on both sides, got 8 on the server, 4 at the site'
    """
    same_version = "install the same version of fl_lightning on both sides"
    values = server.get("values") if isinstance(server, Mapping) else None
    if not isinstance(server, Mapping) or not isinstance(values, Mapping) or server.get("protocol") != site.protocol:
        protocol = server.get("protocol") if isinstance(server, Mapping) else None
        return f"expected settings of the server in protocol {site.protocol}, got protocol {protocol}; {same_version}"
    for key, value in site.values.items():
        if key not in values:
            return f"{key}: expected a value of the server, got none, {value!r} at the site; {same_version}"
        if values[key] != value:
            return f"{key}: expected the same on both sides, got {values[key]!r} on the server, {value!r} at the site"
    server_base = str(server.get("base_fingerprint"))
    if site.base_precision == server.get("base_precision") and site.base_fingerprint != server_base:
        return (
            "model.name_or_path: expected the same weights on both sides, got a base model with SHA-256 "
            f"{server_base[:12]}… on the server, {site.base_fingerprint[:12]}… at the site"
        )
    return None


@dataclass(frozen=True)
class SiteInfo:
    """What a site says about itself; about its records only their number, their length and a hash.

    The names are keys in messages and in the server's ``network.json``.

    Attributes:
        client_id: of the site.
        train: number of training records; 1 with secure aggregation, which hides it.
        eval: number of held-out records.
        selection: number of selection records.
        tokens: in the training records; 0 with secure aggregation.
        records: hash of all records.
        r: rank of the adapter.
        kept: last round of this run after which the site saved its private tensors; 0 if there are none.
        lend: to whom it lends its own adapter: off, department or all, as ``network.lend``.
        mates: whose own adapters it asks for, as ``personal.mates``.
        public_key: of the Ed25519 key with which it signs its updates, 64 hexadecimal digits.
    """

    client_id: str
    train: int
    eval: int
    selection: int
    tokens: int
    records: str
    r: int
    kept: int = 0
    lend: str = "off"
    mates: str = "off"
    public_key: str = ""

    def fixed(self) -> SiteInfo:
        """What a site must not change during a run: all but what it has kept, and lends and asks for at the end."""
        return replace(self, kept=0, lend="off", mates="off")

    @classmethod
    def from_dict(cls, values: object) -> SiteInfo:
        """Check and convert values as received.

        Raises:
            ValueError: if names, types or sizes are not those of a site.
        """
        numbers = ("train", "eval", "selection", "tokens", "r", "kept")
        words = ("client_id", "records", "lend", "mates", "public_key")
        kinds: dict[str, type] = {**dict.fromkeys(words, str), **dict.fromkeys(numbers, int)}
        if not isinstance(values, Mapping) or values.keys() != kinds.keys():
            raise ValueError(f"a site's values: expected {', '.join(kinds)}, got {str(values)[:80]}")
        for name, kind in kinds.items():
            value = values[name]
            in_range = 0 <= value <= 10**12 if isinstance(value, int) else isinstance(value, str) and len(value) <= 512
            if type(value) is not kind or not in_range:
                limits = "0 to 10^12" if kind is int else "at most 512 characters"
                raise ValueError(f"a site's {name}: expected {kind.__name__} ({limits}), got {str(value)[:80]!r}")
        for name in ("lend", "mates"):
            if values[name] not in ("off", "department", "all"):
                raise ValueError(f"a site's {name}: expected off, department or all, got {values[name][:80]!r}")
        if not re.fullmatch("[0-9a-f]{64}", values["public_key"]):
            raise ValueError(f"a site's public_key: expected 64 hexadecimal digits, got {values['public_key'][:80]!r}")
        return cls(**values)


def _look_up(blocks: Mapping[str, Any], key: str) -> Any:
    value: Any = blocks
    for part in key.split("."):
        value = value[part]
    return value
