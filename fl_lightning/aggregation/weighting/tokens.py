"""Weights by tokens trained on: every token counts alike, so that a client of long records weighs more."""

from __future__ import annotations

from collections.abc import Mapping

from fl_lightning.aggregation.weighting import examples
from fl_lightning.aggregation.weighting.facts import ClientStats


def weights(updates: Mapping[str, ClientStats]) -> dict[str, float]:
    """``w_c = num_tokens``, not normalised; a client without tokens has weight 0.

    Where no client has tokens, the weights are those by examples.

    Raises:
        ValueError: if there are no clients.

    Example:
        >>> weights({"a": ClientStats(num_examples=3, num_tokens=50), "b": ClientStats(num_examples=1, num_tokens=90)})
        {'a': 50.0, 'b': 90.0}
    """
    found = {client: float(facts.num_tokens) for client, facts in updates.items()}
    return found if any(found.values()) else examples.weights(updates)
