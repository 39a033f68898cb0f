"""Audit of client-level privacy by canary clients: Andrew, Kairouz, Oh, Oprea, McMahan, Suriyakumar 2024.

"One-shot Empirical Privacy Estimation for Federated Learning" (arXiv 2302.03098). A canary client sends an update of
the clipping norm in a random direction. In many dimensions such directions are nearly orthogonal to each other and to
all else, so many canaries are audited in one run: the sum of what is released has a larger product with the direction
of a canary that took part than with that of one that did not.

Here the mechanism is audited alone, without training: canaries send the same update in every round, and nobody else
sends anything. That is the worst case for one client. It tests clipping, noise and account as they are implemented.

Noise in shares is audited at its least: as many shares as are left if all clients drop out that may, and the curious
ones take theirs off. Masks, which cancel, are left out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import norm

from fl_lightning.privacy.accountant import epsilon, epsilon_of_shares
from fl_lightning.privacy.audit.one_run import CONFIDENCE, epsilon_lower_bound, guess_coins, provable_epsilon
from fl_lightning.privacy.mechanism import noisy_mean

if TYPE_CHECKING:
    from fl_lightning.privacy.secure_aggregation.terms import Terms

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MechanismAudit:
    """What canary clients have found.

    Attributes:
        canaries: number of canary clients, each in by a fair coin.
        dimension: of the updates.
        rounds: number of rounds in which those that are in take part.
        guesses: number of guessed coins.
        correct: those that were right.
        epsilon: lower bound on ε from the guesses, at 95 % confidence.
        provable: the bound if all had been right.
        estimate: ε of two normal distributions with the means and the spread of the scores. It is no bound.
        estimate_low: the same with the lower end of a 95 % interval of their distance.
        estimate_high: with the upper end.
        upper: the accountant's ε.
    """

    canaries: int
    dimension: int
    rounds: int
    guesses: int
    correct: int
    epsilon: float
    provable: float
    estimate: float
    estimate_low: float
    estimate_high: float
    upper: float

    def to_dict(self) -> dict[str, float]:
        """The values, as JSON."""
        return asdict(self)


def audit_mechanism(
    *,
    canaries: int,
    dimension: int,
    noise_multiplier: float,
    rounds: int,
    delta: float,
    seed: int,
    shares: Terms | None = None,
) -> MechanismAudit:
    """Run the mechanism on canary clients alone, and guess which of them took part.

    Args:
        canaries: k; far fewer than dimensions, since included canaries are noise for each other.
        dimension: d of the updates.
        noise_multiplier: z of the mechanism, above 0.
        rounds: T.
        delta: δ in (0, 1).
        seed: of coins, directions and noise.
        shares: terms of a round of secure aggregation, whose clients add the noise in shares; None for a server's
            noise. Their clipping norm must be 1 and their noise multiplier z.

    Raises:
        ValueError: if an argument is out of range.
        InputError: if dp-accounting is not installed.
    """
    if canaries < 4 or dimension < 1 or rounds < 1 or not noise_multiplier > 0:
        raise ValueError(
            f"canaries, dimension, rounds, noise_multiplier: expected at least 4, 1 and 1, and a number above 0, got "
            f"{canaries}, {dimension}, {rounds}, {noise_multiplier}"
        )
    generator = np.random.default_rng(seed)
    coins = generator.integers(0, 2, canaries).astype(bool)
    directions = generator.standard_normal((canaries, dimension), dtype=np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    included = [directions[i] for i in np.flatnonzero(coins)]
    released = np.zeros(dimension)
    for round_num in range(rounds):
        key = hashlib.sha256(f"mechanism audit/{seed}/{round_num}".encode())
        if shares is None:
            released += _sum_at_a_server(included, dimension, canaries, noise_multiplier, key.hexdigest())
        else:
            released += _sum_of_shares(included, dimension, shares, key.digest())
    scores = np.array([direction.astype(np.float64) @ released for direction in directions])
    guesses = guess_coins(scores, canaries)
    correct = int((guesses == np.where(coins, 1, -1)).sum())
    low, middle, high = _distance(scores[coins], scores[~coins])
    return MechanismAudit(
        canaries=canaries,
        dimension=dimension,
        rounds=rounds,
        guesses=canaries,
        correct=correct,
        epsilon=epsilon_lower_bound(canaries, canaries, correct, delta),
        provable=provable_epsilon(canaries, delta=delta),
        estimate=_epsilon(middle, delta),
        estimate_low=_epsilon(low, delta),
        estimate_high=_epsilon(high, delta),
        upper=(
            epsilon(noise_multiplier, rounds, delta, clients=1, asked=1)
            if shares is None
            else epsilon_of_shares(noise_multiplier, rounds, delta)
        ),
    )


def _sum_at_a_server(
    updates: Sequence[npt.NDArray[np.float32]], dimension: int, asked: int, noise_multiplier: float, key: str
) -> Array:
    """The clipped sum, with a server's noise."""
    residuals = {f"canary/{i:06d}": {"lora_A": torch.from_numpy(update)} for i, update in enumerate(updates)}
    like = {"lora_A": torch.zeros(dimension)}
    result = noisy_mean(residuals, clip=1.0, noise_multiplier=noise_multiplier, asked=asked, seed=key, like=like)
    return result.mean["lora_A"].mul(asked).numpy()


def _sum_of_shares(updates: Sequence[npt.NDArray[np.float32]], dimension: int, terms: Terms, key: bytes) -> Array:
    """The sum of what clients clip and round themselves, with as few shares of noise as there may be."""
    from fl_lightning.privacy.secure_aggregation.noise_shares import clip_and_round, noise_share, plan_noise

    plan = plan_noise(terms)
    total = np.zeros(dimension, dtype=np.int64)
    for update in updates:
        total += clip_and_round(update.astype(np.float64), plan, clip=1.0)
    for share in range(plan.honest):
        total += noise_share(hashlib.sha256(key + share.to_bytes(4, "big")).digest(), plan, dimension)
    return np.multiply(total, plan.unit, dtype=np.float64)


def _distance(inside: Array, outside: Array) -> tuple[float, float, float]:
    """Distance of two means in standard deviations, between the ends of its interval (Hedges, Olkin 1985)."""
    n, m = len(inside), len(outside)
    if min(n, m) < 2:
        return 0.0, 0.0, math.inf
    spread = math.sqrt(((n - 1) * inside.var(ddof=1) + (m - 1) * outside.var(ddof=1)) / (n + m - 2))
    middle = float(inside.mean() - outside.mean()) / spread
    error = float(norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(1 / n + 1 / m + middle**2 / (2 * (n + m)))
    return middle - error, middle, middle + error


def _epsilon(distance: float, delta: float) -> float:
    """ε at δ of N(0, 1) against N(distance, 1)."""
    return 0.0 if distance <= 1e-9 else epsilon(1 / distance, 1, delta, clients=1, asked=1)
