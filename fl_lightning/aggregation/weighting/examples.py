"""Weights by training records, as in FedAvg (McMahan et al. 2017, arXiv 1602.05629): every record counts alike."""

from __future__ import annotations

from collections.abc import Mapping

from fl_lightning.aggregation.weighting.facts import ClientStats, check_some


def weights(updates: Mapping[str, ClientStats]) -> dict[str, float]:
    """``w_c = num_examples``, not normalised.

    Raises:
        ValueError: if there are no clients.

    Example:
        >>> weights({"a": ClientStats(num_examples=3, num_tokens=50), "b": ClientStats(num_examples=1, num_tokens=90)})
        {'a': 3.0, 'b': 1.0}
    """
    check_some(updates)
    return {client: float(facts.num_examples) for client, facts in updates.items()}
