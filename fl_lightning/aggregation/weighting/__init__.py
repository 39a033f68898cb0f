"""Aggregation weights of a department's clients: one file a rule.

A rule gives every client a finite weight of at least 0, and at least one client more than 0. The weights are not
normalised: a mean divides by their sum. Weight 0 means that the client's update is left out of the mean; it
is not raised to some small number, as the mean would hardly differ and a report would say that the client had taken
part. The same facts give the same weights, in the order of the clients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fl_lightning.aggregation.weighting import contribution, examples, loss_improvement, tokens, uniform
from fl_lightning.aggregation.weighting.facts import ClientStats, Weighting
from fl_lightning.errors import InputError, nearest

WEIGHTINGS: dict[str, Callable[..., dict[str, float]]] = {
    "examples": examples.weights,
    "tokens": tokens.weights,
    "uniform": uniform.weights,
    "loss_improvement": loss_improvement.weights,
    "contribution": contribution.weights,
}
"""The rules by name."""

__all__ = ["WEIGHTINGS", "ClientStats", "Weighting", "make_weighting"]


def make_weighting(name: str, **measured: Any) -> Weighting:
    """A rule by name.

    Args:
        name: of `WEIGHTINGS`.
        measured: what the rule needs besides the clients' facts: ``loss_without`` and ``loss_with`` of
            ``contribution``, which change from round to round.

    Raises:
        InputError: if there is no such rule.

    Example:
        >>> make_weighting("uniform")({"a": ClientStats(num_examples=3, num_tokens=50)})
        {'a': 1.0}
    """
    if name not in WEIGHTINGS:
        choices = ", ".join(WEIGHTINGS)
        raise InputError(f"weighting: got {name!r}, wanted one of {choices}{nearest(str(name), WEIGHTINGS)}")
    return functools.partial(WEIGHTINGS[name], **measured)
