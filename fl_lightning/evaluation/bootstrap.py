"""Confidence intervals of ratios of sums over records, by resampling the records."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
MAX_COUNTS = 2_000_000
"""Drawn counts in memory at a time."""


def ratio_interval(
    numerator: Array, denominator: Array, *, seed: int, resamples: int = 1000, level: float = 0.95
) -> dict[str, float]:
    """Σ numerator / Σ denominator over records, with a percentile interval (Efron 1979, "Bootstrap Methods").

    Args:
        numerator: one value per record, such as its summed loss, shape (n,).
        denominator: one value per record, such as its number of tokens, shape (n,), non-negative with a positive sum.
        seed: of the resampling.
        resamples: number of times that n records are drawn with replacement; 0 gives no interval.
        level: of the interval.

    Returns:
        ``mean``, and ``low`` and ``high`` if there are resamples.

    Raises:
        ValueError: if the shapes differ or the denominator's sum is not positive.

    Example:
        >>> ratio_interval(np.array([2.0, 4.0]), np.array([1.0, 2.0]), seed=0)
        {'mean': 2.0, 'low': 2.0, 'high': 2.0}
    """
    if numerator.shape != denominator.shape or numerator.ndim != 1:
        raise ValueError(f"expected two arrays of shape (n,), got shapes {numerator.shape} and {denominator.shape}")
    total = float(denominator.sum())
    if not total > 0:
        raise ValueError(f"denominator: expected a sum above 0, got {total}")
    mean = {"mean": float(numerator.sum()) / total}
    if not resamples:
        return mean
    generator, n = np.random.default_rng(seed), len(numerator)
    ratios: list[Array] = []
    block = max(1, MAX_COUNTS // n)
    for start in range(0, resamples, block):
        counts = generator.multinomial(n, np.full(n, 1 / n), size=min(block, resamples - start))
        sums = counts @ denominator
        ratios.append((counts @ numerator)[sums > 0] / sums[sums > 0])
    low, high = np.quantile(np.concatenate(ratios), [(1 - level) / 2, (1 + level) / 2])
    return {**mean, "low": float(low), "high": float(high)}
