"""Coordinate-wise median: Yin, Chen, Ramchandran, Bartlett 2018, "Byzantine-Robust Distributed Learning" (1803.01498).

``median over c of Δ_c[k]`` for each coordinate k, the mean of the middle two where clients are even (arXiv 1803.01498).
Fewer than half of the clients cannot take a coordinate out of the others' range.

The median of A and that of B are taken apart, and coordinates do not know of each other: what comes out is no client's
update, and where clients learn different things it may be much shorter than their mean.
"""

from __future__ import annotations

from fl_lightning.linalg.client_matrix import Array, Residuals, Weights, by_coordinate, check_clients
from fl_lightning.state import LoraState


def median(residuals: Residuals, weights: Weights) -> LoraState:
    """The centre itself.

    Args:
        residuals: {client_id: Δ_c}; each tensor is read once.
        weights: {client_id: w_c}; ignored, as in the paper: a client's say does not grow with the examples it claims.

    Returns:
        fp32 on the CPU, computed in fp64, names sorted.

    Raises:
        ValueError: updates that do not match or are not finite, no clients, or weights that do not fit.

    Example:
        >>> import torch
        >>> values = {"hr/a": [1.0, -9.0], "hr/b": [2.0, 3.0], "hr/c": [700.0, 4.0]}
        >>> residuals = {c: {"lora_A": torch.tensor(v)} for c, v in values.items()}
        >>> median(residuals, dict.fromkeys(values, 1.0))["lora_A"].tolist()
        [2.0, 3.0]
    """
    clients = check_clients(residuals, weights)
    return by_coordinate(residuals, clients, _middle)


def _middle(ascending: Array) -> Array:
    n = len(ascending)
    middle: Array = (ascending[(n - 1) // 2] + ascending[n // 2]) / 2
    return middle
