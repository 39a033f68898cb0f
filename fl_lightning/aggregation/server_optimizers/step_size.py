"""The server's step size η of a round, counted from 1.

``constant`` is `momentum` in every round. ``linear`` and ``cosine`` go from `momentum` to `end` by the share
``s = min(1, (t − 1) / rounds)``: round 1 has `momentum`, and the first round after the `rounds` rounds has `end`, so
that an `end` of 0 leaves no round of the run without effect. ``agreement`` goes by how far the clients pull in one
direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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


def agreement(*, momentum: float, norm_of_mean: float, mean_of_norms: float) -> float:
    """Smaller where the clients pull apart: ``η = momentum ‖Σ w_c Δ_c‖ / Σ w_c ‖Δ_c‖`` with ``Σ w_c = 1``.

    The quotient is 1 if all residuals point in one direction, ``1 / √n`` for n equal ones at right angles and 0 if they
    cancel out. It is taken as 1 if nobody moved, and where it is above 1, which only rounding can do to a mean.

    Args:
        momentum: the step size in full agreement.
        norm_of_mean: ``‖Σ w_c Δ_c‖``.
        mean_of_norms: ``Σ w_c ‖Δ_c‖``, with the same weights.

    Raises:
        ValueError: if a norm is negative or not finite.

    Example:
        >>> agreement(momentum=0.5, norm_of_mean=5.0, mean_of_norms=10.0)
        0.25
    """
    for name, value in {"norm_of_mean": norm_of_mean, "mean_of_norms": mean_of_norms}.items():
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name}: got {value}, wanted a finite number of at least 0")
    if norm_of_mean >= mean_of_norms:
        return momentum
    return momentum * (norm_of_mean / mean_of_norms)


SCHEDULES = ("constant", "linear", "cosine", "agreement")
"""The names that `step_size` knows."""

_SHAPES: dict[str, Callable[..., float]] = {"linear": linear, "cosine": cosine}


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
    """The step size of a round by the schedule's name; each schedule looks at what it needs and at nothing else.

    Args:
        schedule: of `SCHEDULES`.
        round_num: t, from 1.
        momentum: the first step size, or the largest.
        end: the last step size, of ``linear`` and ``cosine``.
        rounds: over how many rounds, of ``linear`` and ``cosine``.
        norm_of_mean: of ``agreement``.
        mean_of_norms: of ``agreement``.

    Raises:
        InputError: if there is no such schedule.
        ValueError: if a number is out of its range.

    Example:
        >>> step_size("linear", 2, momentum=1.0, end=0.5, rounds=2)
        0.75
    """
    if schedule not in SCHEDULES:
        choices = ", ".join(SCHEDULES)
        raise InputError(f"schedule: got {schedule!r}, wanted one of {choices}{nearest(str(schedule), SCHEDULES)}")
    if round_num < 1:
        raise ValueError(f"round_num: got {round_num}, wanted at least 1")
    if not (momentum > 0 and math.isfinite(momentum)):
        raise ValueError(f"momentum: got {momentum}, wanted a positive finite number")
    if schedule == "constant":
        return momentum
    if schedule == "agreement":
        return agreement(momentum=momentum, norm_of_mean=norm_of_mean, mean_of_norms=mean_of_norms)
    if not (end >= 0 and math.isfinite(end)):
        raise ValueError(f"end: got {end}, wanted a finite number of at least 0")
    if rounds < 1:
        raise ValueError(f"rounds: got {rounds}, wanted at least 1")
    return _SHAPES[schedule](round_num, momentum=momentum, end=end, rounds=rounds)
