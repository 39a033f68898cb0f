"""FLoRA residual aggregation: clients' LoRA states become a department's state.

The mean is kept running, so any number of clients needs the memory of one adapter. It accumulates in fp64 and is cast
once, so that adding clients in sorted order gives the same bits on every machine with the same arithmetic.

Published FLoRA (Wang et al. 2024, arXiv 2409.05976) stacks the clients' factors; here `flora` is residual averaging: a
server step by plain SGD in the frame of Reddi et al. (2021, arXiv 2003.00295), where `momentum` is called the server
learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from fl_lightning.state import LoraState


class WeightedMean:
    """Running weighted mean of states in fp64: ``Σ w_i x_i / Σ w_i``.

    Example:
        >>> mean = WeightedMean()
        >>> mean.add({"lora_A": torch.tensor([1.0])}, weight=1)
        >>> mean.add({"lora_A": torch.tensor([4.0])}, weight=3)
        >>> mean.value()["lora_A"].item()
        3.25
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._sums: LoraState = {}

    def add(self, state: Mapping[str, torch.Tensor], weight: float) -> None:
        """Add one state.

        Raises:
            ValueError: if the weight is not positive and finite, or names or shapes differ from the states before.
        """
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"weight: got {weight}, wanted a positive finite number")
        if not self._sums:
            self._sums = {n: torch.zeros(t.shape, dtype=torch.float64) for n, t in state.items()}
        elif self._sums.keys() != state.keys():
            odd = sorted(self._sums.keys() ^ state.keys())[0]
            raise ValueError(f"{odd} is not in every state; wanted equal names")
        for name, tensor in state.items():  # all of them first: a refused state must leave no trace in the sums
            if tensor.shape != self._sums[name].shape:
                raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, wanted {tuple(self._sums[name].shape)}")
        for name, tensor in state.items():
            self._sums[name].add_(tensor.detach().to("cpu", torch.float64), alpha=weight)
        self.total += weight

    def value(self) -> LoraState:
        """The mean so far, in fp64.

        Raises:
            ValueError: if nothing was added.
        """
        if self.total == 0:
            raise ValueError("no states to average: got none, wanted at least one with a positive weight")
        return {name: total / self.total for name, total in self._sums.items()}


def apply_step(
    mean: Mapping[str, torch.Tensor],
    previous_global: Mapping[str, torch.Tensor] | None = None,
    momentum: float = 0.1,
    use_residual: bool = True,
) -> LoraState:
    """Move from the previous state towards the clients' mean: ``θ + momentum (mean − θ)``, in fp64, cast to fp32.

    Equal to ``θ + momentum Σ w_c (θ_c − θ)``, since the weights sum to one. Without a previous state or with
    ``use_residual=False`` the mean itself.
    """
    if previous_global is None or not use_residual:
        return {name: tensor.to(torch.float32) for name, tensor in mean.items()}
    if not 0 < momentum <= 1:
        raise ValueError(f"momentum: got {momentum}, wanted a number in (0, 1]")
    if mean.keys() != previous_global.keys():
        odd = sorted(mean.keys() ^ previous_global.keys())[0]
        raise ValueError(f"{odd} is not in both the clients' states and previous_global; wanted equal names")
    new: LoraState = {}
    for name, target in mean.items():
        if previous_global[name].shape != target.shape:
            got, wanted = tuple(previous_global[name].shape), tuple(target.shape)
            raise ValueError(f"{name}: previous_global has shape {got}, the clients' states have {wanted}")
        start = previous_global[name].detach().to("cpu", torch.float64)
        new[name] = (start + momentum * (target.double() - start)).to(torch.float32)
    return new


def flora_weighted_aggregate(
    items: Iterable[tuple[Mapping[str, torch.Tensor], float]],
    previous_global: Mapping[str, torch.Tensor] | None = None,
    momentum: float = 0.1,
    use_residual: bool = True,
) -> LoraState:
    """Aggregate client states into the next department state: ``θ' = θ + momentum Σ w_c (θ_c − θ)``.

    Args:
        items: (state, weight) pairs, taken one at a time; weights are normalised to w_c = weight / Σ weights.
        previous_global: θ, the department's state before; None gives the weighted mean.
        momentum: the step on the mean residual, in (0, 1].
        use_residual: False gives the plain weighted mean.

    Returns:
        The new state, fp32 on the CPU, names as in the items.

    Raises:
        ValueError: no items, a weight that is not positive, or states that differ in names or shapes.

    Example:
        >>> start = {"lora_A": torch.tensor([0.0])}
        >>> clients = [({"lora_A": torch.tensor([1.0])}, 1), ({"lora_A": torch.tensor([4.0])}, 3)]
        >>> round(flora_weighted_aggregate(clients, start, momentum=0.1)["lora_A"].item(), 4)
        0.325
    """
    mean = WeightedMean()
    for state, weight in items:
        mean.add(state, weight)
    return apply_step(mean.value(), previous_global, momentum, use_residual)
