"""FedAvgM: SGD with momentum on the server (Hsu et al. 2019, arXiv 1909.06335).

``m ← β m + Δ``, ``θ ← θ + η m``, from m = 0. A residual that stays the same moves θ by up to ``η / (1 − β)`` times
itself: with β = 0.9 a rate of 0.1 steps in the long run as far as a rate of 1 without β.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fl_lightning.aggregation.server_optimizers.apply import Memory, apply_per_tensor, check_beta
from fl_lightning.state import LoraState


def step(
    previous: Mapping[str, torch.Tensor],
    residual: Mapping[str, torch.Tensor],
    memory: Mapping[str, LoraState],
    *,
    rate: float,
    beta: float = 0.9,
) -> tuple[LoraState, Memory]:
    """Add the residual to a decaying sum and move along it: ``m ← β m + Δ``, ``θ ← θ + η m``.

    Args:
        previous: θ, a department's state.
        residual: Δ = Σ w_c (θ_c − θ), names out of `previous`; the other tensors and their m stay.
        memory: m of the round before under ``"m"``; empty at the start.
        rate: η, at least 0. It is not in m, so that a schedule acts on the past residuals too.
        beta: β, the share of m that is kept, in [0, 1); 0 is plain SGD.

    Returns:
        The next state and ``{"m": m}``, both fp32 on the CPU.

    Raises:
        ValueError: if an option is out of range, names or shapes do not match, or a result is not finite.

    Example:
        >>> state, memory = {"lora_A": torch.tensor([0.0])}, {}
        >>> for _ in range(2):
        ...     state, memory = step(state, {"lora_A": torch.tensor([1.0])}, memory, rate=0.5, beta=0.5)
        >>> memory["m"]["lora_A"].item(), state["lora_A"].item()  # m: 1, 1.5; state: 0.5, 0.5 + 0.75
        (1.5, 1.25)
    """
    check_beta("beta", beta)

    def rule(theta: torch.Tensor, delta: torch.Tensor, m: torch.Tensor) -> tuple[torch.Tensor, ...]:
        m = beta * m + delta
        return theta + rate * m, m

    return apply_per_tensor(previous, residual, memory, rule, rate=rate, initial={"m": 0.0})
