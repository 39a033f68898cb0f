"""The ``federation.privacy`` block: differential privacy at the server, used by ``guard.name: dp``."""

from __future__ import annotations

from dataclasses import dataclass

from fl_lightning.config.checks import Block, NonNegativeInt, OpenFraction, PositiveFloat


@dataclass
class PrivacyConfig(Block, key="federation.privacy"):
    """Differential privacy of whole clients towards everybody but the server, see `fl_lightning.privacy`."""

    clip: PositiveFloat = 1.0
    """Norm to which each client's update is clipped; the initial one if target_quantile is set."""
    noise_multiplier: PositiveFloat = 1.0
    """Standard deviation of the noise on the sum of updates, in clipping norms; more noise means a smaller epsilon."""
    delta: OpenFraction = 1e-5
    """The δ of (ε, δ); choose it well below one over the number of clients, in (0, 1)."""
    target_quantile: OpenFraction | None = None
    """Adapt the clipping norm to this quantile of the updates' norms, in (0, 1); null keeps it constant."""
    clip_rate: PositiveFloat = 0.2
    """Learning rate of the adaptive clipping norm."""
    noise_seed: NonNegativeInt | None = None
    """null draws the noise from the system's entropy; a number makes runs repeatable but lets anyone who knows it
    remove the noise."""
