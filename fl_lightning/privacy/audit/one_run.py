"""A lower bound on ε from one training run: Steinke, Nasr, Jagielski 2023 (arXiv 2305.08846).

"Privacy Auditing with One (1) Training Run". Each of m canaries is put into the data by a fair coin. From what the run
releases, an auditor guesses coins, and may abstain. If the run is (ε, δ)-differentially private for each record, the
number W of right guesses among r is not much larger than a binomial variable (their theorem 5.2)::

    P[W ≥ v] ≤ P[X ≥ v] + 2 m δ max_i P[v > X ≥ v − i] / i,    X ~ Binomial(r, e^ε / (1 + e^ε))

So every ε is disproved for which this is below 1 − confidence. The guesses may depend on scores in any way, on the
coins only through what the run releases. The number of guesses has to be chosen before the coins are looked at.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

Array = npt.NDArray[np.float64]

CONFIDENCE = 0.95
_PRECISION = 1e-6
"""Of ε; the result is on the safe side."""


def guess_coins(scores: Array, num_guesses: int) -> npt.NDArray[np.int8]:
    """Guess that the canaries with the highest scores were in, and that those with the lowest were out.

    Args:
        scores: one per canary, shape (m,), higher where it looks trained on. Equal ones count in their order.
        num_guesses: r from 0 to m; half of the guesses say in (one fewer if r is odd), half say out.

    Returns:
        1 for in, -1 for out, 0 for no guess, shape (m,).

    Raises:
        ValueError: if the scores are not finite, or r is out of range.

    Example:
        >>> guess_coins(np.array([0.1, 3.0, -2.0, 0.2]), 2).tolist()
        [0, 1, -1, 0]
    """
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError(f"scores: expected finite numbers of shape (m,), got shape {scores.shape}")
    if not 0 <= num_guesses <= len(scores):
        raise ValueError(f"num_guesses: expected 0 to {len(scores)}, the number of canaries, got {num_guesses}")
    guesses = np.zeros(len(scores), np.int8)
    order = np.argsort(scores, kind="stable")
    num_in = num_guesses // 2
    guesses[order[: num_guesses - num_in]] = -1
    guesses[order[len(order) - num_in :]] = 1
    return guesses


def p_value(epsilon: float, delta: float, *, canaries: int, guesses: int, correct: int) -> float:
    """The largest probability of at least so many right guesses if the run is (ε, δ)-differentially private.

    Args:
        epsilon: ε ≥ 0.
        delta: δ in [0, 1].
        canaries: m, each in by a fair coin.
        guesses: r ≤ m.
        correct: v ≤ r.

    Example:
        >>> round(p_value(0.0, 0.0, canaries=10, guesses=10, correct=9), 6)  # 11 / 1024
        0.010742
    """
    _check(delta, canaries, guesses, correct)
    if correct == 0:
        return 1.0
    rate = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, rate))
    if delta == 0:
        return tail
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, rate))
    slope = float((below / np.arange(1, correct + 1)).max())
    return min(1.0, tail + 2 * canaries * delta * slope)


def epsilon_lower_bound(
    canaries: int, guesses: int, correct: int, delta: float = 0.0, *, confidence: float = CONFIDENCE
) -> float:
    """The largest ε such that so many right guesses disprove (ε, δ)-differential privacy; 0 if they disprove nothing.

    Args:
        canaries: m, each in by a fair coin.
        guesses: r ≤ m, a number chosen before the coins are looked at.
        correct: v ≤ r.
        delta: δ in [0, 1].
        confidence: at which the bound holds, in (0, 1).

    Returns:
        ε, at most 1e-6 below the exact value.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> round(epsilon_lower_bound(100, 100, 100), 2), round(epsilon_lower_bound(1000, 1000, 1000), 2)
        (3.49, 5.81)
    """
    _check(delta, canaries, guesses, correct)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number in (0, 1), got {confidence}")

    def is_disproved(epsilon: float) -> bool:
        return p_value(epsilon, delta, canaries=canaries, guesses=guesses, correct=correct) <= 1 - confidence

    if not is_disproved(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while is_disproved(high):
        low, high = high, 2 * high
    while high - low > _PRECISION:
        center = (low + high) / 2
        low, high = (center, high) if is_disproved(center) else (low, center)
    return low


def provable_epsilon(
    canaries: int, guesses: int | None = None, delta: float = 0.0, *, confidence: float = CONFIDENCE
) -> float:
    """The bound if all guesses were right: what this number of guesses can prove at most.

    Args:
        canaries: m.
        guesses: r; None is m.
        delta: δ in [0, 1].
        confidence: of the bound.

    Example:
        >>> round(provable_epsilon(10), 2)  # q / (1 - q) = e^ε with q^10 = 0.05
        1.05
    """
    guesses = canaries if guesses is None else guesses
    return epsilon_lower_bound(canaries, guesses, guesses, delta, confidence=confidence)


def _check(delta: float, canaries: int, guesses: int, correct: int) -> None:
    if not 0 <= delta <= 1:
        raise ValueError(f"delta: expected a number in [0, 1], got {delta}")
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(
            f"correct, guesses, canaries: expected each at most the next, got {correct}, {guesses}, {canaries}"
        )
