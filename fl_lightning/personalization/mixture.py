"""Weights of a mixture of language models, learnt from the losses of single tokens.

The mixture gives a token the probability ``Σ_m π_m p_m``. Its log-likelihood is concave in π, and so is the log-density
of a Dirichlet prior whose parameters are at least 1; EM therefore finds the optimum from any start inside the simplex
(Dempster, Laird and Rubin 1977).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]

TOLERANCE = 1e-9
"""EM stops when no weight changes by more."""
MAX_STEPS = 10_000


def fit_weights(losses: Array, prior: Array) -> Array:
    """The weights with the highest posterior: EM with a Dirichlet prior.

    Args:
        losses: of T target tokens under M models, in nats, shape (T, M).
        prior: tokens that count for each model before any is seen, the Dirichlet's parameters minus 1, shape (M,).

    Returns:
        Weights of sum 1, shape (M,); the prior's shares if there is no token.

    Raises:
        ValueError: if a loss is not finite, or the prior is negative or, without tokens, zero.

    Example:
        >>> certain = np.array([[0.0, 9.0]] * 30)  # 30 tokens that the first model knows
        >>> fit_weights(certain, np.array([0.0, 10.0])).round(2).tolist()
        [0.75, 0.25]
    """
    if not np.isfinite(losses).all():
        raise ValueError("losses: expected finite numbers, got some that are not")
    if (prior < 0).any() or (not len(losses) and not prior.sum() > 0):
        raise ValueError(f"prior: expected counts of at least 0, and a sum above 0 without tokens, got {prior}")
    weights = np.full(losses.shape[1], 1 / losses.shape[1])
    if not len(losses):
        shares: Array = prior / prior.sum()
        return shares
    likelihoods = np.exp(losses.min(axis=1, keepdims=True) - losses)  # up to a factor for each token, which cancels
    for _ in range(MAX_STEPS):
        joint = likelihoods * weights
        counts = (joint / joint.sum(axis=1, keepdims=True)).sum(axis=0) + prior
        before, weights = weights, counts / counts.sum()
        if np.abs(weights - before).max() <= TOLERANCE:
            break
    return weights


def mixture_losses(losses: Array, weights: Array) -> Array:
    """The loss of every token under a mixture, in nats, shape (T,).

    Args:
        losses: of T target tokens under M models, shape (T, M).
        weights: of the models, shape (M,).

    Example:
        >>> mixture_losses(np.array([[1.0, 5.0]]), np.array([1.0, 0.0])).tolist()
        [1.0]
    """
    best = losses.min(axis=1, keepdims=True)
    mixed: Array = best[:, 0] - np.log(np.exp(best - losses) @ weights)
    return mixed
