"""Aggregation weights of a department's clients.

==================  ==============================================  ====================================================
name                w_c, not normalized                             source
==================  ==============================================  ====================================================
`examples`          num_examples                                    FedAvg, McMahan et al. 2017, arXiv 1602.05629
`tokens`            num_tokens
`uniform`           1
`loss_improvement`  num_examples · max(0, first − last loss)
`contribution`      max(0, L_without(c) − L_with)                   Ghorbani and Zou 2019, arXiv 1904.02868
==================  ==============================================  ====================================================

Every rule gives each client a finite weight of at least 0, and at least one client more than 0. They are not
normalized; a mean divides by their sum. A client of weight 0 is left out of the mean and reported as such, instead of
being raised to some small weight. The same stats give the same weights, in the order of the clients.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args

from fl_lightning.config.federation import WeightingName
from fl_lightning.errors import InputError, nearest

MAX_COUNT = 2**53
"""Integers up to here are exact as floats."""


@dataclass(frozen=True)
class ClientStats:
    """One client's numbers of one round, as it sent them; the server cannot verify them.

    Attributes:
        num_examples: training records, at least 1.
        num_tokens: tokens trained on, over all epochs.
        losses: mean loss of each optimizer step, in order; empty if unknown.

    Raises:
        ValueError: if a count is not an integer or out of range, or a loss is not a number.

    Example:
        >>> ClientStats(num_examples=2, num_tokens=90).losses
        ()
    """

    num_examples: int
    num_tokens: int
    losses: Sequence[float] = ()

    def __post_init__(self) -> None:
        """Check counts and losses, so that no rule fails on them."""
        for name, low in {"num_examples": 1, "num_tokens": 0}.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= MAX_COUNT:
                large = type(value) is int and value.bit_length() > 64  # Python refuses to print very long integers
                shown = f"an integer of {value.bit_length()} bits" if large else repr(value)[:40]
                raise ValueError(f"{name}: expected an integer from {low} to 2^53, got {shown}")
        losses: Sequence[object] = self.losses
        for loss in losses:
            if not isinstance(loss, float) and not (type(loss) is int and abs(loss) <= MAX_COUNT):
                raise ValueError(f"losses: expected numbers, integers up to 2^53, got {type(loss).__name__}")


class Weighting(Protocol):
    """A rule that gives the clients of one department their aggregation weights."""

    def __call__(self, updates: Mapping[str, ClientStats]) -> dict[str, float]:
        """{client_id: weight}, with the properties listed in this module's docstring."""
        ...


def examples(updates: Mapping[str, ClientStats]) -> dict[str, float]:
    """``w_c = num_examples``: every record counts the same.

    Raises:
        ValueError: if there are no clients.

    Example:
        >>> examples({"a": ClientStats(num_examples=3, num_tokens=50), "b": ClientStats(num_examples=1, num_tokens=90)})
        {'a': 3.0, 'b': 1.0}
    """
    _check_not_empty(updates)
    return {client: float(stats.num_examples) for client, stats in updates.items()}


def tokens(updates: Mapping[str, ClientStats]) -> dict[str, float]:
    """``w_c = num_tokens``: every token counts the same, so clients with long records weigh more.

    If no client has tokens, the weights are those by examples.

    Raises:
        ValueError: if there are no clients.

    Example:
        >>> tokens({"a": ClientStats(num_examples=3, num_tokens=50), "b": ClientStats(num_examples=1, num_tokens=90)})
        {'a': 50.0, 'b': 90.0}
    """
    weights = {client: float(stats.num_tokens) for client, stats in updates.items()}
    return weights if any(weights.values()) else examples(updates)


def uniform(updates: Mapping[str, ClientStats]) -> dict[str, float]:
    """``w_c = 1``: one client, one vote.

    Raises:
        ValueError: if there are no clients.

    Example:
        >>> uniform({"a": ClientStats(num_examples=3, num_tokens=50), "b": ClientStats(num_examples=1, num_tokens=90)})
        {'a': 1.0, 'b': 1.0}
    """
    _check_not_empty(updates)
    return dict.fromkeys(updates, 1.0)


