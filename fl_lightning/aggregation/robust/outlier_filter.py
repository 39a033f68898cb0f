"""Outlier filter: reject updates that are much longer than the others, or that point the other way.

Two tests, on clients whose update is not zero:

- norm: ``z_c = (‖Δ_c‖ − median) / spread``, the robust z-score of Iglewicz & Hoaglin 1993 (How to Detect and Handle
  Outliers), with ``spread = max(1.4826 MAD, 0.25 median)``, where MAD is the median distance from the median. Rejected
  if z_c > `max_z`. The lower bound on the spread prevents that any other update becomes an outlier if most happen to be
  equally long: an update shorter than 1 + 0.25 `max_z` times the median is never one.
- direction: ``cos(Δ_c, u)``, u the geometric median of the directions Δ_c / ‖Δ_c‖ (as in Pillutla et al. 2019, arXiv
  1912.13445). Rejected if it is below `min_cosine`. A mean would not work as reference: if two of eight clients send
  ten times the negative, they reverse it, and the honest clients are rejected. Directions have norm one, so all clients
  count the same, and their geometric median does not follow a minority.

At most half of the tested clients are rejected: if more fail, first those with the largest norm, then those with the
lowest cosine. The others are averaged unchanged. If honest clients learn unrelated things, a negated copy of one of
them has a cosine only slightly below zero and passes; detecting it takes a higher `min_cosine`.
"""

from __future__ import annotations

import numpy as np

from fl_lightning.aggregation.robust.geometric_median import weiszfeld
from fl_lightning.aggregation.robust.result import Selection
from fl_lightning.linalg.client_matrix import Array, Residuals, Weights, check_clients, gram_matrix

_MIN_CLIENTS = 3
"""Fewer updates have no majority to compare with."""
_MIN_SPREAD = 0.25
"""Lower bound on the spread of norms, as a fraction of their median."""
_MIN_LENGTH = 1e-6
"""A shorter reference has no direction: the clients' directions cancel out."""


def outlier(residuals: Residuals, weights: Weights, *, min_cosine: float = -0.5, max_z: float = 6.0) -> Selection:
    """All clients but outliers, with their weights. One or two updates are never rejected.

    Args:
        residuals: {client_id: Δ_c}; each tensor is read once.
        weights: {client_id: w_c}; they do not affect which clients are outliers.
        min_cosine: lowest accepted cosine to the clients' median direction, in [-1, 1].
        max_z: highest accepted robust z-score of the norm, positive.

    Raises:
        ValueError: an option out of range, updates that do not match or are not finite, no clients, or weights of
            other clients.

    Example:
        >>> import torch
        >>> values = {"hr/a": 1.0, "hr/b": 1.1, "hr/c": 0.9, "hr/d": -1.0, "hr/e": 9.0}
        >>> residuals = {c: {"lora_A": torch.tensor([v])} for c, v in values.items()}
        >>> for client_id, why in outlier(residuals, dict.fromkeys(values, 1.0)).rejected.items():
        ...     print(f"{client_id}: {why}")
        hr/d: cosine -1.00 to the clients' median direction, expected at least -0.5
        hr/e: norm 9, 32 robust deviations above the median 1, expected at most 6
    """
    if not -1 <= min_cosine <= 1:
        raise ValueError(f"min_cosine: expected a number in [-1, 1], got {min_cosine}")
    if not max_z > 0:
        raise ValueError(f"max_z: expected a positive number, got {max_z}")
    clients = check_clients(residuals, weights)
    gram = gram_matrix(residuals, clients)
    moved = np.flatnonzero(gram.diagonal() > 0)
    rejected = {}
    if len(moved) >= _MIN_CLIENTS:
        failed = _failed_tests([clients[i] for i in moved], gram[np.ix_(moved, moved)], min_cosine, max_z)
        rejected = dict(sorted(failed[: len(moved) // 2]))
    accepted = [c for c in clients if c not in rejected]
    return Selection({c: float(weights[c]) for c in accepted}, dict.fromkeys(accepted, 1.0), rejected)


def _failed_tests(clients: list[str], gram: Array, min_cosine: float, max_z: float) -> list[tuple[str, str]]:
    """(client_id, reason) of clients that fail a test, the worst first."""
    norms = np.sqrt(gram.diagonal())
    median = float(np.median(norms))
    scores = robust_z(norms)
    cosines = cosines_to_median_direction(gram)
    failed = []
    for client_id, norm, z, cosine in zip(clients, norms.tolist(), scores.tolist(), cosines.tolist(), strict=True):
        reasons = []
        if z > max_z:
            deviations = f"{z:.3g} robust deviations above the median {median:.3g}, expected at most {max_z:g}"
            reasons.append(f"norm {norm:.3g}, {deviations}")
        if cosine < min_cosine:
            reasons.append(f"cosine {cosine:.2f} to the clients' median direction, expected at least {min_cosine:g}")
        if reasons:
            failed.append((-max(z, max_z), cosine, client_id, "; ".join(reasons)))
    return [(client_id, why) for _, _, client_id, why in sorted(failed)]


def robust_z(norms: Array) -> Array:
    """Robust z-scores: robust standard deviations above the median. `norms` are positive, shape (n,).

    Example:
        >>> robust_z(np.array([10.0, 20.0, 30.0, 40.0, 100.0])).round(2).tolist()
        [-1.35, -0.67, 0.0, 0.67, 4.72]
    """
    median = np.median(norms)
    spread = max(1.4826 * float(np.median(np.abs(norms - median))), _MIN_SPREAD * float(median))
    scores: Array = (norms - median) / spread
    return scores


def cosines_to_median_direction(gram: Array) -> Array:
    """Cosine of each update to the geometric median of all directions; 1 if the directions cancel out.

    Args:
        gram: inner products of nonzero updates, shape (n, n).
    """
    norms = np.sqrt(gram.diagonal())
    cosines = gram / norms[:, None] / norms[None, :]
    shares = weiszfeld(cosines, np.ones(len(gram)))
    length = max(float(shares @ cosines @ shares), 0.0) ** 0.5
    if length < _MIN_LENGTH:
        return np.ones(len(gram))
    to_median: Array = np.clip(cosines @ shares / length, -1.0, 1.0)
    return to_median
