"""Krum and multi-Krum: Blanchard, El Mhamdi, Guerraoui, Stainer 2017 (arXiv 1703.02757).

"Machine Learning with Adversaries". ``score(c) = Σ ‖Δ_c − Δ_j‖²`` over the n − f − 2 other clients j nearest to c. Krum
takes the update with the lowest score, multi-Krum the mean of the m updates with the lowest scores. Up to f of n
clients may be malicious, even if they collude and know everything, as long as n ≥ 2 f + 3.

One client's update is noisier than a mean and ignores what the others have learned. So multi-Krum, with m = n − f by
default (all clients that may be honest), loses less.

Scores ignore the weights, as in the paper, so a client gains nothing by claiming more examples. In multi-Krum the mean
of the chosen clients is weighted; in the paper it is not.
"""

from __future__ import annotations

import numpy as np

from fl_lightning.aggregation.robust.result import Selection
from fl_lightning.linalg.client_matrix import Array, Residuals, Weights, check_clients, gram_matrix, squared_distances


def krum(residuals: Residuals, weights: Weights, *, f: int = 1) -> Selection:
    """The client with the lowest Krum score; on a tie the first by id.

    Args:
        residuals: {client_id: Δ_c}; each tensor is read once.
        weights: {client_id: w_c}.
        f: number of clients that may be malicious, at least 0.

    Raises:
        ValueError: fewer than `clients_needed` clients, updates that do not match or are not finite, or weights of
        other
            clients.

    Example:
        >>> import torch
        >>> values = {"hr/a": 1.0, "hr/b": 2.0, "hr/c": 4.0, "hr/d": 6.0, "hr/e": -90.0}
        >>> residuals = {c: {"lora_A": torch.tensor([v])} for c, v in values.items()}
        >>> selection = krum(residuals, dict.fromkeys(values, 1.0), f=1)
        >>> selection.weights
        {'hr/b': 1.0}
        >>> selection.rejected["hr/e"]
        'Krum score 1.67e+04, the lowest is 5 of hr/b'
    """
    clients = check_clients(residuals, weights)
    scores, order = ranking(residuals, clients, f)
    best = order[0]
    rejected = {
        c: f"Krum score {scores[c]:.3g}, the lowest is {scores[best]:.3g} of {best}" for c in clients if c != best
    }
    return Selection({best: float(weights[best])}, {best: 1.0}, rejected)


def multi_krum(residuals: Residuals, weights: Weights, *, f: int = 1, m: int | None = None) -> Selection:
    """The m clients with the lowest Krum scores, with their weights; ties by id.

    Args:
        residuals: {client_id: Δ_c}; each tensor is read once.
        weights: {client_id: w_c}.
        f: number of clients that may be malicious, at least 0; n must be at least 2 f + 3.
        m: number of clients to average, from 1 to n − f; None takes n − f.

    Raises:
        ValueError: too few clients for f, m out of range, updates that do not match or are not finite, or weights of
            other clients.

    Example:
        >>> import torch
        >>> values = {"hr/a": 1.0, "hr/b": 2.0, "hr/c": 4.0, "hr/d": 6.0, "hr/e": -90.0}
        >>> residuals = {c: {"lora_A": torch.tensor([v])} for c, v in values.items()}
        >>> selection = multi_krum(residuals, dict.fromkeys(values, 1.0), f=1)
        >>> sorted(selection.weights)
        ['hr/a', 'hr/b', 'hr/c', 'hr/d']
        >>> selection.rejected
        {'hr/e': 'Krum score 1.67e+04, the 4 lowest of 5 are at most 20'}
    """
    clients = check_clients(residuals, weights)
    scores, order = ranking(residuals, clients, f)
    if m is not None and not 1 <= m <= len(clients) - f:
        raise ValueError(f"m: expected 1 to n - f = {len(clients) - f} clients, got {m}")
    chosen = order[: len(clients) - f if m is None else m]
    limit = f"the {len(chosen)} lowest of {len(clients)} are at most {scores[chosen[-1]]:.3g}"
    selected = sorted(chosen)
    rejected = {c: f"Krum score {scores[c]:.3g}, {limit}" for c in clients if c not in chosen}
    return Selection({c: float(weights[c]) for c in selected}, dict.fromkeys(selected, 1.0), rejected)


def clients_needed(f: int) -> int:
    """Number of clients needed to withstand f malicious ones: 2 f + 3."""
    return 2 * f + 3


def ranking(residuals: Residuals, clients: list[str], f: int) -> tuple[dict[str, float], list[str]]:
    """Each client's Krum score, and the clients in order of increasing score, ties by id.

    Args:
        residuals: {client_id: Δ_c}.
        clients: sorted ids.
        f: number of clients that may be malicious.

    Raises:
        ValueError: if f is negative, or there are fewer than `clients_needed` clients.
    """
    if f < 0:
        raise ValueError(f"f: expected at least 0 malicious clients, got {f}")
    if len(clients) < clients_needed(f):
        raise ValueError(
            f"Krum: expected n >= 2 f + 3 = {clients_needed(f)} clients for f = {f}, got n = {len(clients)}"
        )
    values = krum_scores(gram_matrix(residuals, clients), f)
    scores = {c: float(score) for c, score in zip(clients, values, strict=True)}
    # Scores that differ by rounding only are ties.
    return scores, sorted(clients, key=lambda c: (float(f"{scores[c]:.9e}"), c))


def krum_scores(gram: Array, f: int) -> Array:
    """Sums of the squared distances to the n − f − 2 nearest others, from the Gram matrix; shape (n,)."""
    squared = squared_distances(gram)
    np.fill_diagonal(squared, np.inf)
    squared.sort(axis=1)
    scores: Array = squared[:, : len(gram) - f - 2].sum(axis=1)
    return scores
