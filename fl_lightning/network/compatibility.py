"""What a server and its sites must have in common, and who they are to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fl_lightning.config import RunConfig

MUST_MATCH = (
    "seed",
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
"""Keys that must be equal on all machines of a run. Records, batch size, devices and precision are each site's own."""

PLAIN = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class SharedSettings:
    """What one side of a run goes by.

    Attributes:
        values: {dotted key: value}, over `MUST_MATCH`.
        form: in which the base model is held: fp32, bf16, fp16 or 4bit.
        base: SHA-256 of the base model as it is held.
    """

    values: dict[str, Any]
    form: str
    base: str

    @classmethod
    def of(cls, config: RunConfig, form: str, base: str) -> SharedSettings:
        """What a config says."""
        return cls({key: _look_up(config.to_dict(), key) for key in MUST_MATCH}, form, base)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def find_mismatch(site: SharedSettings, server: Mapping[str, Any]) -> str | None:
    """Why a site cannot take part in a server's run; None if it can.

    Args:
        site: the site's side.
        server: the server's, as it came.

    Example:
        >>> site = SharedSettings({"lora.r": 4}, "fp32", "ab")
        >>> find_mismatch(site, {"values": {"lora.r": 8}, "form": "fp32", "base": "ab"})
        'lora.r: the site has 4, the server has 8; wanted the same on both'
    """
    values = server.get("values")
    if not isinstance(values, Mapping):
        return "the server sends no config to compare with; wanted the same version of fl_lightning on both"
    for key, value in site.values.items():
        if key not in values:
            return f"{key}: the site has {value!r}, the server does not say; wanted the same version of fl_lightning"
        if values[key] != value:
            return f"{key}: the site has {value!r}, the server has {values[key]!r}; wanted the same on both"
    if site.form == server.get("form") and site.base != server.get("base"):
        return (
            f"model.name_or_path: the site has a base model with SHA-256 {site.base[:12]}…, the server one with "
            f"{str(server.get('base'))[:12]}…; wanted the same weights on both"
        )
    return None


@dataclass(frozen=True)
class SiteInfo:
    """What a site says of itself; nothing of its records but their number, their length and a hash.

    Attributes:
        client_id: whose records it has.
        train: number of its training records.
        eval: number of its held-out records.
        tokens: of its training records.
        records: a hash of all of them.
        r: rank of its adapter.
        kept: the last round of this run from which it has a factor of its own; 0 for none.
    """

    client_id: str
    train: int
    eval: int
    tokens: int
    records: str
    r: int
    kept: int = 0

    @classmethod
    def read(cls, values: object) -> SiteInfo:
        """What came over the network.

        Raises:
            ValueError: if it is of another form.
        """
        kinds = {"client_id": str, "train": int, "eval": int, "tokens": int, "records": str, "r": int, "kept": int}
        if not isinstance(values, Mapping) or values.keys() != kinds.keys():
            raise ValueError(f"a site's facts: got {str(values)[:80]}, wanted {', '.join(kinds)}")
        for name, kind in kinds.items():
            value = values[name]
            likely = 0 <= value <= 10**12 if isinstance(value, int) else isinstance(value, str) and len(value) <= 512
            if type(value) is not kind or not likely:
                raise ValueError(f"a site's {name}: got {str(value)[:80]!r}, wanted {kind.__name__} of a likely size")
        return cls(**values)


def _look_up(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = found[part]
    return found
