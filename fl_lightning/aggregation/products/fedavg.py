"""FedAvg on LoRA factors (McMahan et al. 2017, arXiv 1602.05629; FedIT, Zhang et al. 2023, arXiv 2305.05644).

``Ā = Σ w_c A_c`` and ``B̄ = Σ w_c B_c``, each factor separately. It is cheap and keeps the rank, but the product of the
means is not the mean of the products: it misses ``s Σ w_c (B_c − B̄)(A_c − Ā)``, which
`fl_lightning.linalg.approximation_error.averaging_error` measures.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fl_lightning.flora import WeightedMean
from fl_lightning.linalg.factors import common_scaling, normalized_weights
from fl_lightning.state import LoraState, problem_with, snapshot


def average_factors(
    clients: Mapping[str, Mapping[str, torch.Tensor]],
    weights: Mapping[str, float],
    scales: Mapping[str, float] | float = 1.0,
) -> LoraState:
    """The weighted mean of each tensor; the same bits as `flora_weighted_aggregate` without residual.

    Args:
        clients: {client: LoRA state} of one rank; states of A alone may be averaged too.
        weights: {client: weight}; normalized here.
        scales: the clients' common scale, which is also the result's.

    Returns:
        The mean, fp32, to be used with the clients' scale.

    Raises:
        ValueError: if names, shapes, ranks or scales differ, or a value is not finite.

    Example:
        >>> clients = {"x": {"q.lora_A.weight": torch.tensor([[1.0]])}, "y": {"q.lora_A.weight": torch.tensor([[4.0]])}}
        >>> average_factors(clients, {"x": 1, "y": 3})["q.lora_A.weight"].item()
        3.25
    """
    normalized_weights(clients, weights)
    common_scaling(clients, scales)
    mean = WeightedMean()
    order = sorted(clients)
    first = dict(clients[order[0]])
    for name in order:
        state = first if name == order[0] else dict(clients[name])
        if problem := problem_with(state, first):
            raise ValueError(f"client {name}: {problem} (as for client {order[0]}; averaged factors need one rank)")
        mean.add(state, weights[name])
    return snapshot(mean.value())
