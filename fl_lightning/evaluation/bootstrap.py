"""Confidence intervals of ratios of sums over records, by resampling the records."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
BLOCK = 2_000_000
"""Drawn counts that are held at a time."""


def ratio(
    numerator: Array, denominator: Array, *, seed: int, resamples: int = 1000, level: float = 0.95
) -> dict[str, float]:
    """Σ numerator / Σ denominator over records, with a percentile interval (Efron 1979, "Bootstrap Methods").

    Args:
        numerator: of each record, such as its summed loss, shape (n,).
        denominator: of each record, such as its tokens, shape (n,), not negative, positive in sum.
        seed: of the resampling.
        resamples: how often n records are drawn anew; 0 gives no interval.
        level: of the interval.

    Returns:
        ``mean``, and ``low`` and ``high`` where there are resamples.

    Raises:
        ValueError: if the shapes differ or the denominator adds up to nothing.

    Example:
        >>> ratio(np.array([2.0, 4.0]), np.array([1.0, 2.0]), seed=0)
        {'mean': 2.0, 'low': 2.0, 'high': 2.0}
    """
    if numerator.shape != denominator.shape or numerator.ndim != 1:
        raise ValueError(f"got shapes {numerator.shape} and {denominator.shape}, wanted twice (n,)")
    total = float(denominator.sum())
    if not total > 0:
        raise ValueError(f"denominator: adds up to {total}, wanted more than 0")
    found = {"mean": float(numerator.sum()) / total}
    if not resamples:
        return found
    generator, n = np.random.default_rng(seed), len(numerator)
    drawn: list[Array] = []
    step = max(1, BLOCK // n)
    for start in range(0, resamples, step):
        counts = generator.multinomial(n, np.full(n, 1 / n), size=min(step, resamples - start))
        below = counts @ denominator
        drawn.append((counts @ numerator)[below > 0] / below[below > 0])
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    return {**found, "low": float(low), "high": float(high)}
