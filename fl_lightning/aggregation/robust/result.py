"""What a guard that judges whole clients says, and the centre that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from fl_lightning.flora import WeightedMean
from fl_lightning.state import LoraState


@dataclass(frozen=True)
class Selection:
    """Whose update counts, and how much. Every client is either in `weights` and `scales` or in `rejected`.

    Attributes:
        weights: {client_id: w_c}, all positive.
        scales: {client_id: s_c}, from 0 to 1: the client's update is taken s_c times.
        rejected: {client_id: why it has no weight, with figures}.
    """

    weights: dict[str, float]
    scales: dict[str, float]
    rejected: dict[str, str] = field(default_factory=dict)


def weighted_center(residuals: Mapping[str, Mapping[str, torch.Tensor]], selection: Selection) -> LoraState:
    """The mean that the selection asks for: ``Σ w_c s_c Δ_c / Σ w_c``, in fp64, clients in sorted order.

    Args:
        residuals: {client_id: Δ_c}; only those that count are read, each tensor once.
        selection: what a guard said about these clients.

    Raises:
        ValueError: nobody has a weight, or updates differ in names or shapes.

    Example:
        >>> residuals = {"hr/a": {"lora_A": torch.tensor([1.0])}, "hr/b": {"lora_A": torch.tensor([8.0])}}
        >>> selection = Selection({"hr/a": 1.0, "hr/b": 1.0}, {"hr/a": 1.0, "hr/b": 0.25})
        >>> weighted_center(residuals, selection)["lora_A"].item()
        1.5
    """
    if not selection.weights:
        raise ValueError("selection: nobody has a weight, wanted at least one client")
    clients = sorted(selection.weights)
    mean = WeightedMean()
    for client_id in clients:
        if (share := selection.weights[client_id] * selection.scales[client_id]) > 0:
            mean.add(residuals[client_id], share)
    if mean.total == 0:
        return {n: torch.zeros(t.shape, dtype=torch.float64) for n, t in residuals[clients[0]].items()}
    scale = mean.total / sum(selection.weights[client_id] for client_id in clients)
    return {name: tensor * scale for name, tensor in mean.value().items()}
