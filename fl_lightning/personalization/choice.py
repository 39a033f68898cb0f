"""What a client takes, from the losses of its selection records under every level."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fl_lightning.personalization.mixture import Array, fit_weights, mixture_losses

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


def choose_levels(
    losses: Mapping[str, Array],
    prior_tokens: float,
    *,
    own: int = 0,
    levels: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Choice]:
    """Choose a level and weights for every client of a department.

    The prior of a client is what the selection records of its department choose together, so that a client with few
    records takes what its department takes, and one with many what its own records say. The prior of the department
    speaks for the clients' own adapters.

    A level may have several adapters, other ones for each client, as mates have. Then the department chooses between
    levels, each the even mixture of its adapters, and a client's prior divides the weight of a level evenly.

    Args:
        losses: {client: losses of the target tokens of its selection records under M adapters, shape (tokens, M)}.
        prior_tokens: tokens that the department counts for in a client's choice.
        own: index of the clients' own level.
        levels: {client: the level of each of its M adapters}, with the same levels for all clients, in one order; None
            if each adapter is a level, the same for all.

    Returns:
        {client: choice}, in the order of the clients.

    Raises:
        ValueError: if no client of the department has a selection record.

    Example:
        >>> choice = choose_levels({"a": np.array([[2.0, 1.0]] * 40), "b": np.empty((0, 2))}, prior_tokens=20.0)["b"]
        >>> choice.level, bool(choice.weights[1] > 0.8)
        (1, True)
    """
    columns = {c: _columns(tokens.shape[1], None if levels is None else levels[c]) for c, tokens in losses.items()}
    together = np.concatenate([_by_level(tokens, columns[c], _even_mixture) for c, tokens in losses.items()])
    means = np.concatenate([_by_level(tokens, columns[c], _mean) for c, tokens in losses.items()])
    if not len(together):
        raise ValueError("losses: expected a selection record of one client at least, got none")
    for_own = np.zeros(together.shape[1])
    for_own[own] = OWN_TOKENS
    tokens_of_department = max(prior_tokens, 1e-3)  # above 0, for a client without records
    of_department = tokens_of_department * fit_weights(together, for_own)
    mean = tokens_of_department * means.mean(axis=0)
    choices = {}
    for client, tokens in losses.items():
        prior, prior_losses = np.empty(tokens.shape[1]), np.empty(tokens.shape[1])
        for level, indices in enumerate(columns[client]):
            prior[indices], prior_losses[indices] = of_department[level] / len(indices), mean[level]
        choices[client] = Choice(int((tokens.sum(axis=0) + prior_losses).argmin()), fit_weights(tokens, prior))
    return choices


def _columns(num_adapters: int, levels: Sequence[str] | None) -> list[list[int]]:
    """The indices of each level's adapters, in the order of the levels."""
    if levels is None:
        return [[i] for i in range(num_adapters)]
    return [[i for i, name in enumerate(levels) if name == level] for level in dict.fromkeys(levels)]


def _by_level(losses: Array, columns: list[list[int]], combine: Callable[[Array], Array]) -> Array:
    """Losses of the levels, shape (tokens, levels)."""
    return np.stack([combine(losses[:, indices]) for indices in columns], axis=1)


def _even_mixture(losses: Array) -> Array:
    return mixture_losses(losses, np.full(losses.shape[1], 1 / losses.shape[1]))


def _mean(losses: Array) -> Array:
    mean: Array = losses.mean(axis=1)
    return mean
