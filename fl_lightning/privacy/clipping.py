"""Adaptive clipping: Andrew, Thakkar, McMahan, Ramaswamy 2021 (arXiv 1905.03871).

"Differentially Private Learning with Adaptive Clipping". C follows the γ-quantile of the clients' norms:
``C ← C · exp(−η (b̃ − γ))``, where b̃ is the noisy share of updates that were not clipped. The count costs privacy
too: z is split between count and mean, so that both together cost the same as one Gaussian mechanism with noise
multiplier z (their theorem 1).
"""

from __future__ import annotations

import math

from fl_lightning.privacy.noise import gaussian


def default_count_noise(asked: int) -> float:
    """``σ_b = m / 20``, as in the paper: the noise on the share has standard deviation 0.05."""
    return asked / 20


def mean_noise_multiplier(noise_multiplier: float, count_noise: float) -> float:
    """Noise multiplier of the mean: ``z_Δ = (z⁻² − (2 σ_b)⁻²)^(−1/2)``, slightly larger than z.

    The count adds b_c − 1/2 for each client, so one client changes it by 1/2 and its noise multiplier is 2 σ_b.

    Args:
        noise_multiplier: z, at least 0, of mean and count together; 0 gives 0.
        count_noise: σ_b > z / 2, the standard deviation of the noise on the count.

    Raises:
        ValueError: if z is out of range, or σ_b is so small that the count alone costs more than z allows.

    Example:
        >>> round(mean_noise_multiplier(1.2, 1.0), 12)  # (1 / 1.44 − 1 / 4)^(−1/2)
        1.5
    """
    if not (noise_multiplier >= 0 and math.isfinite(noise_multiplier)):
        raise ValueError(f"noise_multiplier: expected a finite number of at least 0, got {noise_multiplier}")
    if not (2 * count_noise > noise_multiplier and math.isfinite(count_noise)):
        raise ValueError(
            f"count_noise: expected a finite number above {noise_multiplier / 2} with noise multiplier "
            f"{noise_multiplier}, got {count_noise}; ask more clients, raise count_noise or lower the noise multiplier"
        )
    return noise_multiplier / math.sqrt(1 - (noise_multiplier / (2 * count_noise)) ** 2)


def next_clip(
    clip: float,
    below: int,
    *,
    present: int,
    asked: int,
    seed: str,
    quantile: float = 0.5,
    rate: float = 0.2,
    count_noise: float | None = None,
) -> float:
    """The next round's C: ``C · exp(−η (b̃ − γ))``, ``b̃ = (Σ_c (b_c − 1/2) + N(0, σ_b²)) / m + 1/2``.

    Args:
        clip: C > 0.
        below: Σ b_c, number of updates not longer than C.
        present: number of updates received; a client that was asked and sent nothing counts as half.
        asked: m, number of clients asked in the round.
        seed: the round's key, as for `noisy_mean`; the draws are different ones.
        quantile: γ in [0, 1], target share of updates that are not clipped.
        rate: η ≥ 0, adaptation rate of C.
        count_noise: σ_b ≥ 0; None takes `default_count_noise`. With 0 the new C reveals how many updates were clipped.

    Raises:
        ValueError: an option is out of range, or not ``below ≤ present ≤ asked``.

    Example:
        >>> round(next_clip(1.0, 3, present=4, asked=4, seed="5e" * 32, count_noise=0.0), 6)  # exp(-0.2 / 4)
        0.951229
    """
    sigma = default_count_noise(asked) if count_noise is None else count_noise
    if not (clip > 0 and math.isfinite(clip)):
        raise ValueError(f"clip: expected a positive finite number, got {clip}")
    if not (0 <= below <= present <= asked and asked > 0):
        raise ValueError(f"below, present, asked: expected each at most the next, got {below}, {present}, {asked}")
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile: expected a number in [0, 1], got {quantile}")
    if not (rate >= 0 and math.isfinite(rate)):
        raise ValueError(f"rate: expected a finite number of at least 0, got {rate}")
    if not (sigma >= 0 and math.isfinite(sigma)):
        raise ValueError(f"count_noise: expected a finite number of at least 0, got {sigma}")
    noise = sigma * gaussian(seed, "count", 1).item()
    share = (below - present / 2 + noise) / asked + 0.5
    return clip * math.exp(-rate * (share - quantile))
