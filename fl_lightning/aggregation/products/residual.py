"""Averaged factors, and the residual that their product misses (FedEx-LoRA, Singhal et al. 2024, arXiv 2410.09432).

Clients continue from ``B̄ = Σ w_c B_c`` and ``Ā = Σ w_c A_c``; in the paper ``ΔW_res = Σ w_c s B_c A_c − s B̄ Ā`` is
added to the base, so base and adapter together hold the mean of the products exactly. The residual of n clients of rank
r has at most rank (n − 1) r; it is kept in factors, never as an out × in matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from fl_lightning.aggregation.products.fedavg import average_factors
from fl_lightning.linalg.factors import Product, common_scaling, gather, svd
from fl_lightning.state import LoraState


class AverageAndResidual(NamedTuple):
    """Averaged factors, and by layer the product to be added to the base (its transpose in embeddings and Conv1D)."""

    mean: LoraState
    residual: dict[str, Product]


def average_with_residual(
    clients: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    scales: Mapping[str, float] | float = 1.0,
) -> AverageAndResidual:
    """The mean of the factors, and the remainder of the mean product in exact low-rank factors.

    Args:
        clients: {client: LoRA state}, both factors, of one rank.
        weights: {client: weight}; normalized here.
        scales: the clients' common scale s.

    Returns:
        The mean state, to be used with s, and {layer: (U, V)} with ``U V = ΔW_res``, s and weights included, fp32. Only
        singular values that are zero to fp64 precision are dropped: the rank is 0 if all clients are equal.

    Raises:
        ValueError: if names, shapes, ranks or scales differ, or a value is not finite.

    Example:
        >>> def client(b, a):
        ...     return {"q.lora_A.weight": torch.tensor([[a]]), "q.lora_B.weight": torch.tensor([[b]])}
        >>> mean, residual = average_with_residual({"x": client(1.0, 3.0), "y": client(3.0, 5.0)}, {"x": 1, "y": 1})
        >>> up, down = residual["q"]  # (1·3 + 3·5) / 2 − 2·4
        >>> round((up @ down).item(), 6)
        1.0
    """
    scale = common_scaling(clients, scales)
    department = gather(clients, weights, scales)
    mean = average_factors(clients, weights, scales)
    residual: dict[str, Product] = {}
    for layer in department.layers:
        factors = department.factors(layer)
        product, center = department.stack(factors), department.mean(factors)
        missing = Product(torch.cat([product.up, -scale * center.up], dim=1), torch.cat([product.down, center.down]))
        left, values, right = svd(missing)
        root = values.sqrt()
        residual[layer] = Product((left * root).float(), (root[:, None] * right).float())
    return AverageAndResidual(mean, residual)
