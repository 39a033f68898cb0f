"""FLoRA residual aggregation: clients' LoRA states become a department's state.

The mean is kept running, so any number of clients needs the memory of one adapter. It accumulates in fp64 and is cast
once, so that adding clients in sorted order gives the same bits on every machine with the same arithmetic.

Published FLoRA (Wang et al. 2024, arXiv 2409.05976) stacks the clients' factors; here `flora` is residual averaging: a
server step by plain SGD in the frame of Reddi et al. (2021, arXiv 2003.00295), where `momentum` is called the server
learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from fl_lightning.state import LoraState

_BLOCK = 1 << 17
"""Elements that are converted to fp64 at a time, 1 MiB: what was just converted is still in the cache when added."""


class WeightedMean:
    """Running weighted mean of states in fp64: ``Σ w_i x_i / Σ w_i``.

    A state is read once and not kept. Its tensors are taken in blocks of several small ones or one large one, so that
    neither the calls nor the fp64 copies cost much beside the reading.

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
        self._blocks: list[tuple[list[str], list[torch.Tensor], list[torch.Tensor]]] = []

    def add(self, state: Mapping[str, torch.Tensor], weight: float) -> None:
        """Add one state.

        Raises:
            ValueError: if the weight is not positive and finite, or names or shapes differ from the states before.
        """
        self.add_all([(state, weight)])

    def add_all(self, items: Sequence[tuple[Mapping[str, torch.Tensor], float]]) -> None:
        """Add states that are all in memory: the sums of a block stay in the cache while all states pass.

        The same bits as adding them one after another.

        Raises:
            ValueError: as `add`; then none of them is added.
        """
        if not items:
            return
        shapes = {n: t.shape for n, t in (self._sums or items[0][0]).items()}
        for state, weight in items:  # all of them first: a refused state must leave no trace in the sums
            _check(state, weight, shapes)
        if not self._sums:
            self._start(items[0][0])
        with torch.no_grad():
            for names, sums, converted in self._blocks:
                for state, weight in items:
                    torch._foreach_copy_(converted, [state[name] for name in names])
                    torch._foreach_add_(sums, converted, alpha=weight)
        for _, weight in items:
            self.total += weight

    def _start(self, state: Mapping[str, torch.Tensor]) -> None:
        """Zero sums, and the blocks with the fp64 room that all of them share."""
        self._sums = {n: torch.zeros(t.shape, dtype=torch.float64) for n, t in state.items()}
        names: list[list[str]] = [[]]
        filled, largest = 0, 0
        for name, tensor in state.items():
            if names[-1] and filled + tensor.numel() > _BLOCK:
                names.append([])
                filled = 0
            names[-1].append(name)
            filled += tensor.numel()
            largest = max(largest, filled)
        room = torch.empty(largest, dtype=torch.float64)
        for block in filter(None, names):
            sums = [self._sums[name] for name in block]
            sizes = [s.numel() for s in sums]
            parts = torch.split_with_sizes(room[: sum(sizes)], sizes)
            converted = [part.view(s.shape) for part, s in zip(parts, sums, strict=True)]
            self._blocks.append((block, sums, converted))

    def value(self) -> LoraState:
        """The mean so far, in fp64.

        Raises:
            ValueError: if nothing was added.
        """
        if self.total == 0:
            raise ValueError("no states to average: got none, wanted at least one with a positive weight")
        return {name: total / self.total for name, total in self._sums.items()}


def _check(state: Mapping[str, torch.Tensor], weight: float, shapes: Mapping[str, torch.Size]) -> None:
    """Refuse a weight or a state that cannot be added to sums of these names and shapes."""
    if not (weight > 0 and math.isfinite(weight)):
        raise ValueError(f"weight: got {weight}, wanted a positive finite number")
    if shapes.keys() != state.keys():
        odd = sorted(shapes.keys() ^ state.keys())[0]
        raise ValueError(f"{odd} is not in every state; wanted equal names")
    for name, tensor in state.items():
        if tensor.shape != shapes[name]:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, wanted {tuple(shapes[name])}")


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
        items: (state, weight) pairs; weights are normalised to w_c = weight / Σ weights. A generator is taken one pair
            at a time, a list as a whole, which is faster.
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
    if isinstance(items, (list, tuple)):
        mean.add_all(items)
    else:
        for state, weight in items:
            mean.add(state, weight)
    return apply_step(mean.value(), previous_global, momentum, use_residual)
