"""Geometric median, RFA: Pillutla, Kakade, Harchaoui 2019, "Robust Aggregation for Federated Learning" (1912.13445).

The z that minimizes ``Σ w_c ‖z − Δ_c‖``: a client pulls with its weight, however far away it is, so clients with less
than half of the total weight cannot move z far. The smoothed Weiszfeld iteration of the paper (arXiv 1912.13445),

``β_c = w_c / max(ν, ‖z − Δ_c‖),  z ← Σ β_c Δ_c / Σ β_c``,

keeps z a weighted mean of the updates, so it needs the weights only: with ``z = Σ p_c Δ_c`` and the Gram matrix G,
``‖z − Δ_c‖² = pᵀ G p − 2 (G p)_c + G_cc``. The updates themselves are read once, for any number of iterations.

The weights count, as in the paper: clients with more than half of the total weight decide.
"""

from __future__ import annotations

import math

import numpy as np

from fl_lightning.aggregation.robust.result import Selection
from fl_lightning.linalg.client_matrix import Array, Residuals, Weights, check_clients, gram_matrix, squared_distances

_ROUNDING = 1e-6
"""Distances below this fraction of an update's norm are rounding errors of G."""
_TOLERANCE = 1e-12
"""The iteration stops when no client's share changes by more."""


def geometric_median(
    residuals: Residuals, weights: Weights, *, iterations: int = 10_000, smoothing: float = 1e-6
) -> Selection:
    """New weights for which the weighted mean of the updates is their geometric median; no client is rejected.

    Args:
        residuals: {client_id: Δ_c}; each tensor is read once.
        weights: {client_id: w_c}.
        iterations: maximum number of Weiszfeld iterations; it stops earlier on convergence. Convergence is slow if the
            median is at or close to a client; the objective is then still within about 1e-8 of its minimum after the
            default number.
        smoothing: ν, in the unit of the updates: smaller distances count as ν.

    Returns:
        Weights with the same sum as `weights`, scales 1.

    Raises:
        ValueError: an option out of range, updates that do not match or are not finite, no clients, or weights of
            other clients.

    Example:
        >>> import torch
        >>> values = {"hr/a": 1.0, "hr/b": 1.5, "hr/c": 1000.0}
        >>> residuals = {c: {"lora_A": torch.tensor([value])} for c, value in values.items()}
        >>> new = geometric_median(residuals, dict.fromkeys(values, 1.0)).weights
        >>> round(sum(new[c] * values[c] for c in values) / 3, 3)  # on a line: the median
        1.5
    """
    if iterations < 1:
        raise ValueError(f"iterations: expected at least 1, got {iterations}")
    if not (smoothing > 0 and math.isfinite(smoothing)):
        raise ValueError(f"smoothing: expected a positive finite number, got {smoothing}")
    clients = check_clients(residuals, weights)
    old = np.array([float(weights[c]) for c in clients])
    shares = weiszfeld(gram_matrix(residuals, clients), old, iterations=iterations, smoothing=smoothing)
    new = {c: float(share * old.sum()) for c, share in zip(clients, shares, strict=True)}
    return Selection(new, dict.fromkeys(clients, 1.0))


def weiszfeld(gram: Array, weights: Array, *, iterations: int = 10_000, smoothing: float = 1e-6) -> Array:
    """Shares p, summing to one, for which the weighted mean of the points is their geometric median.

    It starts from ``p_c ∝ w_c / (median distance of c to the others)``: starting from the weighted mean, a point at
    1e30 would take a hundred iterations to lose its influence. The objective is convex, so the limit is the same. With
    one or two points it starts from the mean.

    Args:
        gram: inner products of the points, shape (n, n).
        weights: positive weights of the points, shape (n,).
        iterations: maximum number of iterations.
        smoothing: ν.
    """
    n, squared = len(gram), gram.diagonal()
    min_distance = np.maximum(smoothing, _ROUNDING * np.sqrt(squared))
    shares = _normalize(weights)
    if n > 2:
        others = squared_distances(gram)[~np.eye(n, dtype=bool)].reshape(n, n - 1)
        shares = _normalize(weights / np.maximum(min_distance, np.sqrt(np.median(others, axis=1))))
    for _ in range(iterations):
        product = gram @ shares
        distances = np.sqrt(np.maximum(shares @ product - 2 * product + squared, 0.0))
        before, shares = shares, _normalize(weights / np.maximum(min_distance, distances))
        if np.abs(shares - before).max() <= _TOLERANCE:
            break
    return shares


def _normalize(values: Array) -> Array:
    shares: Array = values / values.sum()
    return shares
