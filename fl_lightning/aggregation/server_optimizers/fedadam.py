"""FedAdam: Adam on the server (Reddi et al. 2021, arXiv 2003.00295).

``m ← β1 m + (1 − β1) Δ``, ``v ← β2 v + (1 − β2) Δ²``, ``θ ← θ + η m / (√v + τ)``, from m = 0 and v = τ². It is the
square of the residual that enters v, not that of m. Unlike Adam for a gradient there is no correction of the bias.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fl_lightning.aggregation.server_optimizers.apply import Memory, adaptive, check_beta
from fl_lightning.state import LoraState


def step(
    previous: Mapping[str, torch.Tensor],
    residual: Mapping[str, torch.Tensor],
    memory: Mapping[str, LoraState],
    *,
    rate: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
) -> tuple[LoraState, Memory]:
    """Divide the mean of the residuals by the root of the mean of their squares, element by element.

    Args:
        previous: θ, a department's state.
        residual: Δ = Σ w_c (θ_c − θ), names out of `previous`; the other tensors, their m and their v stay.
        memory: m and v of the round before under ``"m"`` and ``"v"``; empty at the start.
        rate: η, at least 0; an element moves by about η a round, however small its residual, down to τ.
        beta1: β1, the share of m that is kept, in [0, 1).
        beta2: β2, the share of v that is kept, in [0, 1).
        tau: τ > 0, how much of a residual counts as little; v begins at τ².

    Returns:
        The next state and ``{"m": m, "v": v}``, both fp32 on the CPU.

    Raises:
        ValueError: if an option is out of range, names or shapes do not match, or a result is not finite.

    Example:
        >>> start, residual = {"lora_A": torch.tensor([1.0])}, {"lora_A": torch.tensor([2.0])}
        >>> state, memory = step(start, residual, {}, rate=0.5, beta1=0.5, beta2=0.0, tau=2.0)
        >>> memory["m"]["lora_A"].item(), memory["v"]["lora_A"].item()  # 0.5 * 2, 2 * 2
        (1.0, 4.0)
        >>> state["lora_A"].item()  # 1 + 0.5 * 1 / (2 + 2)
        1.125
    """
    check_beta("beta2", beta2)

    def second(v: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        return beta2 * v + (1 - beta2) * square

    return adaptive(previous, residual, memory, second, rate=rate, beta1=beta1, tau=tau)
