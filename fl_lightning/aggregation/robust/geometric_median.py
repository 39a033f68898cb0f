"""Geometric median, RFA: Pillutla, Kakade, Harchaoui 2019, "Robust Aggregation for Federated Learning" (1912.13445).

The z that minimises ``Σ w_c ‖z − Δ_c‖``: clients pull with their weight, however far off they are, so that those who
hold less than half of it cannot take z far away. The smoothed Weiszfeld iteration of the paper (arXiv 1912.13445),

``β_c = w_c / max(ν, ‖z − Δ_c‖),  z ← Σ β_c Δ_c / Σ β_c``,

keeps z a weighted mean of the updates, so it runs on the weights alone: with ``z = Σ p_c Δ_c`` and the Gram matrix G,
``‖z − Δ_c‖² = pᵀ G p − 2 (G p)_c + G_cc``. The updates themselves are read once, whatever the number of iterations.

The weights count, as in the paper: clients with more than half of the total weight decide.
"""

from __future__ import annotations

import math

import numpy as np

from fl_lightning.aggregation.robust.result import Selection
from fl_lightning.linalg.client_matrix import Array, Residuals, Weights, check_clients
from fl_lightning.linalg.gram import gram_matrix, squared_distances

_ROUNDING = 1e-6
"""Distances below this share of an update's norm are not told from zero, as G cannot."""
_SETTLED = 1e-12
"""The iteration ends where no client's share changes by more."""


def geometric_median(
    residuals: Residuals, weights: Weights, *, iterations: int = 1000, smoothing: float = 1e-6
) -> Selection:
    """New weights, with which the mean of the updates is their geometric median; nobody is left out.

    Args:
        residuals: {client_id: Δ_c}; each tensor is read once.
        weights: {client_id: w_c}.
        iterations: of Weiszfeld at most; fewer where it has settled. It is slow where the median is at or close to a
            client; what is minimised is then still within about 1e-5 of the least after the default number.
        smoothing: ν, in the unit of the updates: distances below it count as it.

    Returns:
        Weights that sum up to what `weights` do, scales 1.

    Raises:
        ValueError: an option out of range, updates that do not match or are not finite, no clients, or weights that do
            not fit.

    Example:
        >>> import torch
        >>> values = {"hr/a": 1.0, "hr/b": 1.5, "hr/c": 1000.0}
        >>> residuals = {c: {"lora_A": torch.tensor([value])} for c, value in values.items()}
        >>> found = geometric_median(residuals, dict.fromkeys(values, 1.0)).weights
        >>> round(sum(found[c] * values[c] for c in values) / 3, 3)  # on a line: the median
        1.5
    """
    if iterations < 1:
        raise ValueError(f"iterations: got {iterations}, wanted at least 1")
    if not (smoothing > 0 and math.isfinite(smoothing)):
        raise ValueError(f"smoothing: got {smoothing}, wanted a positive finite number")
    clients = check_clients(residuals, weights)
    given = np.array([float(weights[c]) for c in clients])
    shares = weiszfeld(gram_matrix(residuals, clients), given, iterations=iterations, smoothing=smoothing)
    found = {c: float(share * given.sum()) for c, share in zip(clients, shares, strict=True)}
    return Selection(found, dict.fromkeys(clients, 1.0))


def weiszfeld(gram: Array, weights: Array, *, iterations: int = 1000, smoothing: float = 1e-6) -> Array:
    """Shares p, summing to one, with which points of these inner products average to their geometric median.

    It starts from ``p_c ∝ w_c / (median distance of c to the others)``: from the weighted mean a point at 1e30 would
    take a hundred iterations to lose its say. What is minimised is convex, so the limit is the same. Of one or two
    points it starts from the mean.

    Args:
        gram: inner products of the points, shape (n, n).
        weights: of the points, shape (n,), positive.
        iterations: at most.
        smoothing: ν.
    """
    n, squared = len(gram), gram.diagonal()
    least = np.maximum(smoothing, _ROUNDING * np.sqrt(squared))
    shares = _normalised(weights)
    if n > 2:
        others = squared_distances(gram)[~np.eye(n, dtype=bool)].reshape(n, n - 1)
        shares = _normalised(weights / np.maximum(least, np.sqrt(np.median(others, axis=1))))
    for _ in range(iterations):
        product = gram @ shares
        distances = np.sqrt(np.maximum(shares @ product - 2 * product + squared, 0.0))
        before, shares = shares, _normalised(weights / np.maximum(least, distances))
        if np.abs(shares - before).max() <= _SETTLED:
            break
    return shares


def _normalised(values: Array) -> Array:
    shares: Array = values / values.sum()
    return shares
