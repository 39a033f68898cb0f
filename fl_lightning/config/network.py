"""The ``network`` block of the configuration: where the server is, how long it waits, what sites send."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from fl_lightning.config.checks import at_least, check, check_null, one_of, positive, unit


@dataclass
class LocalPrivacyConfig:
    """Noise that each site adds before anything leaves it (local differential privacy)."""

    clip: float | None = None
    """Norm to which a site clips its update before it sends it; null sends it as it is."""
    noise_multiplier: float = 0.0
    """Standard deviation of the noise that the site adds, in clipping norms; 0 adds none."""
    delta: float = 1e-5
    """Of ε and δ, for the account of a site."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        block = "network.local_privacy"
        check_null(self, f"{block}.")
        if self.clip is not None:
            positive(f"{block}.clip", self.clip)
        z = self.noise_multiplier
        check(math.isfinite(z) and z >= 0, f"{block}.noise_multiplier", z, "a finite number of 0 or more")
        wanted = f"0 without {block}.clip: what is not clipped takes noise of no size"
        check(self.clip is not None or z == 0, f"{block}.noise_multiplier", z, wanted)
        check(0 < self.delta < 1, f"{block}.delta", self.delta, "a number between 0 and 1")


@dataclass
class NetworkConfig:
    """A run between machines, by the commands server and client; fit does without."""

    host: str = "127.0.0.1"
    """server: the address to listen on. client: the server's name or address, as its certificate says it."""
    port: int = 9092
    """The server's port."""
    certificates: str = "certs"
    """Folder with certificates and keys, as the command certs makes it."""
    join_timeout: float = 600.0
    """Seconds that the server waits for its sites at the start; as many as quorum says must have come then."""
    deadline: float = 3600.0
    """Seconds that a round, or an evaluation, waits for its sites; then it goes on with those that answered."""
    quorum: float = 1.0
    """Share of each department's asked sites whose answers end a round's wait early; in (0, 1]."""
    max_message_mb: float = 1024.0
    """A larger message is refused, unread."""
    transport: Literal["fp32", "bf16", "int8"] = "fp32"
    """What sites send their update in; bf16 and int8 carry the rounding error over to the next round."""
    local_privacy: LocalPrivacyConfig = field(default_factory=LocalPrivacyConfig)
    """Clipping and noise at the site."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "network.")
        check(bool(self.host.strip()), "network.host", self.host, "a name or an address")
        check(bool(self.certificates.strip()), "network.certificates", self.certificates, "a folder")
        at_least("network.port", self.port, 1)
        check(self.port <= 65535, "network.port", self.port, "a port of at most 65535")
        for key in ("join_timeout", "deadline", "max_message_mb"):
            positive(f"network.{key}", getattr(self, key))
        unit("network.quorum", self.quorum, zero=False)
        one_of("network.transport", self.transport, ("fp32", "bf16", "int8"))
