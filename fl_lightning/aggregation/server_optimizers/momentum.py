"""FedAvgM: SGD with momentum on the server (Hsu et al. 2019, arXiv 1909.06335).

``m ← β1 m + Δ``, ``θ ← θ + η m``, starting with m = 0. A constant residual moves θ by up to ``η / (1 − β1)`` times
itself: with β1 = 0.9 a step size of 0.1 moves as far in the long run as a step size of 1 without momentum.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fl_lightning.aggregation.server_optimizers.apply import OptimizerState, apply_per_tensor, check_beta
from fl_lightning.flora import residual_step
from fl_lightning.state import LoraState


def fedavgm(
    previous: Mapping[str, torch.Tensor],
    residual: Mapping[str, torch.Tensor],
    optimizer_state: Mapping[str, LoraState],
    *,
    rate: float,
    beta1: float = 0.9,
) -> tuple[LoraState, OptimizerState]:
    """Add the residual to a decaying sum and move along that sum: ``m ← β1 m + Δ``, ``θ ← θ + η m``.

    Args:
        previous: θ, a department's state.
        residual: Δ = Σ w_c (θ_c − θ); its names are a subset of those of `previous`, other tensors stay unchanged.
        optimizer_state: m of the round before under ``"m"``; empty at the start.
        rate: η, at least 0. It is not part of m, so a schedule scales past residuals as well.
        beta1: decay of m, in [0, 1); 0 is plain SGD.

    Returns:
        The next state and ``{"m": m}``, both fp32 on the CPU.

    Raises:
        ValueError: if an option is out of range, names or shapes do not match, or a result is not finite.

    Example:
        >>> state, slots = {"lora_A": torch.tensor([0.0])}, {}
        >>> for _ in range(2):
        ...     state, slots = fedavgm(state, {"lora_A": torch.tensor([1.0])}, slots, rate=0.5, beta1=0.5)
        >>> slots["m"]["lora_A"].item(), state["lora_A"].item()  # m: 1, 1.5; state: 0.5, 0.5 + 0.75
        (1.5, 1.25)
    """
    check_beta("beta1", beta1)

    def rule(theta: torch.Tensor, delta: torch.Tensor, m: torch.Tensor) -> tuple[torch.Tensor, ...]:
        m = beta1 * m + delta
        return residual_step(theta, m, rate), m

    return apply_per_tensor(previous, residual, optimizer_state, rule, rate=rate, initial={"m": 0.0})
