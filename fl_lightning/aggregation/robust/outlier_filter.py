"""Leaving out updates that are much longer than the others, or that point the other way.

Two tests, of clients whose update is not zero:

- norm: ``z_c = (‖Δ_c‖ − median) / spread``, the robust z-score of Iglewicz & Hoaglin 1993 (How to Detect and Handle
  Outliers), with ``spread = max(1.4826 MAD, 0.25 median)`` and MAD the median distance from the median. Out where
  z_c > `max_z`. The floor keeps updates that happen to be equally long from making an outlier of any other: below
  1 + 0.25 `max_z` times the median nobody is one.
- direction: ``cos(Δ_c, u)``, u the geometric median of the directions Δ_c / ‖Δ_c‖ (as in Pillutla et al. 2019, arXiv
  1912.13445). Out where it is below `min_cosine`. A mean, even of the others, would not do: two of eight that send ten
  times the negative would turn it around, and the honest would be out. Directions have length one, so that nobody's
  reference is longer than another's, and their geometric median does not follow a minority.

Never more than half of those tested are out: where more fail, the longest go first, then those of the lowest cosine.
What passes is averaged as it is. Where honest clients learn unrelated things, a negated copy of one of them has a
cosine not far below zero, and passes: it takes a higher `min_cosine` to see it.
"""

from __future__ import annotations

import numpy as np

from fl_lightning.aggregation.robust.geometric_median import weiszfeld
from fl_lightning.aggregation.robust.result import Selection
from fl_lightning.linalg.client_matrix import Array, Residuals, Weights, check_clients
from fl_lightning.linalg.gram import gram_matrix

_FEWEST = 3
"""Fewer updates have no majority to be compared with."""
_SPREAD = 0.25
"""The least spread of norms, as a share of their median."""
_NOWHERE = 1e-6
"""A reference shorter than this has no direction: the clients' directions cancel out."""


def outlier(residuals: Residuals, weights: Weights, *, min_cosine: float = -0.5, max_z: float = 6.0) -> Selection:
    """Everybody but outliers, with the weights they have. Of one or two updates nobody is judged.

    Args:
        residuals: {client_id: Δ_c}; each tensor is read once.
        weights: {client_id: w_c}; they have no say in who is an outlier.
        min_cosine: in [-1, 1], the lowest cosine to the clients' median direction.
        max_z: positive, the highest robust z-score of the norm.

    Raises:
        ValueError: an option out of range, updates that do not match or are not finite, no clients, or weights that do
            not fit.

    Example:
        >>> import torch
        >>> values = {"hr/a": 1.0, "hr/b": 1.1, "hr/c": 0.9, "hr/d": -1.0, "hr/e": 9.0}
        >>> residuals = {c: {"lora_A": torch.tensor([v])} for c, v in values.items()}
        >>> for client_id, why in outlier(residuals, dict.fromkeys(values, 1.0)).rejected.items():
        ...     print(f"{client_id}: {why}")
        hr/d: cosine -1.00 to the clients' median direction, wanted at least -0.5
        hr/e: norm 9, 32 robust deviations above the median 1, wanted at most 6
    """
    if not -1 <= min_cosine <= 1:
        raise ValueError(f"min_cosine: got {min_cosine}, wanted a number in [-1, 1]")
    if not max_z > 0:
        raise ValueError(f"max_z: got {max_z}, wanted a positive number")
    clients = check_clients(residuals, weights)
    gram = gram_matrix(residuals, clients)
    moved = np.flatnonzero(gram.diagonal() > 0)
    why = {}
    if len(moved) >= _FEWEST:
        found = _failing([clients[i] for i in moved], gram[np.ix_(moved, moved)], min_cosine, max_z)
        why = dict(sorted(found[: len(moved) // 2]))
    kept = [c for c in clients if c not in why]
    return Selection({c: float(weights[c]) for c in kept}, dict.fromkeys(kept, 1.0), why)


def _failing(clients: list[str], gram: Array, min_cosine: float, max_z: float) -> list[tuple[str, str]]:
    """Who fails a test and how, the worst first."""
    norms = np.sqrt(gram.diagonal())
    middle = float(np.median(norms))
    scores = robust_z(norms)
    cosines = cosines_to_median_direction(gram)
    found = []
    for client_id, norm, z, cosine in zip(clients, norms.tolist(), scores.tolist(), cosines.tolist(), strict=True):
        reasons = []
        if z > max_z:
            deviations = f"{z:.3g} robust deviations above the median {middle:.3g}, wanted at most {max_z:g}"
            reasons.append(f"norm {norm:.3g}, {deviations}")
        if cosine < min_cosine:
            reasons.append(f"cosine {cosine:.2f} to the clients' median direction, wanted at least {min_cosine:g}")
        if reasons:
            found.append((-max(z, max_z), cosine, client_id, "; ".join(reasons)))
    return [(client_id, why) for _, _, client_id, why in sorted(found)]


def robust_z(norms: Array) -> Array:
    """How many robust standard deviations each is above the median; `norms` are positive, shape (n,).

    Example:
        >>> robust_z(np.array([10.0, 20.0, 30.0, 40.0, 100.0])).round(2).tolist()
        [-1.35, -0.67, 0.0, 0.67, 4.72]
    """
    middle = np.median(norms)
    spread = max(1.4826 * float(np.median(np.abs(norms - middle))), _SPREAD * float(middle))
    scores: Array = (norms - middle) / spread
    return scores


def cosines_to_median_direction(gram: Array) -> Array:
    """Cosine of each update to the geometric median of all directions; 1 where the directions cancel out.

    Args:
        gram: inner products of updates that are not zero, shape (n, n).
    """
    norms = np.sqrt(gram.diagonal())
    cosines = gram / norms[:, None] / norms[None, :]
    shares = weiszfeld(cosines, np.ones(len(gram)))
    length = max(float(shares @ cosines @ shares), 0.0) ** 0.5
    if length < _NOWHERE:
        return np.ones(len(gram))
    found: Array = np.clip(cosines @ shares / length, -1.0, 1.0)
    return found
