"""Krum: Blanchard, El Mhamdi, Guerraoui, Stainer 2017, "Machine Learning with Adversaries" (arXiv 1703.02757).

``score(c) = Σ ‖Δ_c − Δ_j‖²`` over the n − f − 2 others j that are nearest to c; the client with the lowest score is the
centre. Of n clients up to f may be anything, together and knowing all, as long as n ≥ 2 f + 3.

One client's update is noisier than a mean and forgets what the other clients have learnt: `multi_krum` averages.
Weights are ignored, as in the paper: a client's say does not grow with the examples it claims to have.
"""

from __future__ import annotations

import numpy as np

from fl_lightning.aggregation.robust.result import Selection
from fl_lightning.linalg.client_matrix import Array, Residuals, Weights, check_clients
from fl_lightning.linalg.gram import gram_matrix, squared_distances


def krum(residuals: Residuals, weights: Weights, *, f: int = 1) -> Selection:
    """The one client that is nearest to its n − f − 2 nearest others; the first by id on a tie.

    Args:
        residuals: {client_id: Δ_c}; each tensor is read once.
        weights: {client_id: w_c}.
        f: how many clients may be attackers, 0 or more.

    Raises:
        ValueError: fewer than `clients_needed` clients, updates that do not match or are not finite, or weights that do
            not fit.

    Example:
        >>> import torch
        >>> values = {"hr/a": 1.0, "hr/b": 2.0, "hr/c": 4.0, "hr/d": 6.0, "hr/e": -90.0}
        >>> found = krum({c: {"lora_A": torch.tensor([v])} for c, v in values.items()}, dict.fromkeys(values, 1.0), f=1)
        >>> found.weights
        {'hr/b': 1.0}
        >>> found.rejected["hr/e"]
        'Krum score 1.67e+04, the lowest is 5 of hr/b'
    """
    clients = check_clients(residuals, weights)
    scores, order = ranking(residuals, clients, f)
    best = order[0]
    why = {c: f"Krum score {scores[c]:.3g}, the lowest is {scores[best]:.3g} of {best}" for c in clients if c != best}
    return Selection({best: float(weights[best])}, {best: 1.0}, why)


def clients_needed(f: int) -> int:
    """How many clients f attackers need around them: 2 f + 3."""
    return 2 * f + 3


def ranking(residuals: Residuals, clients: list[str], f: int) -> tuple[dict[str, float], list[str]]:
    """Each client's Krum score, and the clients from the lowest score up, ties by id.

    Args:
        residuals: {client_id: Δ_c}.
        clients: sorted.
        f: how many of them may be attackers.

    Raises:
        ValueError: f is negative, or there are fewer than `clients_needed` clients.
    """
    if f < 0:
        raise ValueError(f"f: got {f}, wanted 0 or more attackers")
    if len(clients) < clients_needed(f):
        raise ValueError(f"Krum: got n = {len(clients)} clients and f = {f}, wanted n >= 2 f + 3 = {clients_needed(f)}")
    found = krum_scores(gram_matrix(residuals, clients), f)
    scores = {c: float(score) for c, score in zip(clients, found, strict=True)}
    return scores, sorted(clients, key=lambda c: (float(f"{scores[c]:.9e}"), c))  # what differs by rounding is a tie


def krum_scores(gram: Array, f: int) -> Array:
    """Sums of the squared distances to the n − f − 2 nearest others, from the inner products: shape (n,)."""
    squared = squared_distances(gram)
    np.fill_diagonal(squared, np.inf)
    squared.sort(axis=1)
    scores: Array = squared[:, : len(gram) - f - 2].sum(axis=1)
    return scores
