"""Coordinate-wise median: Yin, Chen, Ramchandran, Bartlett 2018, "Byzantine-Robust Distributed Learning" (1803.01498).

``median over c of Δ_c[k]`` for each coordinate k; with an even number of clients the mean of the middle two (arXiv
1803.01498). Fewer than half of the clients cannot move a coordinate out of the others' range.

Medians of A and B, and of all coordinates, are taken independently. So the result is no client's update, and if clients
learn different things it can be much shorter than their mean.
"""

from __future__ import annotations

from fl_lightning.linalg.client_matrix import Array, Residuals, Weights, by_coordinate, check_clients
from fl_lightning.state import LoraState


def median(residuals: Residuals, weights: Weights) -> LoraState:
    """The median of the updates, coordinate by coordinate.

    Args:
        residuals: {client_id: Δ_c}; each tensor is read once.
        weights: {client_id: w_c}; ignored, as in the paper, so claiming more examples gains nothing.

    Returns:
        fp32 on the CPU, computed in fp64, names sorted.

    Raises:
        ValueError: updates that do not match or are not finite, no clients, or weights of other
            clients.

    Example:
        >>> import torch
        >>> values = {"hr/a": [1.0, -9.0], "hr/b": [2.0, 3.0], "hr/c": [700.0, 4.0]}
        >>> residuals = {c: {"lora_A": torch.tensor(v)} for c, v in values.items()}
        >>> median(residuals, dict.fromkeys(values, 1.0))["lora_A"].tolist()
        [2.0, 3.0]
    """
    clients = check_clients(residuals, weights)
    return by_coordinate(residuals, clients, _median)


def _median(ascending: Array) -> Array:
    n = len(ascending)
    median: Array = (ascending[(n - 1) // 2] + ascending[n // 2]) / 2
    return median
