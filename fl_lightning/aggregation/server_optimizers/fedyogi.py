"""FedYogi: Yogi on the server (Reddi et al. 2021, arXiv 2003.00295; Yogi: Zaheer et al. 2018, NeurIPS).

``m ← β1 m + (1 − β1) Δ``, ``v ← v − (1 − β2) Δ² sign(v − Δ²)``, ``θ ← θ + η m / (√v + τ)``, from m = 0 and v = τ².
v goes towards Δ² as in FedAdam, by a step that depends on Δ² alone: after a large residual it falls slowly, so that
small residuals do not soon move θ far.
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
    """FedAdam, but v goes up or down by ``(1 − β2) Δ²``, whatever v is.

    Args:
        previous: θ, a department's state.
        residual: Δ = Σ w_c (θ_c − θ), names out of `previous`; the other tensors, their m and their v stay.
        memory: m and v of the round before under ``"m"`` and ``"v"``; empty at the start.
        rate: η, at least 0; an element moves by about η a round, however small its residual, down to τ.
        beta1: β1, the share of m that is kept, in [0, 1).
        beta2: β2 in [0, 1); the nearer to 1, the slower v follows.
        tau: τ > 0, how much of a residual counts as little; v begins at τ².

    Returns:
        The next state and ``{"m": m, "v": v}``, both fp32 on the CPU.

    Raises:
        ValueError: if an option is out of range, names or shapes do not match, or a result is not finite.

    Example:
        >>> start, residual = {"lora_A": torch.tensor([0.0])}, {"lora_A": torch.tensor([1.0])}
        >>> state, memory = step(start, residual, {}, rate=1.0, beta1=0.0, beta2=0.25, tau=2.0)
        >>> memory["v"]["lora_A"].item()  # 4 - 0.75 * 1; FedAdam: 0.25 * 4 + 0.75 * 1 = 1.75
        3.25
    """
    check_beta("beta2", beta2)

    def second(v: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        return v - (1 - beta2) * square * torch.sign(v - square)

    return adaptive(previous, residual, memory, second, rate=rate, beta1=beta1, tau=tau)
