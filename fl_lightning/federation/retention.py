"""Which rounds' exports and checkpoints are kept: the newest and the best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

BEST = "eval/loss"
"""The metric by which rounds are ranked; lower is better."""


def kept_rounds(
    rounds: Sequence[int], history: Iterable[tuple[int, Mapping[str, float]]], *, last: int, best: int
) -> set[int]:
    """The rounds to keep.

    Args:
        rounds: that exist.
        history: (round, metrics) of the rounds so far.
        last: keep the last n rounds; 0 keeps all.
        best: additionally keep the n rounds with the lowest ``eval/loss``, the earlier one of equals; never round 0.

    Example:
        >>> rows = [(1, {"eval/loss": 3.0}), (2, {"eval/loss": 2.0}), (3, {"eval/loss": 2.5}), (4, {"eval/loss": 2.6})]
        >>> sorted(kept_rounds([1, 2, 3, 4], rows, last=1, best=1))
        [2, 4]
    """
    if not last:
        return set(rounds)
    losses = {step: row[BEST] for step, row in history if step > 0 and BEST in row}
    ranked = sorted(losses, key=lambda step: (losses[step], step))
    return {*sorted(rounds)[-last:], *ranked[:best]} & set(rounds)
