"""Coordinate-wise trimmed mean: Yin, Chen, Ramchandran, Bartlett 2018, "Byzantine-Robust Distributed Learning".

For each coordinate k, the mean of ``Δ_c[k]`` without the ``floor(β n)`` lowest and the ``floor(β n)`` highest of n
clients (arXiv 1803.01498). It withstands that many malicious clients. With β = 0, or too few clients to cut any, it is
the plain mean; for β towards 1/2 it approaches the median.
"""

from __future__ import annotations

import math
from fractions import Fraction

from fl_lightning.linalg.client_matrix import Residuals, Weights, by_coordinate, check_clients
from fl_lightning.state import LoraState


def trimmed_mean(residuals: Residuals, weights: Weights, *, fraction: float = 0.2) -> LoraState:
    """The trimmed mean of the updates, coordinate by coordinate.

    Args:
        residuals: {client_id: Δ_c}; each tensor is read once.
        weights: {client_id: w_c}; ignored, as in the paper, so claiming more examples gains nothing.
        fraction: β, in [0, 0.5), so at least one client remains.

    Returns:
        fp32 on the CPU, computed in fp64, names sorted.

    Raises:
        ValueError: β out of range, updates that do not match or are not finite, no clients, or weights of other
            clients.

    Example:
        >>> import torch
        >>> values = {"hr/a": 1.0, "hr/b": 2.0, "hr/c": 4.0, "hr/d": 700.0}
        >>> residuals = {c: {"lora_A": torch.tensor([v])} for c, v in values.items()}
        >>> trimmed_mean(residuals, dict.fromkeys(values, 1.0), fraction=0.25)["lora_A"].item()
        3.0
    """
    cut = trim_count(fraction, len(residuals))
    clients = check_clients(residuals, weights)
    return by_coordinate(residuals, clients, lambda ascending: ascending[cut : len(clients) - cut].mean(axis=0))


def trim_count(fraction: float, n: int) -> int:
    """Number of clients out of n to cut at each end; the fraction is taken as its decimal digits, without rounding.

    Raises:
        ValueError: if the fraction is not in [0, 0.5).

    Example:
        >>> trim_count(0.29, 100), int(0.29 * 100)
        (29, 28)
    """
    if not 0 <= fraction < 0.5:
        raise ValueError(f"fraction: expected a number in [0, 0.5), got {fraction}")
    return math.floor(Fraction(str(fraction)) * n)
