"""Multi-Krum: Blanchard, El Mhamdi, Guerraoui, Stainer 2017, "Machine Learning with Adversaries" (arXiv 1703.02757).

The mean of the m clients with the lowest Krum scores (`fl_lightning.aggregation.robust.krum`): m = 1 is Krum, and the
larger m, the nearer to the plain mean. By default m = n − f, all that may be honest, so that a round loses as little as
it can.

Scores ignore the weights, as in the paper; the mean of those chosen is weighted, where the paper's is not.
"""

from __future__ import annotations

from fl_lightning.aggregation.robust.krum import ranking
from fl_lightning.aggregation.robust.result import Selection
from fl_lightning.linalg.client_matrix import Residuals, Weights, check_clients


def multi_krum(residuals: Residuals, weights: Weights, *, f: int = 1, m: int | None = None) -> Selection:
    """The m clients with the lowest Krum scores, with the weights they have; ties by id.

    Args:
        residuals: {client_id: Δ_c}; each tensor is read once.
        weights: {client_id: w_c}.
        f: how many clients may be attackers, 0 or more; n must be at least 2 f + 3.
        m: how many are averaged, 1 to n − f; None takes n − f.

    Raises:
        ValueError: too few clients for f, m out of range, updates that do not match or are not finite, or weights that
            do not fit.

    Example:
        >>> import torch
        >>> values = {"hr/a": 1.0, "hr/b": 2.0, "hr/c": 4.0, "hr/d": 6.0, "hr/e": -90.0}
        >>> residuals = {c: {"lora_A": torch.tensor([v])} for c, v in values.items()}
        >>> found = multi_krum(residuals, dict.fromkeys(values, 1.0), f=1)
        >>> sorted(found.weights)
        ['hr/a', 'hr/b', 'hr/c', 'hr/d']
        >>> found.rejected
        {'hr/e': 'Krum score 1.67e+04, the 4 lowest of 5 are at most 20'}
    """
    clients = check_clients(residuals, weights)
    scores, order = ranking(residuals, clients, f)
    if m is not None and not 1 <= m <= len(clients) - f:
        raise ValueError(f"m: got {m}, wanted 1 to n - f = {len(clients) - f} clients")
    chosen = order[: len(clients) - f if m is None else m]
    limit = f"the {len(chosen)} lowest of {len(clients)} are at most {scores[chosen[-1]]:.3g}"
    kept = sorted(chosen)
    why = {c: f"Krum score {scores[c]:.3g}, {limit}" for c in clients if c not in chosen}
    return Selection({c: float(weights[c]) for c in kept}, dict.fromkeys(kept, 1.0), why)
