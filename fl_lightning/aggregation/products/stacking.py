"""Stacking of LoRA factors (FLoRA, Wang et al. 2024, arXiv 2409.05976).

``A = [A_1; …; A_n]`` and ``B = [w_1 s_1 B_1, …, w_n s_n B_n]``: then ``B A = Σ w_c s_c B_c A_c`` exactly, for clients
of any ranks, at rank Σ r_c. Only B is weighted; weights on both factors would be squared.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fl_lightning.linalg.factors import gather
from fl_lightning.state import LoraState, snapshot


def stack_factors(
    clients: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    scales: Mapping[str, float] | float = 1.0,
) -> LoraState:
    """One state whose product is the weighted mean of the clients' scaled products.

    Args:
        clients: {client: LoRA state}; ranks may differ.
        weights: {client: weight}; normalized here.
        scales: s_c per client, or one for all.

    Returns:
        A state of rank Σ r_c, fp32, blocks in sorted order of clients, to be used with scale 1: lora_alpha = Σ r_c,
        and no rsLoRA even if the clients use it.

    Raises:
        ValueError: if names or in and out shapes differ, or a value is not finite.

    Example:
        >>> x = {"q.lora_A.weight": torch.tensor([[1.0, 2.0]]), "q.lora_B.weight": torch.tensor([[4.0]])}
        >>> y = {"q.lora_A.weight": torch.tensor([[3.0, 5.0]]), "q.lora_B.weight": torch.tensor([[8.0]])}
        >>> stacked = stack_factors({"x": x, "y": y}, {"x": 3, "y": 1}, scales=2.0)
        >>> stacked["q.lora_A.weight"].tolist(), stacked["q.lora_B.weight"].tolist()
        ([[1.0, 2.0], [3.0, 5.0]], [[6.0, 4.0]])
    """
    department = gather(clients, weights, scales)
    result: LoraState = {}
    for layer, names in department.layers.items():
        result[names.b], result[names.a] = department.stack(department.factors(layer))
    return snapshot(result)
