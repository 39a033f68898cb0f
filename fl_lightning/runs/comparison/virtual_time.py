"""How soon a run reaches a loss, in virtual hours."""

from __future__ import annotations

from collections.abc import Mapping

from fl_lightning.runs.comparison.statistics import Interval, RunMetrics, interval


def hours_to_loss(curve: Mapping[int, float], hours: Mapping[int, float], loss: float) -> float | None:
    """Virtual hours at the end of the first round whose held-out loss is at most `loss`; None if there is none.

    Example:
        >>> hours_to_loss({0: 5.0, 1: 3.0, 2: 2.0}, {1: 0.5, 2: 1.0}, 2.5)
        1.0
    """
    return next((hours[number] for number in sorted(hours) if curve.get(number, loss + 1) <= loss), None)


def hours_to_loss_of(first: Mapping[int, RunMetrics], other: Mapping[int, RunMetrics]) -> Interval | None:
    """Virtual hours until the loss that `first` ends with, over the seeds that both have.

    Args:
        first: {seed: run} of the reference config.
        other: {seed: run} of a config.

    Returns:
        None if a run does not reach it, or has no virtual time.
    """
    found = [
        hours_to_loss(run.curve, run.hours, first[seed].curve[max(first[seed].curve)])
        for seed, run in other.items()
        if seed in first and first[seed].curve
    ]
    known = [value for value in found if value is not None]
    return interval(known) if len(known) == len(found) else None
