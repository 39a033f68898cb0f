"""The result of a guard that selects clients, and the mean that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from fl_lightning.flora import WeightedMean
from fl_lightning.state import LoraState


@dataclass(frozen=True)
class Selection:
    """Which updates count, and how much. Each client is either in `weights` and `scales` or in `rejected`.

    Attributes:
        weights: {client_id: w_c}, all positive.
        scales: {client_id: s_c} in [0, 1], factors of the updates.
        rejected: {client_id: the reason, with numbers}.
    """

    weights: dict[str, float]
    scales: dict[str, float]
    rejected: dict[str, str] = field(default_factory=dict)


def weighted_center(residuals: Mapping[str, Mapping[str, torch.Tensor]], selection: Selection) -> LoraState:
    """The mean of a selection: ``Σ w_c s_c Δ_c / Σ w_c``, in fp64, clients in sorted order.

    Args:
        residuals: {client_id: Δ_c}; only selected ones are read, each tensor once.
        selection: from a guard, about these clients.

    Raises:
        ValueError: if no client is selected, updates differ in names or shapes, or are not finite.

    Example:
        >>> residuals = {"hr/a": {"lora_A": torch.tensor([1.0])}, "hr/b": {"lora_A": torch.tensor([8.0])}}
        >>> selection = Selection({"hr/a": 1.0, "hr/b": 1.0}, {"hr/a": 1.0, "hr/b": 0.25})
        >>> weighted_center(residuals, selection)["lora_A"].item()
        1.5
    """
    if not selection.weights:
        raise ValueError("selection: expected at least one client with a weight, got none")
    clients = sorted(selection.weights)
    mean = WeightedMean()
    for client_id in clients:
        if (weight := selection.weights[client_id] * selection.scales[client_id]) > 0:
            mean.add(residuals[client_id], weight)
    if mean.total == 0:
        return {n: torch.zeros(t.shape, dtype=torch.float64) for n, t in residuals[clients[0]].items()}
    scale = mean.total / sum(selection.weights[client_id] for client_id in clients)
    return {name: tensor * scale for name, tensor in mean.value().items()}
