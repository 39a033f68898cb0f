"""Weights by leave-one-out contribution: how much worse the department's mean is without the client.

``w_c = max(0, L_without(c) − L_with)``, where L_with is the loss of the mean over all clients and L_without(c) that of
the mean over all but c, measured by the caller on records that it trusts. The simplest of the valuations that Ghorbani
and Zou (2019, arXiv 1904.02868) compare; two clients with the same data make each other look needless, as either
replaces the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fl_lightning.aggregation.weighting import examples
from fl_lightning.aggregation.weighting.facts import ClientStats


def weights(
    updates: Mapping[str, ClientStats], *, loss_without: Mapping[str, float], loss_with: float
) -> dict[str, float]:
    """``w_c = max(0, L_without(c) − L_with)``, not normalised; 0 for a client without which the mean is no worse.

    The weights are those by examples where nobody contributes, where a loss is not finite, and for a single client,
    without which there is no mean.

    Args:
        updates: the clients.
        loss_without: the loss of the mean without each client; those of other clients are not looked at.
        loss_with: the loss of the mean over all clients.

    Raises:
        ValueError: if there are no clients, or several and a client's loss is not given.

    Example:
        >>> clients = {"a": ClientStats(3, 50), "b": ClientStats(1, 90)}
        >>> weights(clients, loss_without={"a": 2.5, "b": 1.75}, loss_with=2.0)
        {'a': 0.5, 'b': 0.0}
    """
    if len(updates) < 2:
        return examples.weights(updates)
    if missing := [client for client in updates if client not in loss_without]:
        raise ValueError(f"loss_without: none for {missing[0]!r}, wanted one for every client")
    losses = {client: loss_without[client] for client in updates}
    if not all(math.isfinite(loss) for loss in (loss_with, *losses.values())):
        return examples.weights(updates)
    found = {client: max(0.0, loss - loss_with) for client, loss in losses.items()}
    return found if 0 < sum(found.values()) < math.inf else examples.weights(updates)
