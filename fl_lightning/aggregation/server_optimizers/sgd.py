"""Plain SGD on the server (Reddi et al. 2021, arXiv 2003.00295, with SGD as the server optimizer).

``θ ← θ + η Δ``. The package calls η, the server learning rate of the literature, `momentum`. With η = 1 the result is
the clients' mean, which is FedAvg (McMahan et al. 2017, arXiv 1602.05629).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fl_lightning.aggregation.server_optimizers.apply import OptimizerState, apply_per_tensor
from fl_lightning.flora import residual_step
from fl_lightning.state import LoraState


def sgd(
    previous: Mapping[str, torch.Tensor],
    residual: Mapping[str, torch.Tensor],
    optimizer_state: Mapping[str, LoraState],
    *,
    rate: float,
) -> tuple[LoraState, OptimizerState]:
    """Move along the mean residual: ``θ ← θ + η Δ``. It has no optimizer state.

    The step itself is `fl_lightning.flora.residual_step`, so a residual in fp64 gives the same bits as
    `fl_lightning.flora.flora_weighted_aggregate`.

    Args:
        previous: θ, a department's state.
        residual: Δ = Σ w_c (θ_c − θ); its names are a subset of those of `previous`, the other tensors stay unchanged.
        optimizer_state: empty.
        rate: η, at least 0.

    Returns:
        The next state, fp32 on the CPU, names as in `previous`; and an empty optimizer state.

    Raises:
        ValueError: if the rate is out of range, names or shapes do not match, or a result is not finite.

    Example:
        >>> state, slots = sgd({"lora_A": torch.tensor([2.0])}, {"lora_A": torch.tensor([4.0])}, {}, rate=0.25)
        >>> state["lora_A"].item(), slots
        (3.0, {})
    """

    def rule(theta: torch.Tensor, delta: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (residual_step(theta, delta, rate),)

    return apply_per_tensor(previous, residual, optimizer_state, rule, rate=rate, initial={})
