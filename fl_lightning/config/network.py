"""The ``network`` block: the server's address, how long it waits, and what sites send."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from fl_lightning.config.checks import (
    Block,
    Interval,
    NonNegativeFloat,
    NotBlank,
    OpenFraction,
    PositiveFloat,
    PositiveFraction,
    check,
)

Transport: TypeAlias = Literal["fp32", "bf16", "int8"]
"""Number formats of updates on the network."""


@dataclass
class LocalPrivacyConfig(Block, key="network.local_privacy"):
    """Noise that each site adds to its update before it sends it (local differential privacy)."""

    clip: PositiveFloat | None = None
    """Norm to which a site clips its update before sending it; null sends it unchanged."""
    noise_multiplier: NonNegativeFloat = 0.0
    """Standard deviation of the noise that the site adds, in clipping norms; 0 adds none."""
    delta: OpenFraction = 1e-5
    """The δ of (ε, δ) in a site's privacy ledger, in (0, 1)."""

    def __post_init__(self) -> None:
        """Check the ranges, and that noise has a clipping norm."""
        super().__post_init__()
        fits = self.clip is not None or self.noise_multiplier == 0
        expected = f"0 if {self.block_key}.clip is null (the noise is measured in clipping norms)"
        check(fits, f"{self.block_key}.noise_multiplier", expected, self.noise_multiplier)


@dataclass
class NetworkConfig(Block, key="network"):
    """A run over several machines, by the commands server and client; fit ignores it."""

    host: Annotated[str, NotBlank("a name or an address")] = "127.0.0.1"
    """server: the address to listen on. client: the server's name or address, as in its certificate."""
    port: Annotated[int, Interval(1, 65535)] = 9092
    """The server's port."""
    certificates: Annotated[str, NotBlank("a folder")] = "certs"
    """Folder of certificates and keys, made by the command certs."""
    join_timeout: PositiveFloat = 600.0
    """Seconds that the server waits for its sites at the start; then the quorum of each department must be there."""
    deadline: PositiveFloat = 3600.0
    """Seconds that a round or an evaluation waits for its sites; then it continues with the replies it has. With
    buffered steps: seconds in a fit after which nobody waits for a site."""
    quorum: PositiveFraction = 1.0
    """Share of each department's requested sites whose replies end a round's wait early, in (0, 1]."""
    max_message_mb: PositiveFloat = 1024.0
    """Size limit of a message in MiB; a larger one is rejected unread."""
    transport: Transport = "fp32"
    """Number format of updates; bf16 and int8 carry the rounding error over to the next round."""
    lend: Literal["off", "department", "all", False] = "off"
    """client: to whom this site's own adapter goes at the end of the run: to nobody, to the sites of its department
    that ask for it by personal.mates, or to all sites that do."""
    roster: Annotated[str, NotBlank("a file")] | None = None
    """client: file with the public key of each site of the department, for federation.secure_aggregation; it must not
    come from the server. The server does not read it."""
    local_privacy: LocalPrivacyConfig = field(default_factory=LocalPrivacyConfig)
    """Clipping and noise at the site."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.lend = self.lend or "off"  # which YAML reads as false
