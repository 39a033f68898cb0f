"""FedAdagrad: Adagrad on the server (Reddi et al. 2021, arXiv 2003.00295).

``m ← β1 m + (1 − β1) Δ``, ``v ← v + Δ²``, ``θ ← θ + η m / (√v + τ)``, from m = 0 and v = τ². v never falls, so that the
steps shrink of themselves, about as ``1 / √t`` where the residuals stay as large as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fl_lightning.aggregation.server_optimizers.apply import Memory, adaptive
from fl_lightning.state import LoraState


def step(
    previous: Mapping[str, torch.Tensor],
    residual: Mapping[str, torch.Tensor],
    memory: Mapping[str, LoraState],
    *,
    rate: float,
    beta1: float = 0.0,
    tau: float = 1e-3,
) -> tuple[LoraState, Memory]:
    """Divide the mean of the residuals by the root of the sum of all their squares, element by element.

    Args:
        previous: θ, a department's state.
        residual: Δ = Σ w_c (θ_c − θ), names out of `previous`; the other tensors, their m and their v stay.
        memory: m and v of the round before under ``"m"`` and ``"v"``; empty at the start.
        rate: η, at least 0; an element moves by about ``η / √t`` in round t.
        beta1: β1, the share of m that is kept, in [0, 1); 0 is Adagrad, which has no m.
        tau: τ > 0, how much of a residual counts as little; v begins at τ².

    Returns:
        The next state and ``{"m": m, "v": v}``, both fp32 on the CPU.

    Raises:
        ValueError: if an option is out of range, names or shapes do not match, or a result is not finite.

    Example:
        >>> state, memory = {"lora_A": torch.tensor([0.0])}, {}
        >>> for value in (4.0, 12.0):
        ...     state, memory = step(state, {"lora_A": torch.tensor([value])}, memory, rate=1.0, tau=3.0)
        >>> memory["v"]["lora_A"].item()  # 9 + 16 + 144 = 13 * 13
        169.0
        >>> state["lora_A"].item()  # 4 / (5 + 3) + 12 / (13 + 3)
        1.25
    """

    def second(v: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        return v + square

    return adaptive(previous, residual, memory, second, rate=rate, beta1=beta1, tau=tau)
