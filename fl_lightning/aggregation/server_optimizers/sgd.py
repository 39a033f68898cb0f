"""Plain SGD on the server (Reddi et al. 2021, arXiv 2003.00295, with SGD as the server's optimizer).

``θ ← θ + η Δ``. The package calls η, the literature's server learning rate, `momentum`; 1 gives the clients' mean,
which is FedAvg (McMahan et al. 2017, arXiv 1602.05629).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fl_lightning.aggregation.server_optimizers.apply import Memory, apply_per_tensor
from fl_lightning.state import LoraState


def step(
    previous: Mapping[str, torch.Tensor],
    residual: Mapping[str, torch.Tensor],
    memory: Mapping[str, LoraState],
    *,
    rate: float,
) -> tuple[LoraState, Memory]:
    """Move along the mean residual: ``θ ← θ + η Δ``; nothing is remembered.

    The same bits as `fl_lightning.flora.apply_step`, where the residual is given in fp64.

    Args:
        previous: θ, a department's state.
        residual: Δ = Σ w_c (θ_c − θ), names out of `previous`; the other tensors stay.
        memory: empty.
        rate: η, at least 0.

    Returns:
        The next state, fp32 on the CPU, names as in `previous`; and an empty memory.

    Raises:
        ValueError: if the rate is out of range, names or shapes do not match, or a result is not finite.

    Example:
        >>> state, memory = step({"lora_A": torch.tensor([2.0])}, {"lora_A": torch.tensor([4.0])}, {}, rate=0.25)
        >>> state["lora_A"].item(), memory
        (3.0, {})
    """

    def rule(theta: torch.Tensor, delta: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (theta + rate * delta,)

    return apply_per_tensor(previous, residual, memory, rule, rate=rate, initial={})
