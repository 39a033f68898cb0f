"""The same weight for every client, however much it has: one client, one vote."""

from __future__ import annotations

from collections.abc import Mapping

from fl_lightning.aggregation.weighting.facts import ClientStats, check_some


def weights(updates: Mapping[str, ClientStats]) -> dict[str, float]:
    """``w_c = 1``, not normalised.

    Raises:
        ValueError: if there are no clients.

    Example:
        >>> weights({"a": ClientStats(num_examples=3, num_tokens=50), "b": ClientStats(num_examples=1, num_tokens=90)})
        {'a': 1.0, 'b': 1.0}
    """
    check_some(updates)
    return dict.fromkeys(updates, 1.0)
