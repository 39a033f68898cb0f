"""The server's step size η of a round, counted from 1.

==============  ====================================================  =================================================
name            step size η of round t                                function
==============  ====================================================  =================================================
``constant``    momentum in every round
``linear``      momentum + s (end − momentum)                         `linear`
``cosine``      end + (momentum − end) (1 + cos π s) / 2              `cosine`
``agreement``   momentum · ‖Σ w_c Δ_c‖ / Σ w_c ‖Δ_c‖                  `by_update_agreement`
==============  ====================================================  =================================================

with ``s = min(1, (t − 1) / rounds)``: round 1 has `momentum`, and the first round after `rounds` rounds has `end`. So
with an `end` of 0 every one of these rounds still has an effect.
"""

from __future__ import annotations

import math
from typing import get_args

from fl_lightning.config.federation import ScheduleName
from fl_lightning.errors import InputError, nearest


def linear(round_num: int, *, momentum: float, end: float, rounds: int) -> float:
    """A straight line: ``η = momentum + s (end − momentum)``.

    Example:
        >>> [linear(t, momentum=1.0, end=0.0, rounds=4) for t in (1, 2, 4, 5, 9)]
        [1.0, 0.75, 0.25, 0.0, 0.0]
    """
    share = min(1.0, (round_num - 1) / rounds)
    return (1 - share) * momentum + share * end


def cosine(round_num: int, *, momentum: float, end: float, rounds: int) -> float:
    """Half a cosine wave: ``η = end + (momentum − end) (1 + cos π s) / 2``: slow, then fast, then slow.

    Example:
        >>> [round(cosine(t, momentum=1.0, end=0.0, rounds=4), 4) for t in (1, 2, 3, 4, 5, 9)]
        [1.0, 0.8536, 0.5, 0.1464, 0.0, 0.0]
    """
    share = min(1.0, (round_num - 1) / rounds)
    left = (1 + math.cos(math.pi * share)) / 2
    return left * momentum + (1 - left) * end


def by_update_agreement(*, momentum: float, norm_of_mean: float, mean_of_norms: float) -> float:
    """Smaller steps if updates disagree: ``η = momentum ‖Σ w_c Δ_c‖ / Σ w_c ‖Δ_c‖`` with ``Σ w_c = 1``.

    The quotient is 1 if all residuals point in one direction, ``1 / √n`` for n orthogonal ones of equal norm, and 0 if
    they cancel out. It is taken as 1 if no client moved, or if rounding puts it above 1.

    Args:
        momentum: step size at full agreement.
        norm_of_mean: ``‖Σ w_c Δ_c‖``.
        mean_of_norms: ``Σ w_c ‖Δ_c‖``, with the same weights.

    Raises:
        ValueError: if a norm is negative or not finite.

    Example:
        >>> by_update_agreement(momentum=0.5, norm_of_mean=5.0, mean_of_norms=10.0)
        0.25
    """
    for name, value in {"norm_of_mean": norm_of_mean, "mean_of_norms": mean_of_norms}.items():
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
    if norm_of_mean >= mean_of_norms:
        return momentum
    return momentum * (norm_of_mean / mean_of_norms)


SCHEDULES: tuple[str, ...] = get_args(ScheduleName)
"""The names of the schedules."""


def step_size(
    schedule: str,
    round_num: int,
    *,
    momentum: float,
    end: float = 0.0,
    rounds: int = 1,
    norm_of_mean: float = 0.0,
    mean_of_norms: float = 0.0,
) -> float:
    """The step size of a round under a schedule, which uses the arguments that it needs.

    Args:
        schedule: one of `SCHEDULES`.
        round_num: t, from 1.
        momentum: the first step size, or the largest.
        end: ``linear``, ``cosine``: the last step size.
        rounds: ``linear``, ``cosine``: number of rounds from `momentum` to `end`.
        norm_of_mean: ``agreement``: ``‖Σ w_c Δ_c‖``.
        mean_of_norms: ``agreement``: ``Σ w_c ‖Δ_c‖``.

    Raises:
        InputError: if there is no such schedule.
        ValueError: if a number is out of range.

    Example:
        >>> step_size("linear", 2, momentum=1.0, end=0.5, rounds=2)
        0.75
    """
    if schedule not in SCHEDULES:
        choices = ", ".join(SCHEDULES)
        raise InputError(f"schedule: expected one of {choices}, got {schedule!r}{nearest(str(schedule), SCHEDULES)}")
    if round_num < 1:
        raise ValueError(f"round_num: expected at least 1, got {round_num}")
    if not (momentum > 0 and math.isfinite(momentum)):
        raise ValueError(f"momentum: expected a positive finite number, got {momentum}")
    if schedule == "constant":
        return momentum
    if schedule == "agreement":
        return by_update_agreement(momentum=momentum, norm_of_mean=norm_of_mean, mean_of_norms=mean_of_norms)
    if not (end >= 0 and math.isfinite(end)):
        raise ValueError(f"end: expected a finite number of at least 0, got {end}")
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}")
    decay = linear if schedule == "linear" else cosine
    return decay(round_num, momentum=momentum, end=end, rounds=rounds)
