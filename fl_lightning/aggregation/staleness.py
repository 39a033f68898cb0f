"""Late updates: what a client has changed is added to the department's newest state, with less weight the older it is.

``θ_now + s(τ) (θ_client − θ_start)``, before anything else looks at the update; τ is the number of steps that the
department has made since the client started. FedBuff, Nguyen et al. 2022 (arXiv 2106.06639), has s(τ) = (1 + τ)^-0.5.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fl_lightning.config.schedule import StalenessName
from fl_lightning.state import LoraState


def staleness_weight(name: StalenessName, staleness: int) -> float:
    """s(τ).

    Example:
        >>> staleness_weight("polynomial", 3), staleness_weight("constant", 3)
        (0.5, 1.0)
    """
    return float((1 + staleness) ** -0.5) if name == "polynomial" else 1.0


def rebase(
    state: Mapping[str, torch.Tensor],
    start: Mapping[str, torch.Tensor],
    newest: Mapping[str, torch.Tensor],
    weight: float,
) -> LoraState:
    """The update as if it had started from the newest state, fp32; computed in fp64.

    Args:
        state: the tensors that the client shares, after its fit.
        start: from which it started.
        newest: of its department.
        weight: s(τ).

    Example:
        >>> state, start, newest = ({"lora_A": torch.tensor([x])} for x in (3.0, 1.0, 10.0))
        >>> rebase(state, start, newest, 0.5)["lora_A"]
        tensor([11.])
    """
    return {
        name: (newest[name].double() + weight * (tensor.double() - start[name].double())).float()
        for name, tensor in state.items()
    }
