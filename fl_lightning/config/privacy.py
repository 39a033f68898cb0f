"""The ``federation.privacy`` block of the configuration: what ``guard.name: dp`` goes by."""

from __future__ import annotations

from dataclasses import dataclass

from fl_lightning.config.checks import at_least, check, check_null, positive


@dataclass
class PrivacyConfig:
    """Differential privacy of whole clients against everybody but the server, see `fl_lightning.privacy`."""

    clip: float = 1.0
    """Norm to which each client's update is clipped; the first one where it follows the clients."""
    noise_multiplier: float = 1.0
    """Noise on the sum of the updates, in clipping norms; more means a smaller epsilon."""
    delta: float = 1e-5
    """The probability that is left out of account; well below one over the number of clients, in (0, 1)."""
    target_quantile: float | None = None
    """The clipping norm moves to this quantile of the updates' norms, in (0, 1); null keeps it as it is."""
    clip_rate: float = 0.2
    """How fast it moves."""
    noise_seed: int | None = None
    """null draws the noise from the system's entropy; a number makes runs repeatable, and the noise no secret."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_null(self, "federation.privacy.")
        block = "federation.privacy"
        positive(f"{block}.clip", self.clip)
        positive(f"{block}.noise_multiplier", self.noise_multiplier)
        check(0 < self.delta < 1, f"{block}.delta", self.delta, "a number between 0 and 1")
        if self.target_quantile is not None:
            ok = 0 < self.target_quantile < 1
            check(ok, f"{block}.target_quantile", self.target_quantile, "a number between 0 and 1, or null")
        positive(f"{block}.clip_rate", self.clip_rate)
        if self.noise_seed is not None:
            at_least(f"{block}.noise_seed", self.noise_seed, 0)
