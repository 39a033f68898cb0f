"""Noise in shares: what a client sends has a part of it, so that nobody sees a sum without.

Kairouz, Liu, Steinke 2021, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation" (arXiv 2102.06387). A client clips its update x to the norm C, rounds it to integers of unit ``u = C / Δ``,
adds discrete Gaussian noise of parameter σ to each, and masks the result:

    q = ⌊x Δ / max(C, ‖x‖)⌋ towards zero,   sent: q + N_ℤ(0, σ²) + masks, modulo 2³²

**How much noise.** The server unmasks no sum of fewer than m = `Terms.clients_needed` clients, and up to c curious ones
may take their own noise off. What is left are at least ``h = m − c`` shares, that of the protected client among them.
So ``σ = ⌈z Δ / √h⌉``: these have at least the variance ``(z Δ)²`` of one server's noise. If all n stay and none is
curious, the sum has ``n / h`` times as much.

**Sensitivity.** Rounding towards zero shortens every vector, so ``‖q‖ ≤ Δ``; what fp64 might add is found by summing
squares of integers, and taken off. The ε of rounded updates is that of exact ones, and no rounding at random is needed.

**Range.** ``n Δ + 12 √n σ < 2³¹``: a sum of discrete Gaussians is subgaussian (Canonne et al. 2020, corollary 17), so
an element of it wraps around with probability below ``2 e⁻⁷²``, 10⁻³¹. Privacy does not depend on that: what happens
to a noisy sum cannot make it less private.

**A sum of discrete Gaussians is not one.** The distance costs ``½ τ d`` beside ``Δ² / h σ²``, with
``τ = 10 Σ_{i<h} exp(−2π² σ² i / (i + 1))`` (theorem 1). From σ = 64 on that is below 10⁻¹⁷⁰⁰⁰; a smaller σ is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fl_lightning.privacy.secure_aggregation.discrete_gaussian import discrete_gaussian
from fl_lightning.privacy.secure_aggregation.terms import Terms

MIN_SIGMA = 64
"""Smallest σ: below, the noise would be rounded too coarsely to be accounted for as one discrete Gaussian."""
TAIL = 12
"""Standard deviations of the noise of a sum that fit into the ring."""


@dataclass(frozen=True)
class NoisePlan:
    """Rounding and noise of a round, in units of the ring.

    Attributes:
        sensitivity: Δ, the largest norm of a client's integers.
        sigma: σ of each client's share; 0 without noise.
        honest: h, the number of shares that are left at worst.
        unit: u, the value of one unit.
    """

    sensitivity: int
    sigma: int
    honest: int
    unit: float

    def multiplier(self, shares: int) -> float:
        """Standard deviation of the noise of a sum with some number of shares, in clipping norms."""
        return math.sqrt(shares) * self.sigma / self.sensitivity


def plan_noise(terms: Terms) -> NoisePlan:
    """How finely clients round and how much noise each adds; all compute the same from the terms.

    Args:
        terms: of a round with noise.

    Raises:
        ValueError: if the terms have no noise, or so many clients or so little noise that σ is too small.

    Example:
        >>> from fl_lightning.privacy.secure_aggregation.terms import NoiseTerms
        >>> plan = plan_noise(Terms("run", "hr", 1, invited=16, size=1, max_weight=1, noise=NoiseTerms(1.0, 1.0)))
        >>> plan.honest, round(plan.multiplier(10), 6), round(plan.multiplier(16), 3)  # 11 must stay
        (10, 1.0, 1.265)
    """
    if terms.noise is None:
        raise ValueError("terms: expected noise, got none")
    noise, clients = terms.noise, terms.invited
    honest = terms.clients_needed - noise.curious
    spread = TAIL * math.sqrt(clients)
    sensitivity = math.floor((2**31 - 2 - spread) / (clients + spread * noise.multiplier / math.sqrt(honest)))
    sigma = _sigma(noise.multiplier, sensitivity, honest)
    if noise.multiplier and sigma < MIN_SIGMA:
        raise ValueError(
            f"noise_multiplier: expected noise of at least {MIN_SIGMA} units of the ring, got {sigma} with "
            f"{noise.multiplier:g} and {clients:,} clients; ask fewer clients, or add more noise"
        )
    return NoisePlan(sensitivity, sigma, honest, noise.clip / sensitivity)


def _sigma(multiplier: float, sensitivity: int, honest: int) -> int:
    """The smallest integer with ``h σ² ≥ (z Δ)²``, computed exactly."""
    wanted = (Fraction(multiplier) * sensitivity) ** 2 / honest
    root = math.isqrt(math.ceil(wanted))
    return root if root * root >= wanted else root + 1


def clip_and_round(values: npt.NDArray[np.float64], plan: NoisePlan, clip: float) -> npt.NDArray[np.int64]:
    """A client's update in units of the ring, of norm Δ at most.

    Args:
        values: x, shape (size,).
        plan: of the round.
        clip: C.

    Returns:
        q, shape (size,). All 0 if an element is not finite: a client that says so would tell of its records.

    Example:
        >>> clip_and_round(np.array([6.0, 8.0]), NoisePlan(100, 0, 1, 0.05), clip=5.0).tolist()
        [60, 80]
        >>> clip_and_round(np.array([0.31, -0.39]), NoisePlan(100, 0, 1, 0.05), clip=5.0).tolist()
        [6, -7]
    """
    largest = float(np.abs(values).max(initial=0.0))
    if not math.isfinite(largest) or largest == 0:
        return np.zeros(len(values), dtype=np.int64)
    scaled = values / largest  # so that squares neither overflow nor vanish
    length = float(np.linalg.norm(scaled))
    exact = scaled * (plan.sensitivity * min(largest / clip, 1 / length))
    rounded = np.trunc(exact).astype(np.int64)
    while int(rounded @ rounded) > plan.sensitivity**2:
        exact *= 1 - 2.0**-40
        rounded = np.trunc(exact).astype(np.int64)
    return rounded


def noise_share(key: bytes, plan: NoisePlan, size: int) -> npt.NDArray[np.int64]:
    """A client's share of the noise, shape (size,).

    Args:
        key: 32 bytes, secret, for this round only.
        plan: of the round.
        size: number of values.
    """
    return discrete_gaussian(key, plan.sigma, size) if plan.sigma else np.zeros(size, dtype=np.int64)