def loss_improvement(updates: Mapping[str, ClientStats]) -> dict[str, float]:
    """``w_c = num_examples · max(0, first − last)``: more weight for clients whose training reduced their own loss.

    A client that did not improve has weight 0. A client with fewer than two steps, or with a loss that is not finite,
    has no measurable improvement. Weight 0 would punish small clients, so then all weights are those by examples, and
    also if nobody improved. Clients report their losses themselves and gain weight by exaggerating: use this rule only
    with trusted clients.

    Raises:
        ValueError: if there are no clients.

    Example:
        >>> better, worse = ClientStats(10, 900, losses=[3.0, 2.5]), ClientStats(40, 900, losses=[2.0, 2.5])
        >>> loss_improvement({"better": better, "worse": worse})
        {'better': 5.0, 'worse': 0.0}
    """
    weights: dict[str, float] = {}
    for client, stats in updates.items():
        improvement = improvement_of(stats.losses)
        if improvement is None:
            return examples(updates)
        weights[client] = stats.num_examples * max(0.0, improvement)
    return weights if 0 < sum(weights.values()) < math.inf else examples(updates)


def improvement_of(losses: Sequence[float]) -> float | None:
    """``first − last``: means over the first and the last quarter of a client's step losses, at least one loss each.

    A single step's loss depends mostly on its batch, hence the means.

    Returns:
        None if there are fewer than two losses, or one is not finite.

    Example:
        >>> improvement_of([4.0, 2.0, 9.0, 9.0, 9.0, 9.0, 1.0, 2.0])
        1.5
    """
    if len(losses) < 2 or not all(math.isfinite(loss) for loss in losses):
        return None
    quarter = max(1, len(losses) // 4)
    return sum(losses[:quarter]) / quarter - sum(losses[-quarter:]) / quarter


def contribution(
    updates: Mapping[str, ClientStats], *, loss_without: Mapping[str, float], loss_with: float
) -> dict[str, float]:
    """``w_c = max(0, L_without(c) − L_with)``: how much worse the department's mean is without the client.

    The caller measures the losses on records that it trusts. Two clients with the same data both look dispensable,
    since each can replace the other. The weights are those by examples if nobody contributes, if a loss is not finite,
    and for a single client, without which there is no mean.

    Args:
        updates: the clients.
        loss_without: {client_id: loss of the mean over all clients but this one}; other clients are ignored.
        loss_with: loss of the mean over all clients.

    Raises:
        ValueError: if there are no clients, or several and a client's loss is missing.

    Example:
        >>> clients = {"a": ClientStats(3, 50), "b": ClientStats(1, 90)}
        >>> contribution(clients, loss_without={"a": 2.5, "b": 1.75}, loss_with=2.0)
        {'a': 0.5, 'b': 0.0}
    """
    if len(updates) < 2:
        return examples(updates)
    if missing := [client for client in updates if client not in loss_without]:
        raise ValueError(f"loss_without: expected a loss for every client, got none for {missing[0]!r}")
    losses = {client: loss_without[client] for client in updates}
    if not all(math.isfinite(loss) for loss in (loss_with, *losses.values())):
        return examples(updates)
    weights = {client: max(0.0, loss - loss_with) for client, loss in losses.items()}
    return weights if 0 < sum(weights.values()) < math.inf else examples(updates)


WEIGHTINGS: dict[str, Callable[..., dict[str, float]]] = {name: globals()[name] for name in get_args(WeightingName)}
"""The rules by name."""


def make_weighting(name: str, **measured: Any) -> Weighting:
    """The rule of that name.

    Args:
        name: one of `WEIGHTINGS`.
        measured: inputs of the rule besides the clients' stats: ``loss_without`` and ``loss_with`` of `contribution`,
            which change from round to round.

    Raises:
        InputError: if there is no such rule.

    Example:
        >>> make_weighting("uniform")({"a": ClientStats(num_examples=3, num_tokens=50)})
        {'a': 1.0}
    """
    if name not in WEIGHTINGS:
        choices = ", ".join(WEIGHTINGS)
        raise InputError(f"weighting: expected one of {choices}, got {name!r}{nearest(str(name), WEIGHTINGS)}")
    return functools.partial(WEIGHTINGS[name], **measured)


def _check_not_empty(updates: Mapping[str, ClientStats]) -> None:
    if not updates:
        raise ValueError("clients to weight: expected at least one, got none")
