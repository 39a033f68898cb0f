"""The ``federation.privacy`` block: differential privacy at the server, used by ``guard.name: dp``.

And the ``federation.masking`` block, used by ``secure_aggregation``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fl_lightning.config.checks import Block, Interval, NonNegativeInt, OpenFraction, PositiveFloat, PositiveInt


@dataclass
class PrivacyConfig(Block, key="federation.privacy"):
    """Differential privacy of whole clients, see `fl_lightning.privacy`; towards the server with secure_aggregation."""

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
    curious_clients: NonNegativeInt = 1
    """With secure_aggregation, clients that may take their own noise off a sum, together with the server; the others
    add more for it. Fewer than masking.min_clients."""


@dataclass
class MaskingConfig(Block, key="federation.masking"):
    """Secure aggregation: what clients insist on, see `fl_lightning.privacy.secure_aggregation`."""

    min_clients: Annotated[int, Interval(2, 100_000)] = 3
    """Clients in a sum, at least; they refuse sums of fewer, and a department with fewer keeps its state."""
    threshold: Annotated[float, Interval(0.5, 1, open_high=True)] = 0.667
    """More than this share of the clients must stay in a round; whoever wants to see a single update needs help from
    more than 2 threshold - 1 of them. In [0.5, 1)."""
    bound: PositiveFloat = 4.0
    """Largest change of an element of an update; a client that has changed one by more takes no part. Under guard.name:
    dp updates are clipped instead."""
    max_weight: PositiveInt = 1024
    """Largest weight of a client, that is, records under weighting: examples; the rounding error grows with it."""
