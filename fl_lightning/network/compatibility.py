"""What the configs of a server and its sites must have in common, and what a site says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fl_lightning.config import RunConfig

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
    "federation.share",
    "federation.combiner",
    "network.transport",
    "network.local_privacy",
)
"""Keys that must be equal on all machines of a run. Records, batch size, devices and precision may differ."""


PROTOCOL_VERSION = 3
"""Of the messages between server and site; it grows with every change that the other side would not understand."""


@dataclass(frozen=True)
class SharedSettings:
    """The settings of one side of a run that the other side's must match.

    Attributes:
        values: {dotted key: value} for the keys in `MUST_MATCH`.
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
        return cls({key: _look_up(blocks, key) for key in MUST_MATCH}, base_precision, base_fingerprint)

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
        train: number of training records.
        eval: number of held-out records.
        tokens: in the training records.
        records: hash of all records.
        r: rank of the adapter.
        kept: last round of this run after which the site saved its private factor; 0 if there is none.
    """

    client_id: str
    train: int
    eval: int
    tokens: int
    records: str
    r: int
    kept: int = 0

    @classmethod
    def from_dict(cls, values: object) -> SiteInfo:
        """Check and convert values as received.

        Raises:
            ValueError: if names, types or sizes are not those of a site.
        """
        kinds = {"client_id": str, "train": int, "eval": int, "tokens": int, "records": str, "r": int, "kept": int}
        if not isinstance(values, Mapping) or values.keys() != kinds.keys():
            raise ValueError(f"a site's values: expected {', '.join(kinds)}, got {str(values)[:80]}")
        for name, kind in kinds.items():
            value = values[name]
            in_range = 0 <= value <= 10**12 if isinstance(value, int) else isinstance(value, str) and len(value) <= 512
            if type(value) is not kind or not in_range:
                limits = "0 to 10^12" if kind is int else "at most 512 characters"
                raise ValueError(f"a site's {name}: expected {kind.__name__} ({limits}), got {str(value)[:80]!r}")
        return cls(**values)


def _look_up(blocks: Mapping[str, Any], key: str) -> Any:
    value: Any = blocks
    for part in key.split("."):
        value = value[part]
    return value
