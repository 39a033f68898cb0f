"""What a client takes, from the losses of its selection records under every level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fl_lightning.personalization.mixture import Array, fit_weights

OWN_TOKENS = 1.0
"""Target tokens that count for the clients' own adapters in the weights of their department."""


@dataclass(frozen=True)
class Choice:
    """What one client takes.

    Attributes:
        level: index of the level with the lowest loss.
        weights: of the levels in the mixture, shape (M,).
        mixes_parameters: whether one adapter with the weights of the mixture is better than that of the level.
    """

    level: int
    weights: Array
    mixes_parameters: bool = True


def choose_levels(losses: Mapping[str, Array], prior_tokens: float, *, own: int = 0) -> dict[str, Choice]:
    """Choose a level and weights for every client of a department.

    The prior of a client is what the selection records of its department choose together, so that a client with few
    records takes what its department takes, and one with many what its own records say. The prior of the department
    speaks for the clients' own adapters.

    Args:
        losses: {client: losses of the target tokens of its selection records under M levels, shape (tokens, M)}.
        prior_tokens: tokens that the department counts for in a client's choice.
        own: index of the clients' own level.

    Returns:
        {client: choice}, in the order of the clients.

    Raises:
        ValueError: if no client of the department has a selection record.

    Example:
        >>> choice = choose_levels({"a": np.array([[2.0, 1.0]] * 40), "b": np.empty((0, 2))}, prior_tokens=20.0)["b"]
        >>> choice.level, bool(choice.weights[1] > 0.8)
        (1, True)
    """
    together = np.concatenate(list(losses.values()))
    if not len(together):
        raise ValueError("losses: expected a selection record of one client at least, got none")
    for_own = np.zeros(together.shape[1])
    for_own[own] = OWN_TOKENS
    tokens_of_department = max(prior_tokens, 1e-3)  # above 0, for a client without records
    of_department = tokens_of_department * fit_weights(together, for_own)
    mean = tokens_of_department * together.mean(axis=0)
    return {
        client: Choice(int((tokens.sum(axis=0) + mean).argmin()), fit_weights(tokens, of_department))
        for client, tokens in losses.items()
    }
